// The scored rows of a table, the oddest first, with their reasons; more of them on demand.

import { button, el } from "./dom.js";
import { count, number, pValue, percent } from "./format.js";

/** The table; `onPick(work)` calls work(row) for the row that is looked at. */
export function oddTable(model, step) {
  const body = el("tbody");
  const head = el("thead");
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scored rows", hidden: true }, el("table", { class: "odd" }, el("caption", { class: "unseen", text: "Scored rows, the oddest first" }), head, body));
  const more = button("Show more", () => grow());
  const element = el("div", {}, scroll, more);
  const explains = model.can.includes("explain");
  let cells = new Map(); // where the reasons of a row stand
  let sheet = null;
  let result = null;
  let pick = () => {};
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
    const why = explains ? el("td", { class: "why" }) : null;
    if (why) {
      cells.set(row, why);
      if (result.reasons.has(row)) why.append(...told(result.reasons.get(row)));
      else if (found.flag === false) why.append(el("span", { class: "soft", text: "–" }));
      else why.append(el("span", { class: "soft", text: "…" }));
    }
    const open = button(count(row + 1), () => pick(row), { class: "quiet", "aria-label": `Row ${row + 1}: show it in the histogram` });
    return el(
      "tr",
      { class: found.flag ? "flagged" : null },
      el("th", { scope: "row" }, model.histogram ? open : count(row + 1)),
      found.p_value === undefined ? null : el("td", { class: "figure", text: pValue(found.p_value) }),
      el("td", { class: "figure", text: number(found.energy) }),
      found.flag === undefined ? null : el("td", {}, found.flag ? el("span", { class: "badge", text: "flagged" }) : el("span", { class: "soft", text: "normal" })),
      why,
      explains ? null : el("td", { class: "cells", text: sheet.records[row].slice(0, 6).join(", ") + (sheet.records[row].length > 6 ? ", …" : "") }),
    );
  }

  return {
    element,
    onPick: (work) => (pick = work),
    clear: () => {
      body.replaceChildren();
      cells = new Map();
      scroll.hidden = more.hidden = true;
    },
    show: (newSheet, newResult) => {
      [sheet, result] = [newSheet, newResult];
      const first = result.predictions[0];
      const names = ["Row", first.p_value === undefined ? null : "p-value", "Energy", first.flag === undefined ? null : "", explains ? "Reasons" : "Cells"];
      head.replaceChildren(el("tr", {}, names.filter((name) => name !== null).map((name) => el("th", { scope: "col", text: name || "Verdict" }))));
      scroll.hidden = false;
      grow();
    },
    reason: (row, reasons) => cells.get(row)?.replaceChildren(...told(reasons)),
  };
}

/** A reason a line: the feature, its value, and what was normal. */
function told(reasons) {
  if (!reasons.length) return [el("span", { class: "soft", text: "–" })];
  return reasons.map(({ feature, share, value, repair }) =>
    el(
      "span",
      { class: "reason" },
      el("b", { text: feature }),
      ` ${value === null || value === undefined ? "missing" : cell(value)}`,
      el("span", { class: "soft", text: ` normal: ${cell(repair)} · ${percent(share)}` }),
    ),
  );
}

const cell = (value) => (typeof value === "number" ? number(value) : String(value));
