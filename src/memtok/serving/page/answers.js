// A card for each task: its most probable classes as bars, and a button for its attention weights.

import { byId, counted, element, filteredList, percent } from "./dom.js";

const FEW = 3; // up to so many tasks, the screen reader says the first answer of each

const list = byId("cards");
const showItems = filteredList("answers", list, "task");

/**
 * Shows the answers about one image.
 *
 * @param answers {task: [{label, score}]}
 * @param tasks descriptions of tasks, by name
 * @param onAttention called with (task, pressed) when the button of a task is pressed or released
 */
export function showAnswers(answers, tasks, onAttention) {
  const sorted = Object.entries(answers).map(([name, found]) => [name, found.toSorted((a, b) => b.score - a.score)]);
  const items = sorted.map(([name, found]) => ({
    item: card(name, found, tasks.get(name), onAttention),
    text: [name, ...found.map(({ label }) => label)].join("\n"),
  }));
  showItems(items);
  const first = ([name, [best]]) => ` ${name}: ${best.label}, ${percent(best.score)}.`;
  say(`Answers of ${counted(items.length, "task")}.`);
  if (items.length <= FEW) byId("answers-status").append(element("span", { className: "unseen" }, ...sorted.map(first)));
}

/** No cards, and why. */
export function clearAnswers(line, busy = false) {
  showItems([]);
  say(line, busy);
}

/** The button of this task is pressed, all others are not; all if `name` is null. */
export function press(name) {
  for (const button of list.querySelectorAll("button")) {
    button.ariaPressed = String(button.dataset.task === name);
  }
}

function say(line, busy = false) {
  byId("answers").ariaBusy = String(busy);
  byId("answers-status").textContent = line;
}

function card(name, found, task, onAttention) {
  const made = element("li", { className: "card" }, element("h3", {}, name));
  if (task && found.length < task.classes.length) {
    made.append(element("p", { className: "note" }, `${found.length} of ${counted(task.classes.length, "class", "classes")}`));
  }
  made.append(element("ol", { className: "bars" }, ...found.map(bar)));
  if (task?.attention) made.append(attentionButton(name, onAttention));
  return made;
}

function bar({ label, score }) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * score}%`;
  return element(
    "li",
    {},
    element("span", { className: "label" }, label),
    " ",
    element("span", { className: "share" }, percent(score)),
    element("span", { className: "track", ariaHidden: "true" }, fill),
  );
}

function attentionButton(name, onAttention) {
  const button = element(
    "button",
    { type: "button", ariaPressed: "false" },
    "Attention weights",
    element("span", { className: "unseen" }, ` of ${name}`),
  );
  button.dataset.task = name;
  button.addEventListener("click", () => onAttention(name, button.ariaPressed !== "true"));
  return button;
}
