// Requests to the server: they wait while it is away, honour Retry-After, and come back as one kind of error.

import { holdOff, lost } from "./connection.js";
import { askForToken, credentials } from "./token.js";

const TRIES = 8; // of a server that says it is busy

/** What the server refused: `message` is one line for people. */
export class Refused extends Error {
  constructor(status, { code, field, message }) {
    super(field && message ? `${field}: ${message}` : message || `The server answered with the code ${status}.`);
    Object.assign(this, { status, code, field });
  }
}

/** Whether a request was given up here, so that nothing is to be said. */
export const givenUp = (error) => error.name === "AbortError";

async function refusal(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // no JSON: the code alone speaks
  }
  if (answer.status === 413) said.message ||= "That is more than the server takes at once.";
  if (answer.status === 504) said.message ||= "The server did not get it done in time.";
  return new Refused(answer.status, said && typeof said === "object" ? said : {});
}

/** Seconds that the server asks for; doubled with each try where it does not say. */
function retryAfter(answer, attempt) {
  const said = answer.headers.get("Retry-After");
  const seconds = said === null || said.trim() === "" ? NaN : Number(said);
  const until = Number.isNaN(seconds) && said ? (Date.parse(said) - Date.now()) / 1000 : seconds;
  return Math.min(60, Math.max(0.2, Number.isNaN(until) ? 2 ** attempt : until));
}

async function answer(path, init, signal) {
  for (let attempt = 0; ; ) {
    signal?.throwIfAborted();
    let got;
    try {
      got = await fetch(path, { ...init, headers: { ...init.headers, ...credentials() }, cache: "no-store", signal });
    } catch (error) {
      if (givenUp(error)) throw error;
      await lost();
      continue;
    }
    if (got.ok) return got;
    if (got.status === 401) await askForToken();
    else if (got.status === 502) await lost();
    else if ((got.status === 429 || got.status === 503) && attempt < TRIES) {
      const busy = got.status === 429 ? "The server has much to do." : "The server is not ready yet.";
      await holdOff(retryAfter(got, attempt++), `${busy} The request is kept and sent again.`);
    } else throw await refusal(got);
  }
}

function address(path, query) {
  const said = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return said.length ? `${path}?${new URLSearchParams(said)}` : path;
}

const post = (body, type) => ({
  method: "POST",
  headers: { "Content-Type": type },
  body: type === "application/json" ? JSON.stringify(body) : body,
});

/** GET of a plain route. */
export const get = async (path, signal) => (await answer(path, {}, signal)).json();

/** POST to a plain route: the JSON of its answer. */
export async function ask(path, body, { query = {}, type = "application/json", signal } = {}) {
  for (;;) {
    const got = await answer(address(path, query), post(body, type), signal);
    try {
      return await got.json();
    } catch (error) {
      if (givenUp(error)) throw error;
      await lost(); // it went away while it answered
    }
  }
}

/** POST to a route that answers line by line; `take` gets each. What broke off begins anew once the server is back. */
export async function stream(path, body, take, { query = {}, signal } = {}) {
  for (;;) {
    const got = await answer(address(path, query), post(body, "application/json"), signal);
    try {
      await lines(got, take);
      return;
    } catch (error) {
      if (givenUp(error) || error instanceof Refused) throw error;
      signal?.throwIfAborted();
      await lost();
    }
  }
}

async function lines(got, take) {
  const reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const whole = rest.split("\n");
    rest = done ? "" : whole.pop();
    for (const line of whole) {
      if (!line.trim()) continue;
      const said = JSON.parse(line);
      if (said.error) throw new Refused(200, said.error);
      take(said);
    }
    if (done) return;
  }
}

/** Calls `work` with the newest of what it is given, one at a time: while one runs, only the last that came waits.
 *
 * `work(value, signal)`; `stop()` gives up what runs and what waits.
 */
export function newest(work, pause = 60) {
  let running = false;
  let waits = null;
  let control = null;
  async function run(value) {
    running = true;
    control = new AbortController();
    try {
      await work(value, control.signal);
    } finally {
      setTimeout(() => {
        running = false;
        const next = waits;
        waits = null;
        if (next) run(next.value);
      }, pause);
    }
  }
  const give = (value) => {
    if (running) waits = { value };
    else run(value);
  };
  give.stop = () => {
    waits = null;
    control?.abort();
  };
  return give;
}
