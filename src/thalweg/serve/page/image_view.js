// A model of images: draw or choose one, see its score and its reasons while drawing; completions and samples below.

import { ask, givenUp, newest } from "./api.js";
import { probabilityBars } from "./charts.js";
import { button, dropTarget, el, field, fileChooser, newId, section, troubleLine } from "./dom.js";
import { WrongFile, pastedImages, readImage } from "./files.js";
import { nats } from "./format.js";
import { completions } from "./inpaint.js";
import { Pad } from "./pad.js";
import { promise, resultPanel } from "./result.js";
import { gallery } from "./samples.js";
import { ranking } from "./rerank.js";
import { decode, encode, imageShape, paint, paintHeat } from "./tensors.js";

/** The view of a model whose rows are images. */
export function imageView(model) {
  const can = new Set(model.can);
  const shape = imageShape(model.inputs[0].shape.slice(1));
  const pad = new Pad(shape, { holes: can.has("inpaint") });
  const panel = resultPanel(model, can.has("sample") ? "Draw something, choose an image, or take a sample from below." : "Draw something, or choose an image.");
  const bars = can.has("classify") ? probabilityBars() : null;
  const trouble = troubleLine();
  const reasons = can.has("explain") ? reasonsOf(model, pad, trouble) : null;
  const note = el("p", { class: "soft note" });

  const score = newest(async (version, signal) => {
    try {
      const body = { instances: [encode(pad.values, shape)] };
      const query = { model: model.name };
      const [scored, classified] = await Promise.all([
        ask("v1/score", body, { query, signal }),
        bars && ask("v1/classify", body, { query, signal }),
      ]);
      if (pad.empty) return; // cleared in the meantime
      panel.show(scored.predictions[0]);
      bars?.show(classified.predictions[0].probabilities);
      trouble.clear();
      if (version === pad.version) reasons?.ask(body, query);
    } catch (error) {
      if (!givenUp(error)) trouble.say(error.message);
    }
  });

  pad.version = 0;
  const changed = () => {
    pad.version++;
    reasons?.hide();
    if (pad.empty) {
      score.stop();
      panel.clear();
      bars?.clear();
    } else score(pad.version);
  };
  pad.addEventListener("change", changed);
  reasons?.onWanted(() => !pad.empty && score(pad.version));

  const take = async ([file]) => {
    try {
      const found = await readImage(file, shape);
      pad.put(found.values);
      note.textContent = `${found.note}.`;
      trouble.clear();
    } catch (error) {
      if (!(error instanceof WrongFile)) throw error;
      trouble.say(error.message);
    }
  };
  const use = (values, said) => {
    pad.put(values);
    note.textContent = said;
    trouble.clear();
    pad.element.scrollIntoView({ block: "nearest" });
    pad.element.focus({ preventScroll: true });
  };

  const one = section(
    "One image",
    promise(model),
    el(
      "div",
      { class: "two" },
      el("div", { class: "drawing" }, pad.element, tools(pad, shape, note), el("div", { class: "row" }, fileChooser("Choose an image", "image/*", take), el("span", { class: "soft", text: "or drop or paste one" })), note, trouble.element),
      el("div", {}, panel.element, bars && el("div", { class: "probabilities" }, el("h3", { text: "Probabilities" }), bars.element), reasons?.element),
    ),
  );
  dropTarget(one, take);

  const parts = [one];
  if (can.has("inpaint")) parts.push(completions(model, pad, use));
  if (can.has("rerank")) parts.unshift(ranking(model, shape));
  if (can.has("sample")) parts.push(gallery(model, use));
  return { parts, paste: (event) => pastedImages(event).length && take(pastedImages(event)) };
}

function tools(pad, shape, note) {
  const name = newId("tool");
  const tool = (value, text) => {
    const input = el("input", { type: "radio", name, value, class: "unseen", id: newId("tool"), checked: value === pad.tool });
    input.addEventListener("change", () => {
      pad.tool = value;
      pad.show();
    });
    return [input, el("label", { for: input.id, text })];
  };
  const act = (text, work) =>
    button(text, () => {
      work();
      if (text === "Clear") note.textContent = "";
    });
  const bar = el(
    "div",
    { class: "row" },
    el("fieldset", { class: "segments" }, el("legend", { class: "unseen", text: "Tool" }), tool("draw", "Draw"), tool("erase", "Erase")),
    act("Undo", () => pad.undo()),
    act("Invert", () => pad.invert()),
    act("Clear", () => pad.clear()),
  );
  if (shape[0] >= 3) bar.append(colourOf(pad));
  return bar;
}

function colourOf(pad) {
  const input = el("input", { type: "color", value: "#ffffff" });
  input.addEventListener("input", () => (pad.colour = [1, 3, 5].map((at) => parseInt(input.value.slice(at, at + 2), 16) / 255)));
  return field("Colour", input, { class: "field inline" });
}

/** The heat map over the pad and the repaired image beside it. They take longer than a score, so no score waits for them. */
function reasonsOf(model, pad, trouble) {
  const input = el("input", { type: "checkbox", id: newId("reasons"), checked: true });
  const legend = el("p", { class: "soft", role: "status" });
  const repaired = el("canvas", { class: "picture small", role: "img", "aria-label": "A likelier image near it" });
  const figure = el("figure", { class: "repair", hidden: true }, repaired, el("figcaption", { class: "soft", text: "A likelier image near it" }));
  const box = el(
    "div",
    { class: "reasons" },
    el("div", { class: "check" }, input, el("label", { for: input.id, text: "Show where the oddness lies" })),
    legend,
    figure,
  );
  const { edges = [0, 0] } = model.histogram ?? {};
  const strong = (edges[edges.length - 1] - edges[0]) / 20; // nats; an ordinary image stays pale
  let control = null;
  const hide = () => {
    control?.abort(); // it would be of an older image
    pad.heat.hidden = true;
    figure.hidden = true;
    legend.textContent = "";
  };
  return {
    element: box,
    hide,
    onWanted: (work) => input.addEventListener("change", () => (input.checked ? work() : hide())),
    ask: async (body, query) => {
      if (!input.checked) return;
      control?.abort();
      const { signal } = (control = new AbortController());
      let found;
      try {
        [found] = (await ask("v1/explain", body, { query: { ...query, encoding: "base64" }, signal })).predictions;
      } catch (error) {
        if (!givenUp(error)) trouble.say(error.message);
        return;
      }
      if (signal.aborted) return;
      if (found.map) {
        const top = paintHeat(pad.heat, decode(found.map), [255, 84, 56], strong);
        pad.heat.hidden = false;
        legend.textContent = `Red raises the energy, by up to ${nats(top)} a pixel.`;
      }
      if (found.repaired) {
        paint(repaired, decode(found.repaired));
        figure.hidden = false;
      }
    },
  };
}
