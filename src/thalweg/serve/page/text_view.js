// A model of texts: each letter coloured by its surprise, the letter that was expected below it, and the repair.

import { ask, givenUp, newest } from "./api.js";
import { button, el, field, section, troubleLine } from "./dom.js";
import { nats } from "./format.js";
import { promise, resultPanel } from "./result.js";
import { gallery } from "./samples.js";

const LETTERS = 1000; // as many reasons as the server gives

/** The view of a model whose rows are texts. */
export function textView(model) {
  const explains = model.can.includes("explain");
  const input = el("input", { type: "text", class: "large", autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: LETTERS });
  const panel = resultPanel(model, "Type a text.");
  const letters = el("p", { class: "letters", "aria-hidden": "true" });
  const words = el("p", { class: "soft", role: "status", "aria-live": "polite" });
  const repair = el("p", { class: "row" });
  const trouble = troubleLine();
  let control = null;

  const score = newest(async (text, signal) => {
    try {
      const body = { instances: [text] };
      const query = { model: model.name };
      const { predictions } = await ask("v1/score", body, { query, signal });
      if (!input.value) return;
      panel.show(predictions[0]);
      trouble.clear();
      if (explains && text === input.value) reasons(text);
    } catch (error) {
      if (!givenUp(error)) trouble.say(error.message);
    }
  });

  /** They take longer than a score, so no score waits for them. */
  async function reasons(text) {
    control = new AbortController();
    try {
      const how = { query: { model: model.name, top: LETTERS }, signal: control.signal };
      const { predictions } = await ask("v1/explain", { instances: [text] }, how);
      if (text === input.value) explain(predictions[0], text);
    } catch (error) {
      if (!givenUp(error)) trouble.say(error.message);
    }
  }

  function explain({ text: said, surprise, reasons: places, repair: meant, repair_energy: u }, given) {
    const expected = new Map(places.map((one) => [one.place - 1, one.expected]));
    const signs = [...(said ?? given)];
    const most = Math.max(...surprise);
    letters.replaceChildren(
      ...signs.map((sign, i) => {
        const strength = Math.min(1, Math.max(0, surprise[i] / 10));
        const other = expected.get(i) ?? sign;
        return el(
          "span",
          { class: i === surprise.indexOf(most) && most > 1 ? "letter worst" : "letter", css: { "--surprise": strength.toFixed(3) } },
          el("span", { class: "sign", text: sign === " " ? "␣" : sign }),
          el("span", { class: "below", text: other === sign ? "" : other || "end" }),
          el("span", { class: "nat", text: surprise[i].toFixed(1) }),
        );
      }),
    );
    const worst = surprise.indexOf(most);
    const better = expected.get(worst) ?? signs[worst];
    const instead = better === signs[worst] ? "" : `; ${better ? `“${better}”` : "the end"} was expected there`;
    words.textContent = `The most surprising letter is number ${worst + 1}, “${signs[worst]}”, with ${nats(most)}${instead}.`;
    repair.replaceChildren();
    if (meant && meant !== (said ?? given)) {
      repair.append(el("span", { class: "soft", text: "Within one edit the likeliest text is" }), button(meant, () => use(meant), { "aria-label": `Use the repair ${meant}` }), el("span", { class: "soft figure", text: nats(u) }));
    }
  }

  const forget = () => {
    control?.abort(); // it would be of an older text
    letters.replaceChildren();
    words.textContent = "";
    repair.replaceChildren();
  };
  const changed = () => {
    forget();
    if (input.value) score(input.value);
    else {
      score.stop();
      panel.clear();
      trouble.clear();
    }
  };
  input.addEventListener("input", changed);

  const use = (text) => {
    input.value = text;
    changed();
    input.focus();
  };

  const one = section(
    "One text",
    `${promise(model)}${explains ? " Below each letter stand the one that was expected and its surprise in nats." : ""}`.trim(),
    el("div", { class: "narrow" }, field("Text", input), trouble.element),
    letters,
    el("div", { class: "narrow" }, words, repair),
    el("div", { class: "narrow" }, panel.element),
  );
  const parts = [one];
  if (model.can.includes("sample")) parts.push(gallery(model, use));
  return { parts, paste: () => {} };
}
