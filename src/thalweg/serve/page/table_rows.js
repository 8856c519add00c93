// The scored rows of a table, the oddest first, with their reasons; more of them on demand.

import { button, el } from "./dom.js";
import { count, number, pValue, percent } from "./format.js";

/** The table, `step` rows at first and with each "Show more". */
export function oddTable(model, step) {
  const body = el("tbody", { role: "rowgroup" }); // roles are said, as a phone shows the rows as blocks
  const head = el("thead", { role: "rowgroup" });
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scored rows", hidden: true }, el("table", { class: "odd", role: "table" }, el("caption", { class: "unseen", text: "Scored rows, the oddest first" }), head, body));
  const more = button("Show more", () => grow());
  const element = el("div", {}, scroll, more);
  const explains = model.can.includes("explain");
  let cells = new Map(); // where the reasons of a row stand
  let sheet = null;
  let result = null;
  more.hidden = true;

  function grow() {
    const from = body.children.length;
    body.append(...result.order.slice(from, from + step).map(line));
    const left = result.order.length - body.children.length;
    more.hidden = left <= 0;
    more.textContent = `Show ${count(Math.min(step, left))} more of ${count(left)}`;
  }

  function line(row) {
    const found = result.predictions[row];
    const why = explains ? el("td", { class: "why", role: "cell" }) : null;
    if (why) {
      cells.set(row, why);
      if (result.reasons.has(row)) why.append(...told(result.reasons.get(row)));
      else if (found.flag === false) why.append(el("span", { class: "soft", text: "–" }));
      else why.append(el("span", { class: "soft", text: "…" }));
    }
    return el(
      "tr",
      { role: "row" },
      el("th", { scope: "row", role: "rowheader", text: count(row + 1) }),
      found.p_value === undefined ? null : el("td", { role: "cell", "data-name": "p", text: pValue(found.p_value) }),
      el("td", { role: "cell", "data-name": "energy", text: number(found.energy, { whole: true }) }),
      found.flag === undefined ? null : el("td", { role: "cell" }, found.flag ? el("span", { class: "badge", text: "flagged" }) : el("span", { class: "soft", text: "normal" })),
      why,
      explains ? null : el("td", { class: "why", role: "cell", text: sheet.records[row].slice(0, 6).join(", ") + (sheet.records[row].length > 6 ? ", …" : "") }),
    );
  }

  return {
    element,
    clear: () => {
      body.replaceChildren();
      cells = new Map();
      scroll.hidden = more.hidden = true;
    },
    show: (newSheet, newResult) => {
      [sheet, result] = [newSheet, newResult];
      const first = result.predictions[0];
      const names = ["Row", first.p_value === undefined ? null : "p-value", "Energy", first.flag === undefined ? null : "", explains ? "Reasons" : "Cells"];
      head.replaceChildren(el("tr", { role: "row" }, names.filter((name) => name !== null).map((name) => el("th", { scope: "col", role: "columnheader", text: name || "Verdict" }))));
      scroll.hidden = false;
      grow();
    },
    reason: (row, reasons) => cells.get(row)?.replaceChildren(...told(reasons)),
  };
}

/** A reason a line: the feature, its value, and what was normal. */
function told(reasons) {
  const main = reasons.filter(({ share }) => share >= 0.005);
  if (!main.length) return [el("span", { class: "soft", text: "–" })];
  return main.map(({ feature, share, value, repair }) =>
    el(
      "span",
      { class: "reason" },
      el("b", { text: feature }),
      ` ${value === null || value === undefined ? "missing" : cell(value)}`,
      el("span", { class: "soft", text: `, normal: ${cell(repair)} (${percent(share)})` }),
    ),
  );
}

const cell = (value) => (typeof value === "number" ? number(value) : String(value));
