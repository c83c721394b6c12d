// The page of `memtok serve`: an image goes to the server, the answers of all tasks come back.

import { Failure, newestOnly, request, useKey, keyInUse } from "./api.js";
import { clearAnswers, press, showAnswers } from "./answers.js";
import { byId, clearError, counted, showError, shownBytes } from "./dom.js";
import { clearWeights, showPicture, showWeights } from "./picture.js";
import { listen } from "./sources.js";
import { chooseTaskFile, listenToForm, remove, showTasks } from "./tasks.js";

const TOP = 5; // answers per task

const newestImage = newestOnly();
const newestAttention = newestOnly();
let tasks = new Map(); // by name
let image = null; // the file that the answers are about
let shown = null; // a promise that ends when the browser has loaded it, or cannot
let largest = Infinity; // bytes of a request
let changing = false; // whether a task is being added or removed

listen(answer, chooseTaskFile);
listenToForm(change);
byId("key-form").addEventListener("submit", takeKey);
byId("key-status").textContent = keyInUse() ? "A key is in use." : "";
refresh().catch(fail);

/** Reads the list of tasks. */
async function refresh() {
  const found = await request("GET", "tasks");
  const [height, width] = found.preprocessing.image_size;
  largest = found.limits.body;
  if (found.keys) byId("key").hidden = false;
  tasks = showTasks(found, (name) => change(() => remove(name)));
  byId("server").textContent =
    `Backbone ${found.backbone.source}, ${width} x ${height} pixels, ${counted(tasks.size, "task")}.`;
}

/** Sends an image and shows what the tasks answer, unless a newer image has been sent by then. */
async function answer(file) {
  const signal = newestImage();
  newestAttention(); // that of an older image does not matter any more
  image = file;
  clearError();
  shown = showPicture(file);
  clearAnswers(`Waiting for the answers to ${file.name} …`, true);
  try {
    if (file.size > largest) {
      throw new Failure(`${file.name} has ${shownBytes(file.size)}, the server takes ${shownBytes(largest)} at most.`, 413);
    }
    const found = await request("POST", `predict?top=${TOP}`, { body: file, signal });
    const [{ tasks: answers }] = found.images;
    const names = Object.keys(answers);
    const known = names.length === tasks.size && names.every((name) => tasks.has(name));
    if (!known) await refresh(); // others have added or removed tasks
    if (!signal.aborted) showAnswers(answers, tasks, attend);
  } catch (error) {
    if (signal.aborted) return;
    clearAnswers("No answers.");
    fail(error);
  }
}

/** Shows the attention weights of a task over the image, or hides them. */
async function attend(name, wanted) {
  const signal = newestAttention();
  press(wanted ? name : null);
  clearWeights(wanted ? `Waiting for the attention weights of ${name} …` : "");
  if (!wanted) return;
  clearError();
  byId("stage").scrollIntoView({ block: "nearest" });
  try {
    const path = `tasks/${encodeURIComponent(name)}/attention`;
    const [found] = await Promise.all([request("POST", path, { body: image, signal }), shown]);
    if (!signal.aborted) showWeights(found);
  } catch (error) {
    if (signal.aborted) return;
    press(null);
    clearWeights();
    fail(error);
  }
}

/** Does `work`, which adds or removes a task and says whether it did; one at a time. */
async function change(work) {
  if (changing) return;
  changing = true;
  byId("tasks").ariaBusy = "true";
  try {
    if (!(await work())) return;
    await refresh();
    if (image) answer(image);
  } catch (error) {
    byId("tasks-status").textContent = "";
    fail(error);
  } finally {
    changing = false;
    byId("tasks").ariaBusy = "false";
  }
}

async function takeKey(event) {
  event.preventDefault();
  clearError();
  byId("key-status").textContent = "";
  try {
    useKey(byId("key-field").value.trim());
    await refresh();
    byId("key-status").textContent = keyInUse() ? "The server accepts the key." : "No key is in use.";
    if (image) answer(image);
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  showError(error.message);
  if (error.status === 401) byId("key").hidden = false;
  if (error.status === undefined) console.error(error); // no failure of a request, but a mistake in this page
}
