// The section of tasks: what each is, adding one and removing one.

import { request } from "./api.js";
import { byId, clearError, confirmed, counted, element, filteredList, flatten, shownBytes } from "./dom.js";

const showItems = filteredList("tasks", byId("task-list"), "task");
const say = (line) => (byId("tasks-status").textContent = line);
const address = (name) => `tasks/${encodeURIComponent(name)}`;

/** Descriptions of the server's tasks by name. */
let tasks = new Map();

/** Shows what `GET /v1/tasks` gave. `onRemove(name)` is called when the user wants to remove a task. */
export function showTasks(answer, onRemove) {
  tasks = new Map(answer.tasks.map((task) => [task.name, task]));
  byId("fixed").hidden = !answer.fixed;
  byId("add").hidden = !answer.may_add;
  showItems(
    answer.tasks.map((task) => ({
      item: entry(task, answer.fixed, onRemove),
      text: [task.name, task.regime ?? "", ...task.extends, ...task.classes].join("\n"),
    })),
  );
  return tasks;
}

function entry(task, fixed, onRemove) {
  const facts = [counted(task.classes.length, "class", "classes")];
  if (task.bytes !== null) facts.push(shownBytes(task.bytes), task.regime); // an exported file does not tell
  if (task.extends.length) facts.push(`extends ${task.extends.join(", ")}`);
  const details = element("details", {}, element("summary", {}, `Details of ${task.name}`));
  details.addEventListener("toggle", () => details.append(description(task)), { once: true });
  const made = element(
    "li",
    { className: "task" },
    element("h3", {}, task.name),
    element("p", { className: "note" }, facts.join(" · ")),
    details,
  );
  if (task.changeable && !fixed) {
    const button = element("button", { type: "button", ariaLabel: `Remove ${task.name}` }, "Remove");
    button.addEventListener("click", () => onRemove(task.name));
    made.append(button);
  }
  return made;
}

/** Everything about a task, its training record included. Built when it is opened: it may be long. */
function description(task) {
  const record = [...flatten(task.record)];
  const rows = [
    ["classes", task.classes.join(", ")],
    ...(task.parameters === null ? [] : [["parameters", task.parameters.toLocaleString("en")]]),
    ["fingerprint", task.fingerprint],
    ["training record", record.length ? counted(record.length, "entry", "entries") : "none"],
    ...record,
  ];
  return element(
    "dl",
    {},
    ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

/** Puts a file into the form. */
export function chooseTaskFile(file) {
  const files = new DataTransfer();
  files.items.add(file);
  byId("task-file").files = files.files;
  nameOfFile();
  byId("task-name").focus();
}

function nameOfFile() {
  const [file] = byId("task-file").files;
  if (file) byId("task-name").value = file.name.replace(/\.safetensors$/i, "");
}

/** Listens to the form; calls `onChange(work)` with the work of an addition, which may fail. */
export function listenToForm(onChange) {
  byId("task-file").addEventListener("change", nameOfFile);
  byId("add").addEventListener("submit", (event) => {
    event.preventDefault();
    const [file] = byId("task-file").files;
    onChange(() => add(byId("task-name").value.trim(), file));
  });
}

async function add(name, file) {
  const known = tasks.has(name);
  if (known && !(await confirmed(`Replace task ${name}?`, "The server then answers with the new file.", "Replace"))) {
    return false;
  }
  clearError();
  say(`Sending ${file.name} …`);
  const { stored } = await request("PUT", address(name), { body: file });
  byId("add").reset();
  say(`Task ${name} is ${known ? "replaced" : "added"}.${stored ? "" : " It is not stored: a restart removes it."}`);
  return true;
}

/** Asks, then removes a task; false if the user does not want to. */
export async function remove(name) {
  if (!(await confirmed(`Remove task ${name}?`, "The server no longer answers with it.", "Remove"))) return false;
  clearError();
  say(`Removing ${name} …`);
  await request("DELETE", address(name));
  say(`Task ${name} is removed.`);
  byId("tasks-title").focus(); // its button is gone
  return true;
}
