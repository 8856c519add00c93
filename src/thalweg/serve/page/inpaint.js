// Completions of an image whose erased part is unknown, shown one after another as they come.

import { givenUp, stream } from "./api.js";
import { button, el, field, section, troubleLine } from "./dom.js";
import { nats, number } from "./format.js";
import { decode, encode, encodeMask, paint } from "./tensors.js";

/** The section of a model that completes images; `use(values, note)` puts one onto the pad. */
export function completions(model, pad, use) {
  const shape = pad.shape;
  const list = el("ul", { class: "gallery" });
  const said = el("p", { class: "soft", role: "status", "aria-live": "polite" });
  const trouble = troubleLine();
  const howMany = el("select", {}, [1, 2, 4, 8].map((n) => el("option", { value: n, text: n, selected: n === 4 })));
  let control = null;
  let seed = 0;

  const start = button("Complete", () => run(), { class: "primary" });
  const stop = button("Stop", () => control?.abort(), { hidden: true });

  const refresh = () => {
    start.disabled = !pad.hasHoles || control !== null;
    if (control) return;
    if (!pad.hasHoles) said.textContent = "Take the eraser above and erase a part of the image first.";
    else if (!list.children.length || said.textContent.startsWith("Take")) said.textContent = "The striped part is unknown and will be filled in.";
  };
  pad.addEventListener("change", refresh);
  refresh();

  async function run() {
    control = new AbortController();
    const n = Number(howMany.value);
    const image = pad.values.slice();
    const observed = Uint8Array.from(image, (_, i) => (pad.erased[i % pad.size] ? 0 : 1));
    const tiles = Array.from({ length: n }, (_, i) => tile(i));
    list.replaceChildren(...tiles.map((t) => t.element));
    const energies = [];
    trouble.clear();
    stop.hidden = false;
    refresh();
    said.textContent = `Completing: 0 of ${n} so far.`;
    try {
      const body = { image: encode(image, shape), observed: encodeMask(observed, shape), n, seed: seed++ };
      await stream(
        "v1/inpaint",
        body,
        (line) => {
          if (line.done) return;
          energies[line.completion] = line.energy;
          tiles[line.completion]?.show(decode(line.image), line.energy);
          said.textContent = `Completing: ${energies.filter((u) => u !== undefined).length} of ${n} so far.`;
        },
        { query: { model: model.name }, signal: control.signal },
      );
      const least = Math.min(...energies);
      tiles.forEach((t, i) => t.best(n > 1 && energies[i] === least));
      said.textContent = n > 1 ? `${n} completions; the likeliest has ${nats(least)}.` : `One completion, of ${nats(least)}.`;
    } catch (error) {
      said.textContent = "";
      if (!givenUp(error)) trouble.say(error.message);
      for (const t of tiles) if (!t.shown) t.element.remove();
    } finally {
      control = null;
      stop.hidden = true;
      refresh();
    }
  }

  function tile(i) {
    const canvas = el("canvas", { class: "picture", "aria-hidden": "true", width: shape[2], height: shape[1] });
    const energy = el("span", { class: "figure soft", text: "…" });
    let held = null;
    const choose = button("", () => held && use(held, `Completion ${i + 1}, of ${energy.textContent} nats.`), { class: "tile waiting", "aria-label": `Completion ${i + 1}, still to come`, disabled: true });
    choose.append(canvas, energy);
    const found = {
      element: el("li", {}, choose),
      shown: false,
      show: (image, u) => {
        held = image.values;
        found.shown = true;
        paint(canvas, image);
        energy.textContent = number(u, { whole: true });
        choose.classList.remove("waiting");
        choose.disabled = false;
        choose.setAttribute("aria-label", `Completion ${i + 1}, ${nats(u)}: put it onto the drawing pad`);
      },
      best: (yes) => choose.classList.toggle("best", yes),
    };
    return found;
  }

  return section(
    "Completions",
    "Erase a part of the image. The model fills it in, each time anew.",
    el("div", { class: "row" }, field("How many", howMany, { class: "field inline" }), start, stop),
    said,
    trouble.element,
    list,
  );
}
