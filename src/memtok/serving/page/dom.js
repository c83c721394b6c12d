// Elements, numbers for people, lists with a filter, errors and questions. Text from outside becomes text, never HTML.

const FILTERED = 6; // items at which a list shows its filter field

/** The element of index.html with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element with properties and children (elements or texts). */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** 0.8765 as 87.7 %, with a no-break space. */
export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

/** 1 task, 1,234 tasks, 3 classes. */
export function counted(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en")}\u00a0${number === 1 ? noun : plural}`;
}

/** A size in powers of 1,000: 123 B, 12.3 kB, 4.56 MB. */
export function shownBytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${Number(count.toPrecision(3)).toLocaleString("en")}\u00a0${units[unit]}`;
}

/** Nested tables as (name, value) pairs, the names joined by dots; long lists are counted (as `memtok inspect` does). */
export function* flatten(values, above = "") {
  for (const [name, value] of Object.entries(values)) {
    if (Array.isArray(value)) {
      yield [above + name, value.length > 10 ? `${value.length} entries` : JSON.stringify(value)];
    } else if (value !== null && typeof value === "object") {
      yield* flatten(value, `${above}${name}.`);
    } else {
      yield [above + name, String(value)];
    }
  }
}

/**
 * A list under a filter field, both named by `id`.
 *
 * @returns {(items: {item: Element, text: string}[]) => void} shows these items; `text` is what the filter looks in
 */
export function filteredList(id, list, noun) {
  const search = byId(`${id}-search`);
  let shown = [];
  const filter = () => {
    const wanted = byId(`${id}-filter`).hidden ? "" : search.value.trim().toLowerCase();
    for (const { item, text } of shown) item.hidden = !text.includes(wanted);
    const left = shown.filter(({ item }) => !item.hidden).length;
    byId(`${id}-count`).textContent = wanted && shown.length ? `${left.toLocaleString("en")} of ${counted(shown.length, noun)}` : "";
  };
  search.addEventListener("input", filter);
  return (items) => {
    shown = items.map(({ item, text }) => ({ item, text: text.toLowerCase() }));
    list.replaceChildren(...shown.map(({ item }) => item));
    if (items.length) byId(`${id}-filter`).hidden = items.length < FILTERED; // none: they are on their way
    filter();
  };
}

/** Shows an error in one line until the next request or `clearError`. */
export function showError(line) {
  byId("error").textContent = line;
  byId("dismiss").hidden = false;
}

export function clearError() {
  byId("error").textContent = "";
  byId("dismiss").hidden = true;
}

byId("dismiss").addEventListener("click", () => {
  clearError();
  byId("main").focus();
});

/** Asks in the page's dialog; true if the user confirms. */
export function confirmed(question, consequence, action) {
  byId("question").textContent = question;
  byId("consequence").textContent = consequence;
  byId("confirm").textContent = action;
  const dialog = byId("dialog");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
