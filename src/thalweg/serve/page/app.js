// The page: which models are served, and the view of the one that is chosen. Views are kept, so no work is lost.

import { get } from "./api.js";
import { banner } from "./connection.js";
import { el } from "./dom.js";
import { imageView } from "./image_view.js";
import { tableView } from "./table_view.js";
import { textView } from "./text_view.js";

const VIEWS = { image: imageView, table: tableView, rows: tableView, text: textView };
const views = new Map();
const main = document.querySelector("main");
const picker = document.querySelector("#picker");
const title = document.querySelector("#title");
const about = document.querySelector("#about");
let shown = null;

function show(model) {
  if (!views.has(model.name)) {
    const view = VIEWS[model.content](model);
    view.element = el("div", {}, view.parts);
    views.set(model.name, view);
  }
  shown = views.get(model.name);
  title.textContent = model.name;
  about.textContent = [model.title, sizes(model), model.version ? `version ${model.version}` : ""].filter(Boolean).join(" · ");
  document.title = `${model.name} · Thalweg`;
  main.replaceChildren(shown.element);
}

function sizes({ content, inputs }) {
  if (content !== "image") return "";
  const [, channels, height, width] = inputs[0].shape;
  return `images of ${width} × ${height} pixels, ${channels === 1 ? "grey" : `${channels} channels`}`;
}

document.addEventListener("paste", (event) => {
  if (!event.target.closest?.("input, textarea")) shown?.paste(event);
});
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault()); // no file replaces the page

document.querySelector("#banner").replaceWith(banner);

async function start() {
  let models;
  try {
    ({ models } = await get("v1/models"));
  } catch (error) {
    main.replaceChildren(el("p", { class: "trouble", role: "alert", text: error.message }));
    return;
  }
  const known = models.filter((model) => model.content in VIEWS);
  if (!known.length) {
    main.replaceChildren(el("p", { class: "trouble", role: "alert", text: "The server has no model that this page can show." }));
    return;
  }
  const select = picker.querySelector("select");
  select.replaceChildren(...known.map(({ name }) => el("option", { value: name, text: name })));
  select.addEventListener("change", () => show(known.find(({ name }) => name === select.value)));
  picker.hidden = known.length < 2;
  show(known[0]);
}

start();
