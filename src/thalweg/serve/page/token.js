// The token of a server that wants one: asked for once, kept for this tab alone, and sent as a header only.

import { el, field } from "./dom.js";

const KEY = "thalweg-token";
let asking = null;

/** The headers that say who asks. */
export function credentials() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Asks for a token; all requests that were refused share one question. */
export function askForToken() {
  asking ??= question(sessionStorage.getItem(KEY) !== null).finally(() => (asking = null));
  return asking;
}

function question(refused) {
  return new Promise((resolve) => {
    const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
    const why = refused ? "The server does not know this token." : "This server answers those who have its token.";
    const form = el(
      "form",
      {},
      el("h2", { id: "token-heading", text: "Access token" }),
      el("p", { class: "soft", text: `${why} It stays in this tab and is forgotten when the tab is closed.` }),
      field("Token", input),
      el("button", { type: "submit", class: "primary", text: "Continue" }),
    );
    const dialog = el("dialog", { "aria-labelledby": "token-heading" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const token = input.value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) {
        input.setCustomValidity("A token is made of letters, digits and signs, without spaces.");
        input.reportValidity();
        return;
      }
      sessionStorage.setItem(KEY, token);
      dialog.close();
      dialog.remove();
      resolve();
    });
    input.addEventListener("input", () => input.setCustomValidity(""));
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
