// Many rows scored in batches that the server takes at once.

import { Refused, ask } from "./api.js";
import { toText } from "./csv.js";
import { count } from "./format.js";

const ROWS = 1024;
const LETTERS = 4 * 2 ** 20; // of a batch, below the server's limit of 8 MiB
const EXPLAINED = 64; // rows of one question for reasons

/** Lists of rows of at most so many rows and letters. */
export function batches(records, rows = ROWS) {
  const found = [];
  let batch = [];
  let letters = 0;
  for (const record of records) {
    const size = record.reduce((sum, cell) => sum + cell.length + 3, 0);
    if (batch.length && (batch.length === rows || letters + size > LETTERS)) {
      found.push(batch);
      [batch, letters] = [[], 0];
    }
    batch.push(record);
    letters += size;
  }
  if (batch.length) found.push(batch);
  return found;
}

/** A row as the server takes it in JSON, for models without names of columns. */
const numbers = (record) => record.map((cell) => (cell.trim() === "" ? null : Number.isNaN(Number(cell)) ? cell : Number(cell)));

function body(model, header, records) {
  if (model.content === "table") return [toText([header, ...records]), "text/csv"];
  return [{ instances: records.map(numbers) }, "application/json"];
}

/** The scores of all rows in order, and what the server warns of; `progress(done)` after each batch. */
export async function scoreAll(model, header, records, progress, signal) {
  const found = [];
  const warned = new Set();
  for (const batch of batches(records)) {
    const [sent, type] = body(model, header, batch);
    const from = found.length;
    try {
      const { predictions, warnings = [] } = await ask("v1/score", sent, { query: { model: model.name }, type, signal });
      for (const prediction of predictions) found.push(prediction);
      for (const warning of warnings) warned.add(warning);
    } catch (error) {
      // the server names lines of a batch, of which the names of the columns are the first, or its rows from 0
      const first = model.content === "table" ? "line 2" : "instances[0]";
      if (error instanceof Refused && (from || first !== "line 2")) error.message += ` (${first} is row ${count(from + 1)})`;
      throw error;
    }
    progress(found.length);
  }
  return { predictions: found, warnings: [...warned] };
}

/** The reasons of some rows; `take(place, reasons)` as they come, `place` being the row's in the list. */
export async function explainAll(model, header, records, take, signal) {
  let done = 0;
  for (const batch of batches(records, EXPLAINED)) {
    const [sent, type] = body(model, header, batch);
    const { predictions } = await ask("v1/explain", sent, { query: { model: model.name, top: 3 }, type, signal });
    predictions.forEach((found, i) => take(done + i, found.reasons ?? []));
    done += batch.length;
  }
}
