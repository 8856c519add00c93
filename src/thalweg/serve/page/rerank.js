// A re-ranker of images: several files, best first.

import { ask, givenUp } from "./api.js";
import { button, dropTarget, el, fileChooser, section, troubleLine } from "./dom.js";
import { WrongFile, readImage } from "./files.js";
import { count, nats, number } from "./format.js";
import { encode, paint } from "./tensors.js";

const MOST = 256;

/** The section of a model that chooses among images. */
export function ranking(model, shape) {
  const list = el("ol", { class: "gallery ranked" });
  const said = el("p", { class: "soft", role: "status", "aria-live": "polite", text: "Choose two or more candidates, or drop them here." });
  const trouble = troubleLine();
  let candidates = [];
  let turn = 0;

  async function take(files) {
    const wrong = [];
    for (const file of files) {
      if (candidates.length >= MOST) {
        wrong.push(`At most ${MOST} candidates are ranked at once.`);
        break;
      }
      try {
        const { values, note } = await readImage(file, shape);
        candidates.push({ name: file.name, values, note });
      } catch (error) {
        if (!(error instanceof WrongFile)) throw error;
        wrong.push(error.message);
      }
    }
    if (wrong.length) trouble.say(wrong.length > 1 ? `${wrong[0]} ${count(wrong.length - 1)} more were left out.` : wrong[0]);
    else trouble.clear();
    await rank();
  }

  async function rank() {
    const own = ++turn;
    if (!candidates.length) return;
    const asked = candidates.slice();
    said.textContent = `Ranking ${count(asked.length)}.`;
    try {
      const body = { instances: asked.map(({ values }) => encode(values, shape)) };
      const { order, predictions } = await ask("v1/rerank", body, { query: { model: model.name } });
      if (own !== turn) return;
      list.replaceChildren(...order.map((i, place) => tile(asked[i], place, predictions[i].energy)));
      // A re-ranker that found on unseen rows that choosing does not help keeps the order that it is given.
      const kept = order.every((i, place) => i === place);
      const sorted = order.every((i, place) => place === 0 || predictions[order[place - 1]].energy <= predictions[i].energy);
      said.textContent =
        kept && !sorted
          ? `${count(asked.length)} scored. The re-ranker keeps the order given, as it has no evidence that choosing helps.`
          : `${count(asked.length)} ranked, best first; the best is ${asked[order[0]].name}.`;
    } catch (error) {
      if (own === turn) said.textContent = "";
      if (!givenUp(error)) trouble.say(error.message);
    }
  }

  function tile({ name, values, note }, place, energy) {
    const canvas = el("canvas", { class: "picture", role: "img", "aria-label": `Number ${place + 1}: ${name}, ${nats(energy)}` });
    paint(canvas, { shape, values });
    return el("li", { title: note }, el("div", { class: place ? "tile" : "tile best" }, canvas, el("span", { class: "figure", text: `${place + 1}` }), el("span", { class: "soft name", text: name }), el("span", { class: "figure soft", text: number(energy, { whole: true }) })));
  }

  const clear = button("Clear", () => {
    turn++;
    candidates = [];
    list.replaceChildren();
    trouble.clear();
    said.textContent = "Choose two or more candidates, or drop them here.";
  });
  const found = section(
    "Best of several",
    "Drop several images. The best comes first; the others follow by energy and by variety.",
    el("div", { class: "row" }, fileChooser("Choose candidates", "image/*", take, { multiple: true }), clear),
    said,
    trouble.element,
    list,
  );
  dropTarget(found, take);
  return found;
}
