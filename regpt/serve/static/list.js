// The list of runs.

import { get, repeat } from "./api.js";
import { badge, h, setText } from "./dom.js";
import { NONE, ago, count, short, withError } from "./format.js";

const ACTIVE = ["starting", "running", "idle"];
const MOST_COMPARED = 8;
const picked = new Set(); // names, kept while the page is open

export async function showList(main, signal) {
  const filter = h("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter by name" });
  const compare = h("button", { type: "button", disabled: true }, "Compare");
  const summary = h("p", { class: "soft", role: "status" });
  const body = h("tbody");
  const heads = ["", "Run", "State", "Steps", "Tokens", "Loss", "Validation loss", "HellaSwag", "Tokens/s", "Last record"];
  const numeric = (place) => (place >= 4 ? "number" : null);
  const table = h("table", { class: "runs" },
    h("caption", { class: "hidden" }, "Runs, active ones first"),
    h("thead", {}, h("tr", {}, ...heads.map((text, place) => h("th", { scope: "col", class: numeric(place) },
      text || h("span", { class: "hidden" }, "Compare"))))), body);
  main.replaceChildren(h("div", { class: "bar" }, h("h1", { tabindex: "-1" }, "Runs"), filter, compare), summary,
    h("div", { class: "table" }, table));
  const rows = new Map();
  let runs = [];
  let folder = "";

  const refresh = () => {
    const wanted = filter.value.trim().toLowerCase();
    const shown = runs.filter((run) => run.name.toLowerCase().includes(wanted));
    const ordered = shown.map((run) => rowOf(rows, run, note));
    if (ordered.length !== body.children.length || ordered.some((row, n) => row !== body.children[n])) body.replaceChildren(...ordered);
    const active = runs.filter((run) => ACTIVE.includes(run.state)).length;
    setText(summary, runs.length
      ? `${count(runs.length)} in ${folder}/, ${count(active)} active` + (shown.length < runs.length ? `, ${count(shown.length)} shown` : "")
      : `No runs in ${folder}/ yet; “regpt demo” makes three.`);
    table.hidden = !runs.length;
    note();
  };
  const note = () => {
    for (const name of picked) if (!runs.some((run) => run.name === name)) picked.delete(name);
    compare.disabled = picked.size < 2 || picked.size > MOST_COMPARED;
    setText(compare, picked.size > MOST_COMPARED ? `Compare: at most ${MOST_COMPARED}` : picked.size ? `Compare ${picked.size}` : "Compare");
  };
  filter.addEventListener("input", refresh);
  compare.addEventListener("click", () => { location.hash = `#/compare/${[...picked].map(encodeURIComponent).join("/")}`; });
  await repeat(async () => {
    const found = await get("/api/runs");
    if (signal.aborted) return;
    folder = found.folder;
    runs = found.runs.sort((a, b) => ACTIVE.includes(b.state) - ACTIVE.includes(a.state) || (b.written_at ?? 0) - (a.written_at ?? 0) || (a.name < b.name ? -1 : 1));
    refresh();
  }, () => 2, signal);
}

function rowOf(rows, run, note) {
  if (!rows.has(run.name)) rows.set(run.name, newRow(run.name, note));
  const { row, cells, state, bar, steps, link } = rows.get(run.name);
  if (state.textContent !== (run.state ?? "cannot be read")) state.replaceChildren(badge(run.state));
  if (run.state === null) {
    setText(steps, run.problem);
    bar.hidden = true;
    link.removeAttribute("href");
    return row;
  }
  link.setAttribute("href", `#/run/${encodeURIComponent(run.name)}`);
  const share = run.max_steps ? Math.min(1, run.step / run.max_steps) : 0;
  if (bar.value !== share) bar.value = share;
  bar.hidden = !run.max_steps;
  setText(steps, count(run.step) + (run.max_steps ? ` of ${count(run.max_steps)}` : ""));
  const texts = [short(run.tokens), run.loss === null ? NONE : run.loss.toFixed(4),
    withError(run.validation?.loss, run.validation?.standard_error), withError(run.hellaswag?.score, run.hellaswag?.error),
    run.tokens_per_second ? count(run.tokens_per_second) : NONE, ago(run.written_at)];
  texts.forEach((text, n) => {
    setText(cells[n], text);
    cells[n].classList.toggle("none", text === NONE);
  });
  return row;
}

function newRow(name, note) {
  const pick = h("input", { type: "checkbox", "aria-label": `Compare ${name}` });
  pick.checked = picked.has(name);
  pick.addEventListener("change", () => { picked[pick.checked ? "add" : "delete"](name); note(); });
  const state = h("td");
  const bar = h("progress", { max: "1", "aria-label": `Progress of ${name}` });
  const steps = h("span");
  const link = h("a", { href: `#/run/${encodeURIComponent(name)}` }, name);
  const labels = ["Tokens", "Loss", "Validation loss", "HellaSwag", "Tokens/s", "Last record"];
  const cells = labels.map((label) => h("td", { class: "number", "data-label": label }));
  const row = h("tr", {}, h("td", {}, pick), h("th", { scope: "row" }, link), state, h("td", {}, bar, steps), ...cells);
  return { row, cells, state, bar, steps, link };
}
