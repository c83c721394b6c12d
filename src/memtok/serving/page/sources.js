// Where images come from: a file, a drop anywhere, a paste, the camera.

import { byId, clearError, showError } from "./dom.js";

/** Calls `use(file)` with every image, and `useTask(file)` with a task file that is dropped. */
export function listen(use, useTask) {
  fromFile(use);
  fromDrop((file) => (file.name.endsWith(".safetensors") ? useTask(file) : use(file)));
  fromClipboard(use);
  fromCamera(use);
}

function fromFile(use) {
  const input = byId("image-file");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // the same file can be chosen again
    if (file) use(file);
  });
}

function fromDrop(use) {
  const drags = (event) => ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types.includes(type));
  const mark = (on) => document.documentElement.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => {
    if (!drags(event)) return; // text may be dropped into a field
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false); // it left the window
  });
  document.addEventListener("drop", (event) => {
    if (!drags(event)) return;
    event.preventDefault();
    mark(false);
    const [file] = event.dataTransfer.files;
    if (file) use(file);
    else showError("This is a link, not a file. Save the image first, then drop the file.");
  });
}

function fromClipboard(use) {
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) use(file);
    else if (!event.target.closest("input")) showError("The clipboard holds no image.");
  });
}

function fromCamera(use) {
  const [start, take, stop] = ["start", "take", "stop"].map((name) => byId(`camera-${name}`));
  const preview = byId("preview");
  const show = (stream) => {
    preview.srcObject = stream;
    byId("camera").hidden = !stream;
    start.hidden = Boolean(stream);
  };
  const end = () => {
    for (const track of preview.srcObject?.getTracks() ?? []) track.stop();
    show(null);
  };

  start.addEventListener("click", async () => {
    clearError();
    start.disabled = true;
    try {
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      show(stream);
      for (const track of stream.getTracks()) track.addEventListener("ended", end); // e.g. it was unplugged
      take.focus();
    } catch (error) {
      showError(CAMERA_ERRORS[error.name] ?? `The camera does not start: ${error.message || error.name}.`);
    } finally {
      start.disabled = false;
    }
  });
  stop.addEventListener("click", () => {
    end();
    start.focus();
  });
  take.addEventListener("click", () => {
    if (!preview.videoWidth) return showError("The camera has no picture yet. Try again.");
    const canvas = new OffscreenCanvas(preview.videoWidth, preview.videoHeight);
    canvas.getContext("2d").drawImage(preview, 0, 0);
    return canvas
      .convertToBlob({ type: "image/jpeg", quality: 0.95 })
      .then((blob) => use(new File([blob], "camera.jpg", { type: blob.type })));
  });
  window.addEventListener("pagehide", end);
}

const CAMERA_ERRORS = {
  NotAllowedError: "The browser does not allow the camera. Allow it for this page, or choose a file.",
  NotFoundError: "The browser finds no camera. Choose a file instead.",
  NotReadableError: "Another program uses the camera. Close it, or choose a file.",
  SecurityError: "Browsers give a page the camera only over HTTPS or on localhost. Choose a file instead.",
};
