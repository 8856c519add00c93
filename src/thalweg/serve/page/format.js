// Numbers and verdicts as people read them.

const MINUS = "\u2212";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count: 12,345. */
export const count = (n) => plain.format(n);

/** A number with about three digits that matter; `whole` keeps the zeros at its end, so that figures line up. */
export function number(x, { whole = false } = {}) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size === 0) return "0";
  const small = size !== 0 && size < 0.001;
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  const text = small || size >= 1e9 ? x.toExponential(1) : new Intl.NumberFormat("en", { maximumFractionDigits: digits, minimumFractionDigits: whole ? digits : 0 }).format(x);
  return text.replaceAll("-", MINUS);
}

/** An energy with its unit. */
export const nats = (x) => `${number(x, { whole: true })} nats`;

/** A p-value with two digits that matter. */
export function pValue(p) {
  if (p === null || p === undefined) return "–";
  if (p < 0.0001) return p.toExponential(0).replace("-", MINUS);
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 2 }).format(p);
}

/** A share as a percentage. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "<\u00a00.1\u00a0%";
  const digits = share < 0.1 ? 1 : 0;
  return `${new Intl.NumberFormat("en", { maximumFractionDigits: digits }).format(100 * share)}\u00a0%`;
}

/** What a row of each kind of model is called: one, several. */
export const NOUNS = { image: ["image", "images"], table: ["row", "rows"], rows: ["row", "rows"], text: ["text", "texts"] };

/** How many normal rows a score is compared with; 0 where nobody knows. */
export const compared = (model) => (model.histogram ? model.histogram.counts.reduce((a, b) => a + b, 0) : 0);

/** Whether even the oddest row has a p-value above the one up to which rows are flagged, as too few are compared. */
export const flagsNothing = (model) => Boolean(model.flag_rate && compared(model)) && model.flag_rate * (compared(model) + 1) < 1 - 1e-9;

/** What a score means, in words: { text, flagged }.
 *
 * The p-value is the share of normal rows that are at least as odd; `known` says how many were compared.
 */
export function verdict({ p_value: p, flag }, model) {
  const many = NOUNS[model.content][1];
  if (p === undefined || p === null) return { text: "Scored. The model has no normal data to compare with.", flagged: false };
  const known = compared(model);
  const flagged = Boolean(flag);
  const tail = flagged ? ": flagged" : "";
  if (known && p <= 1.0001 / (known + 1)) return { text: `Odder than all ${count(known)} normal ${many}${tail}.`, flagged };
  if (p <= 0.2) {
    const of = p < 0.001 ? 10_000 : p < 0.01 ? 1000 : 100;
    return { text: `Odder than ${count(Math.min(of - 1, Math.round((1 - p) * of)))} of ${count(of)} normal ${many}${tail}.`, flagged };
  }
  const odder = Math.round(100 * p);
  const rest = odder >= 100 ? `nearly all normal ${many} are odder` : `${odder} of 100 normal ${many} are odder`;
  return { text: `Ordinary: ${rest}${flagged ? "; flagged all the same" : ""}.`, flagged };
}
