// What a score says: the verdict in words, the figures, and the place among normal data.

import { histogram } from "./charts.js";
import { el } from "./dom.js";
import { NOUNS, compared, count, flagsNothing, nats, number, pValue, percent, verdict } from "./format.js";

/** A panel for the score of one row. `invitation` stands there before there is one. */
export function resultPanel(model, invitation) {
  const words = el("p", { class: "verdict empty", role: "status", "aria-live": "polite", text: invitation });
  const facts = el("dl", { class: "facts" });
  const chart = histogram(model);
  const fact = (name, value) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }));
  const element = el("div", { class: "result" }, words, facts, chart?.element);
  return {
    element,
    show: (found) => {
      const { text, flagged } = verdict(found, model);
      if (words.textContent !== text) words.textContent = text;
      words.className = flagged ? "verdict flagged" : "verdict";
      const figures = [fact("Energy", nats(found.energy))];
      if (found.p_value !== undefined) figures.push(fact("p-value", pValue(found.p_value)));
      if (found.log_prob !== undefined) figures.push(fact("log p", nats(found.log_prob)));
      if (model.flag_rate) figures.push(fact("Flagged up to", `p = ${number(model.flag_rate)}`));
      facts.replaceChildren(...figures);
      chart?.mark(found.energy, flagged);
    },
    clear: () => {
      words.textContent = invitation;
      words.className = "verdict empty";
      facts.replaceChildren();
      chart?.mark(NaN);
    },
  };
}

/** One line on how often a calibrated model flags what is normal. */
export function promise(model) {
  if (!model.flag_rate) return "";
  if (!flagsNothing(model)) return `Of normal data ${percent(model.flag_rate)} is flagged.`;
  const known = compared(model);
  const [one, many] = NOUNS[model.content];
  return `Nothing is flagged at p = ${number(model.flag_rate)}: beside ${count(known)} normal ${known === 1 ? one : many} no p-value is below ${pValue(1 / (known + 1))}.`;
}
