// The image, and over it the attention weights of one task's class token.

import { byId, counted, shownBytes } from "./dom.js";

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // of matplotlib
const SMALL = 224; // pixels; a smaller image is shown enlarged

const picture = byId("picture");
const heat = byId("heat");
let displayable = false; // whether the browser can show the image

drawWeights(byId("ramp"), [Array.from({ length: 64 }, (_, i) => i / 63)], 1);
byId("opacity").addEventListener("input", setOpacity);

/**
 * Shows a file as the image, and says so where the browser cannot.
 *
 * @returns {Promise<void>} ends when it is known whether the browser can
 */
export function showPicture(file) {
  URL.revokeObjectURL(picture.src);
  clearWeights();
  picture.hidden = false;
  picture.className = "";
  picture.alt = `Your image, ${file.name}`;
  byId("caption").textContent = `${file.name}, ${shownBytes(file.size)}`;
  byId("figure").hidden = false;
  return new Promise((resolve) => {
    picture.onload = () => resolve(settle(true));
    picture.onerror = () => resolve(settle(false));
    picture.src = URL.createObjectURL(file);
  });
}

function settle(can) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  displayable = can;
  picture.hidden = !can;
  picture.className = Math.max(width, height) < SMALL ? "small" : "";
  byId("stage").classList.toggle("bare", !can);
  byId("caption").textContent += can
    ? `, ${width} x ${height} pixels`
    : ". Your browser cannot show this format; the server may still read it.";
}

/** Says what the place of the attention weights shows; without a line nothing. */
export function clearWeights(line = "") {
  heat.hidden = byId("scale").hidden = true;
  byId("stage").classList.remove("weighted");
  byId("attention").textContent = line;
}

/** Draws the attention weights of a server's answer over the part of the image that the model sees. */
export function showWeights({ task, token, weights, area }) {
  const values = weights.flat();
  const largest = values.reduce((a, b) => Math.max(a, b), 0);
  const total = values.reduce((a, b) => a + b, 0);
  const size = `${weights.length} x ${weights[0].length}`;
  drawWeights(heat, weights, largest || 1);
  heat.ariaLabel = `Attention weights of task ${task} over the image, ${size} patches`;
  const place = displayable ? area : { left: 0, top: 0, width: 1, height: 1 };
  for (const side of ["left", "top", "width", "height"]) heat.style[side] = `${100 * place[side]}%`;
  heat.style.aspectRatio = `${weights[0].length} / ${weights.length}`; // where no image gives the height
  heat.hidden = byId("scale").hidden = false;
  byId("stage").classList.add("weighted");
  setOpacity();
  byId("largest").textContent = largest.toPrecision(2);
  byId("attention").textContent =
    `Task ${task}: attention weights of the ${token} in the last layer, mean over heads. ` +
    `The ${counted(values.length, "patch", "patches")} have ${total.toPrecision(2)} of the weight. ` +
    (displayable ? "The model sees the outlined part of the image." : "The map covers what the model sees.");
}

function setOpacity() {
  heat.style.opacity = displayable ? byId("opacity").value / 100 : 1;
}

/** One pixel per weight: the larger, the brighter and the more opaque. */
function drawWeights(canvas, weights, largest) {
  canvas.height = weights.length;
  canvas.width = weights[0].length;
  const pixels = new ImageData(canvas.width, canvas.height);
  weights.flat().forEach((weight, i) => pixels.data.set(colour(weight / largest), 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function colour(share) {
  const place = share * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const rgb = VIRIDIS[below].map((low, i) => low + (place - below) * (VIRIDIS[below + 1][i] - low));
  return [...rgb, 255 * (0.5 + share / 2)];
}
