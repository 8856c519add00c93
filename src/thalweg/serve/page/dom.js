// Elements made in code. Text is always set as text, never as markup, so that a name from outside stays a name.

let last = 0;

/** An id that no other element has. */
export const newId = (stem) => `${stem}-${++last}`;

/** What the attributes say, on an element of either kind: `text`, `css` (a style by name), `on` (listeners), or plain ones. */
function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "css") for (const [key, style] of Object.entries(value)) element.style.setProperty(key, style);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element of HTML: el("p", { class: "note", text: "…" }, child, …). */
export const el = (name, attributes = {}, ...children) => dress(document.createElement(name), attributes, children);

/** An element of SVG. */
export const svg = (name, attributes = {}, ...children) =>
  dress(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

/** A button with a text. */
export const button = (text, click, attributes = {}) => el("button", { type: "button", text, on: { click }, ...attributes });

/** A section with a heading and a line below it that says what it is for. */
export function section(heading, note, ...children) {
  const id = newId("heading");
  return el(
    "section",
    { "aria-labelledby": id },
    el("header", { class: "section-head" }, el("h2", { id, text: heading }), note ? el("p", { class: "soft", text: note }) : null),
    ...children,
  );
}

/** A label above its control. */
export function field(label, control, attributes = {}) {
  control.id ||= newId("field");
  return el("div", { class: "field", ...attributes }, el("label", { for: control.id, text: label }), control);
}

/** A button that opens the files of the computer; `take` gets a list of them. */
export function fileChooser(text, accept, take, { multiple = false } = {}) {
  const id = newId("file");
  const input = el("input", { type: "file", class: "unseen", id, accept, multiple });
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // the same file may be chosen again
    if (files.length) take(files);
  });
  return el("span", { class: "chooser" }, input, el("label", { class: "button", for: id, text }));
}

/** Files dropped on an element go to `take`. */
export function dropTarget(element, take) {
  let depth = 0;
  const over = (on) => element.classList.toggle("over", on);
  const holds = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  element.addEventListener("dragenter", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    over(++depth > 0);
  });
  element.addEventListener("dragover", (event) => holds(event) && event.preventDefault());
  element.addEventListener("dragleave", (event) => holds(event) && over(--depth > 0));
  element.addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    over((depth = 0) > 0);
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
  });
}

/** A line that says what went wrong, and nothing while all is well. */
export function troubleLine() {
  const element = el("p", { class: "trouble", role: "alert" });
  return {
    element,
    say: (text) => (element.textContent = text),
    clear: () => (element.textContent = ""),
  };
}

/** Whether the person asked for less motion. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A download of a text made here. */
export function download(name, text, type = "text/csv") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
