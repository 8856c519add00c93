// Whether the server answers. While it does not, a banner says so, and requests wait here with all work kept.

import { button, el } from "./dom.js";

const WAITS = [1, 2, 4, 8, 15, 30]; // seconds between two tries

const said = el("span");
const countdown = el("span", { class: "soft", "aria-hidden": "true" });
const again = button("Try now", () => tryNow?.());
export const banner = el("div", { class: "banner", role: "status", "aria-live": "polite", hidden: true }, said, countdown, again);

let tryNow = null;
let waiting = null; // the promise of the server's return

function show(text, retry) {
  said.textContent = text;
  countdown.textContent = "";
  again.hidden = !retry;
  banner.hidden = false;
}

/** Resolves after so many seconds, or when the person or the network says that it is time. */
function pause(seconds) {
  return new Promise((resolve) => {
    const end = performance.now() + 1000 * seconds;
    const tell = () => (countdown.textContent = `Next try in ${Math.max(1, Math.ceil((end - performance.now()) / 1000))} s.`);
    const done = () => {
      clearTimeout(timer);
      clearInterval(ticker);
      removeEventListener("online", done);
      tryNow = null;
      countdown.textContent = "";
      resolve();
    };
    const timer = setTimeout(done, 1000 * seconds);
    const ticker = setInterval(tell, 1000);
    addEventListener("online", done);
    tryNow = done;
    tell();
  });
}

async function answers() {
  try {
    const answer = await fetch("livez", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    return answer.status !== 502 && answer.status !== 504; // those are of a proxy with nobody behind it
  } catch {
    return false;
  }
}

async function waitForReturn() {
  show("The server does not answer. Your work is kept.", true);
  for (let i = 0; ; i++) {
    await pause(WAITS[Math.min(i, WAITS.length - 1)]);
    if (await answers()) break;
  }
  show("The server is back.", false);
  setTimeout(() => waiting === null && !busy && (banner.hidden = true), 2500);
}

/** The server did not answer: resolves when it is back. All who wait share one series of tries. */
export function lost() {
  waiting ??= waitForReturn().finally(() => (waiting = null));
  return waiting;
}

let busy = 0;

/** The server asked to be left alone for a while: resolves after it. */
export async function holdOff(seconds, reason) {
  busy++;
  if (waiting === null) show(reason, false);
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  busy--;
  if (!busy && waiting === null) banner.hidden = true;
}
