// CSV as texts of cells: quotes, line ends of both kinds, commas, semicolons or tabs (RFC 4180 and its relatives).

/** The text of a file; null where it is not UTF-8, which would lose its letters. */
export async function textOf(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    return null;
  }
}

/** { header, records, delimiter }: the first line and the others, each a list of texts. Empty lines are left out. */
export function parse(text) {
  const source = text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
  const delimiter = likelyDelimiter(source);
  const found = [];
  let cells = [];
  let at = 0;
  const end = () => {
    if (cells.length > 1 || cells[0] !== "") found.push(cells);
    cells = [];
  };
  while (at < source.length) {
    let cell;
    [cell, at] = source[at] === '"' ? quoted(source, at) : plain(source, at, delimiter);
    cells.push(cell);
    const sign = source[at];
    if (sign === delimiter) {
      at++;
      if (at === source.length) cells.push("");
    } else {
      if (sign === "\r" && source[at + 1] === "\n") at++;
      at++;
      end();
    }
  }
  if (cells.length) end();
  const [header = [], ...records] = found;
  return { header: header.map((name) => name.trim()), records, delimiter };
}

function plain(source, from, delimiter) {
  let at = from;
  while (at < source.length && source[at] !== delimiter && source[at] !== "\n" && source[at] !== "\r") at++;
  return [source.slice(from, at), at];
}

function quoted(source, from) {
  let cell = "";
  let at = from + 1;
  for (;;) {
    const close = source.indexOf('"', at);
    if (close < 0) return [cell + source.slice(at), source.length];
    cell += source.slice(at, close);
    at = close + 1;
    if (source[at] !== '"') return [cell, at];
    cell += '"';
    at++;
  }
}

/** Of comma, semicolon and tab the one that the first line has most of. */
function likelyDelimiter(source) {
  const line = source.slice(0, source.search(/[\r\n]|$/)).replace(/"[^"]*"/g, "");
  const counts = [",", ";", "\t"].map((sign) => [sign, line.split(sign).length]);
  return counts.reduce((best, next) => (next[1] > best[1] ? next : best))[0];
}

const write = (cell) => (/[",\r\n]/.test(cell) || cell !== cell.trim() ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Lines of CSV of lists of texts. */
export const toText = (lines) => lines.map((cells) => cells.map((cell) => write(String(cell ?? ""))).join(",") + "\n").join("");
