// The page: which view is shown, and the token where the server asks for one.

import { Refused } from "./api.js";
import { showCompare } from "./compare.js";
import { h } from "./dom.js";
import { showList } from "./list.js";
import { showPlayground } from "./playground.js";
import { showRun } from "./run.js";

const main = document.getElementById("main");
const VIEWS = [
  [/^#\/run\/([^/]+)$/, showRun, 1, 1],
  [/^#\/compare\/(.+)$/, showCompare, 2, 8],
  [/^#\/(playground(?:\/[^/]+)?)$/, showPlayground, 1, 2], // of one model, if named
];
const VIEW_OF = { "#/": showList, "#/playground": showPlayground }; // of the links at the top
let current = new AbortController();

async function show() {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const [view, names] = chosen();
  for (const link of document.querySelectorAll("nav a")) {
    if (view === VIEW_OF[link.hash]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = names.length ? `${names.join(", ")} – regpt` : "Runs – regpt";
  main.replaceChildren(h("p", { class: "soft" }, "Loading …"));
  try {
    const shown = view(main, signal, names);
    main.querySelector("h1")?.focus({ preventScroll: true });
    window.scrollTo(0, 0);
    await shown;
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Refused && error.status === 401) askForToken();
    else throw error;
  }
}

function chosen() {
  for (const [pattern, view, least, most] of VIEWS) {
    const found = pattern.exec(location.hash);
    const names = found ? found[1].split("/").map(decoded).filter((name) => name !== null) : [];
    if (found && names.length >= least && names.length <= most) return [view, names];
  }
  return [showList, []];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function askForToken() {
  const field = h("input", { type: "password", autocomplete: "current-password", id: "token" });
  const answer = h("p", { class: "alert", role: "alert" });
  const submit = async () => {
    const response = await fetch("/api/session", { method: "POST", body: field.value.trim() });
    if (response.ok) show();
    else answer.textContent = "This is not the server's token.";
  };
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") submit(); });
  main.replaceChildren(h("h1", { tabindex: "-1" }, "Token"), h("p", {}, "This server asks for the token that it was started with."),
    h("p", { class: "bar" }, h("label", { for: "token" }, "Token"), field, h("button", { type: "button", onclick: submit }, "Continue")), answer);
  field.focus();
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", show);
show();
