// A model of tables: a CSV dropped, chosen or pasted; its rows by oddness, with p-values and reasons.

import { givenUp } from "./api.js";
import { explainAll, scoreAll } from "./batches.js";
import { histogram } from "./charts.js";
import { parse, textOf, toText } from "./csv.js";
import { button, download, dropTarget, el, field, fileChooser, section, troubleLine } from "./dom.js";
import { count, flagsNothing, percent } from "./format.js";
import { promise } from "./result.js";
import { gallery } from "./samples.js";
import { oddTable } from "./table_rows.js";

const MAX_BYTES = 200 * 2 ** 20;
const PREVIEW = 5;
const SHOWN = 20; // rows at first, and more with each "Show more"
const WARNINGS = 3; // lines at most, as each batch may have its own
const EXPLAINED = 100; // flagged rows whose reasons are asked for

/** The view of a model whose rows are those of a table, or lists of numbers. */
export function tableView(model) {
  const can = new Set(model.can);
  const names = model.content === "table" ? model.inputs.map(({ name }) => name) : null;
  const preview = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "First lines", hidden: true });
  const about = el("p", { class: "soft note" });
  const trouble = troubleLine();
  const remedy = el("div", { class: "row" });
  const summary = el("p", { class: "verdict empty", role: "status", "aria-live": "polite", text: "Choose a CSV file, drop one here, or paste its lines." });
  const warned = el("div", { class: "soft note", role: "status", "aria-live": "polite" });
  const bar = el("progress", { "aria-label": "Rows scored", hidden: true });
  const stop = button("Stop", () => control?.abort(), { hidden: true });
  const table = oddTable(model, SHOWN);
  const chart = histogram(model);
  const save = button("Download the result", () => download(`${model.name}-scores.csv`, asCsv()), { hidden: true });
  const area = el("textarea", { rows: 4, spellcheck: "false", placeholder: names ? `${names.slice(0, 6).join(",")}${names.length > 6 ? ",…" : ""}` : "0.5,1.25" });
  let control = null;
  let sheet = null; // { header, records, title }
  let result = null; // { predictions, order, reasons }

  async function take([file]) {
    if (file.size === 0) return trouble.say(`${file.name} is empty.`);
    if (file.size > MAX_BYTES) return trouble.say(`${file.name} has ${count(file.size / 2 ** 20)} MiB; at most ${MAX_BYTES / 2 ** 20} are read here. Use \`thalweg detect score\` for larger files.`);
    const text = await textOf(file);
    if (text === null) return trouble.say(`${file.name} is not UTF-8 text. Save it as UTF-8 (“CSV UTF-8” in a spreadsheet) and choose it again.`);
    if (text.includes("\0")) return trouble.say(`${file.name} is not a text of comma-separated values.`);
    open(text, file.name);
  }

  function open(text, title) {
    const { header, records, delimiter } = parse(text);
    const bare = !names && header.some((cell) => cell !== "" && !Number.isNaN(Number(cell))); // a number is no name
    const all = bare ? [header, ...records] : records;
    if (!all.length) return trouble.say(`${title} has no row below its first line, which names the columns.`);
    const odd = all.findIndex((record) => record.length !== header.length);
    if (odd >= 0) return trouble.say(`${title}: row ${count(odd + 1)} has ${all[odd].length} cells; the first line has ${header.length}.`);
    sheet = { title, header: bare ? header.map((_, i) => `x${i + 1}`) : header, records: all };
    const by = { ";": ", separated by semicolons", "\t": ", separated by tabs" }[delimiter] ?? "";
    about.textContent = `${title}: ${count(all.length)} ${all.length === 1 ? "row" : "rows"}, ${header.length} columns${by}.`;
    showPreview();
    score();
  }

  function showPreview() {
    const lines = sheet.records.slice(0, PREVIEW);
    preview.hidden = false;
    preview.replaceChildren(
      el(
        "table",
        {},
        el("caption", { class: "unseen", text: "First lines" }),
        el("thead", {}, el("tr", {}, sheet.header.map((name) => el("th", { scope: "col", text: name })))),
        el("tbody", {}, lines.map((record) => el("tr", {}, record.map((cell) => el("td", { text: cell }))))),
      ),
    );
  }

  async function score() {
    control?.abort();
    const own = (control = new AbortController());
    const { header, records } = sheet;
    trouble.clear();
    remedy.replaceChildren();
    warned.replaceChildren();
    save.hidden = true;
    table.clear();
    chart?.rug([]);
    stop.hidden = false;
    bar.hidden = false;
    Object.assign(bar, { max: records.length, value: 0 });
    let scored = false;
    say(`Scoring ${count(records.length)} ${records.length === 1 ? "row" : "rows"}.`, "empty");
    try {
      const { predictions, warnings } = await scoreAll(model, header, records, (done) => (bar.value = done), own.signal);
      const order = byOddness(predictions);
      result = { predictions, order, reasons: new Map() };
      scored = true;
      summarise();
      warned.replaceChildren(...warnings.slice(0, WARNINGS).map((text) => el("p", { text })));
      chart?.rug(order.map((row) => predictions[row]));
      table.show(sheet, result);
      save.hidden = false;
      bar.hidden = true;
      if (can.has("explain")) await explain(own.signal);
    } catch (error) {
      if (own !== control) return; // another table took its place
      if (!scored) say(givenUp(error) ? "Stopped." : "Not scored.", "empty");
      if (givenUp(error)) return;
      trouble.say(error.message);
      if (!scored) offer();
    } finally {
      if (own === control) {
        control = null;
        stop.hidden = true;
        bar.hidden = true;
      }
    }
  }

  /** Columns that the model does not know may be left out, where it has all that it asks for. */
  function offer() {
    const extra = names ? sheet.header.filter((name) => !names.includes(name)) : [];
    if (!extra.length || names.some((name) => !sheet.header.includes(name))) return;
    const keep = sheet.header.map((name, i) => (names.includes(name) ? i : -1)).filter((i) => i >= 0);
    const pick = (cells) => keep.map((i) => cells[i]);
    remedy.append(
      button(`Leave out ${extra.slice(0, 3).join(", ")}${extra.length > 3 ? ` and ${extra.length - 3} more` : ""}`, () => {
        sheet = { ...sheet, header: pick(sheet.header), records: sheet.records.map(pick) };
        about.textContent += ` Left out: ${extra.join(", ")}.`;
        showPreview();
        score();
      }),
    );
  }

  const say = (text, kind) => {
    summary.textContent = text;
    summary.className = `verdict ${kind}`.trim();
  };

  function summarise() {
    const { predictions } = result;
    const n = predictions.length;
    if (predictions[0].flag === undefined) return say(`${count(n)} ${n === 1 ? "row" : "rows"}, lowest energy first.`, "");
    const flagged = predictions.filter(({ flag }) => flag).length;
    const rate = flagsNothing(model) ? ` ${promise(model)}` : model.flag_rate ? ` Of normal rows ${percent(model.flag_rate)} would be.` : "";
    say(`${count(flagged)} of ${count(n)} ${n === 1 ? "row" : "rows"} flagged, ${percent(flagged / n)}.${rate}`, flagged / n > 3 * (model.flag_rate ?? 1) ? "flagged" : "");
  }

  async function explain(signal) {
    const { predictions, order, reasons } = result;
    const asked = order.filter((row) => predictions[row].flag !== false).slice(0, EXPLAINED);
    const take = (place, found) => {
      reasons.set(asked[place], found);
      table.reason(asked[place], found);
    };
    await explainAll(model, sheet.header, asked.map((row) => sheet.records[row]), take, signal);
  }

  function asCsv() {
    const { predictions, reasons } = result;
    const figures = ["energy", "log_prob", "p_value", "flag"].filter((name) => predictions[0][name] !== undefined);
    const lines = sheet.records.map((record, row) => {
      const why = (reasons.get(row) ?? []).map(({ feature, repair }) => `${feature} (normal: ${repair})`).join("; ");
      return [...record, ...figures.map((name) => predictions[row][name]), ...(reasons.size ? [why] : [])];
    });
    return toText([[...sheet.header, ...figures, ...(reasons.size ? ["reasons"] : [])], ...lines]);
  }

  area.addEventListener("paste", () => setTimeout(() => area.value.trim() && open(area.value, "The pasted text")));
  const paste = el(
    "details",
    {},
    el("summary", { text: "Paste or type lines" }),
    field(names ? "Lines of CSV, the names of the columns first" : "Lines of numbers", area),
    button("Score these lines", () => (area.value.trim() ? open(area.value, "The text") : trouble.say("There is no line yet."))),
  );
  const template = names && button("Download a template", () => download(`${model.name}-template.csv`, toText([names])), { class: "quiet" });

  const scores = section(
    "A table",
    `${names ? columnsLine(model) : `Rows of ${model.inputs[0].shape.at(-1)} numbers.`} ${promise(model)}`,
    el("div", { class: "row" }, fileChooser("Choose a CSV file", ".csv,.tsv,.txt,text/csv", take), template, el("span", { class: "soft", text: "or drop one" })),
    paste,
    about,
    preview,
    trouble.element,
    remedy,
    summary,
    warned,
    el("div", { class: "row" }, bar, stop, save),
    chart && el("div", { class: "reference" }, chart.element),
    table.element,
  );
  dropTarget(scores, take);

  const parts = [scores];
  if (can.has("sample")) parts.push(gallery(model, null));
  const pasted = (event) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (event.clipboardData?.files.length) take([...event.clipboardData.files]);
    else if (text.includes("\n")) open(text, "The pasted text");
  };
  return { parts, paste: pasted };
}

/** Rows by p-value, the oddest first; by energy where p-values are alike, and for a re-ranker the lowest energy first. */
function byOddness(predictions) {
  const order = predictions.map((_, row) => row);
  const flags = predictions[0].p_value !== undefined;
  const key = flags ? (a, b) => predictions[a].p_value - predictions[b].p_value || predictions[b].energy - predictions[a].energy : (a, b) => predictions[a].energy - predictions[b].energy;
  return order.sort((a, b) => key(a, b) || a - b);
}

function columnsLine({ inputs }) {
  const words = inputs.filter(({ datatype }) => datatype === "BYTES").length;
  const kinds = words ? `, ${words} of them of words` : "";
  return `${inputs.length} ${inputs.length === 1 ? "column" : "columns"}${kinds}: ${inputs.slice(0, 8).map(({ name }) => name).join(", ")}${inputs.length > 8 ? ", …" : ""}.`;
}
