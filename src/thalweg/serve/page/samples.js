// A gallery of draws of the model: chains on their way from noise, with their energies.

import { ask, givenUp, stream } from "./api.js";
import { energyCurve } from "./charts.js";
import { button, calm, el, field, newId, section, troubleLine } from "./dom.js";
import { number } from "./format.js";
import { decode, paint, rows } from "./tensors.js";

const FRAMES = 16;

/** A row of a table as a line: each column's name and value. */
const cells = (row) => Object.entries(row).map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : (value ?? "missing")}`).join(", ");

/** The section of a model that draws rows; `use(values, note)` puts an image to use. */
export function gallery(model, use) {
  const image = model.content === "image";
  const n = image ? 12 : 10;
  const list = el(image ? "ul" : "ol", { class: image ? "gallery" : "texts" });
  const said = el("p", { class: "soft", role: "status", "aria-live": "polite" });
  const trouble = troubleLine();
  const curve = energyCurve(FRAMES);
  curve.element.hidden = true;
  const seed = el("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, value: 0, required: true });
  const temperature = el("input", { type: "range", min: 0.2, max: 2, step: 0.05, value: 1 });
  const shown = el("output", { class: "figure", text: "1" });
  temperature.addEventListener("input", () => (shown.textContent = number(Number(temperature.value))));
  const label = model.labels?.length
    ? el("select", {}, el("option", { value: "", text: "any" }), model.labels.map((name, k) => el("option", { value: k, text: name })))
    : null;
  let control = null;
  let drawn = false;

  const draw = button("Draw samples", () => {
    if (drawn) seed.value = (Number(seed.value) + 1) % 2 ** 31;
    run();
  }, { class: "primary" });
  const stop = button("Stop", () => control?.abort(), { hidden: true });
  seed.addEventListener("input", () => {
    drawn = false;
    draw.textContent = "Draw samples";
  });

  async function run() {
    if (!seed.reportValidity()) return;
    control?.abort();
    const own = (control = new AbortController());
    const body = { n, seed: Number(seed.value), temperature: Number(temperature.value) };
    if (label?.value) body.label = Number(label.value);
    trouble.clear();
    curve.clear();
    stop.hidden = false;
    said.textContent = image ? "The chains set out." : "Drawing.";
    try {
      if (image && !calm()) await descend(body, own.signal);
      else await drawOnce(body, own.signal);
      drawn = true;
      draw.textContent = "Draw again";
    } catch (error) {
      if (own !== control) return; // a newer draw has begun
      said.textContent = givenUp(error) ? "Stopped." : "";
      if (!givenUp(error)) trouble.say(error.message);
    } finally {
      if (own === control) {
        control = null;
        stop.hidden = true;
      }
    }
  }

  async function descend(body, signal) {
    curve.element.hidden = false;
    const tiles = imageTiles(n);
    await stream(
      "v1/sample",
      { ...body, frames: FRAMES },
      (frame) => {
        if (signal.aborted) return;
        rows(decode(frame.rows)).forEach((row, i) => tiles[i].show(row, frame.energies?.[i], frame.last));
        if (frame.energies) curve.add(frame);
        if (frame.last) done(body);
      },
      { query: { model: model.name }, signal },
    );
  }

  async function drawOnce(body, signal) {
    curve.element.hidden = true;
    const found = await ask("v1/sample", { ...body, frames: 0 }, { query: { model: model.name, ...(image ? { encoding: "base64" } : {}) }, signal });
    const drawnRows = Array.isArray(found.predictions) ? found.predictions : rows(decode(found.predictions));
    if (!image) list.replaceChildren(...drawnRows.map((row) => el("li", {}, rowButton(row))));
    else {
      const tiles = imageTiles(drawnRows.length);
      drawnRows.forEach((row, i) => tiles[i].show(row.values ? row : decode(row.x ?? row), row.energy, true));
    }
    done(body);
  }

  const done = ({ seed, temperature }) => {
    said.textContent = `${image ? "Twelve draws" : "Draws"} of seed ${seed} at temperature ${number(temperature)}.${use ? ` Choose one to ${image ? "put it onto the pad" : "look at it above"}.` : ""}`;
  };

  function rowButton(row) {
    const text = typeof row === "string" ? row : Array.isArray(row) ? row.flat(Infinity).map(number).join(", ") : cells(row);
    return use && typeof row === "string" ? button(text || "(empty)", () => use(row), { class: "quiet" }) : el("span", { class: "figure", text });
  }

  function imageTiles(count) {
    const tiles = Array.from({ length: count }, (_, i) => tile(i));
    list.replaceChildren(...tiles.map((t) => t.element));
    return tiles;
  }

  function tile(i) {
    const [height, width] = model.inputs[0].shape.slice(-2);
    const canvas = el("canvas", { class: "picture", "aria-hidden": "true", width, height });
    const energy = el("span", { class: "figure soft", text: "…" });
    let held = null;
    const choose = button("", () => use(held, `Sample ${i + 1} of seed ${seed.value}.`), { class: "tile", disabled: true, "aria-label": `Sample ${i + 1}, on its way` });
    choose.append(canvas, energy);
    return {
      element: el("li", {}, choose),
      show: (row, u, last) => {
        held = row.values;
        paint(canvas, row);
        energy.textContent = u === undefined ? "" : number(u, { whole: true });
        if (!last) return;
        choose.disabled = false;
        choose.setAttribute("aria-label", `Sample ${i + 1}${u === undefined ? "" : `, ${number(u)} nats`}: put it onto the drawing pad`);
      },
    };
  }

  shown.id = newId("shown");
  const slider = el("div", { class: "slider" }, temperature, shown);
  temperature.id = newId("field");
  return section(
    "Samples",
    image ? "Each picture is a chain that goes down from noise to low energy. A low temperature keeps to what is most likely." : "Draws of the model. A low temperature keeps to what is most likely.",
    el(
      "div",
      { class: "row controls" },
      el("div", { class: "field" }, el("label", { for: temperature.id, text: "Temperature" }), slider),
      field("Seed", seed, { class: "field narrow" }),
      label && field("Label", label),
      el("div", { class: "row" }, draw, stop),
    ),
    said,
    trouble.element,
    list,
    image ? curve.element : null,
  );
}
