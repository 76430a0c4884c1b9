// Several runs: losses over each other, results with errors, settings that differ.

import { RunCopy, get, repeat } from "./api.js";
import { badge, h } from "./dom.js";
import { NONE, count, short, withError } from "./format.js";
import { LossPlot, lossSeries } from "./loss.js";
import { tableOf } from "./run.js";

export async function showCompare(main, signal, names) {
  const runs = names.map((name) => new RunCopy(name));
  const redraw = () => loss.set(runs.filter((run) => run.status).map((run, n) => seriesOf(run, n, loss.axis)));
  const loss = new LossPlot(redraw);
  const results = h("div");
  const settings = h("div");
  const problem = h("p", { class: "alert", role: "status" });
  main.replaceChildren(h("div", { class: "bar" }, h("h1", { tabindex: "-1" }, `Compare ${names.length} runs`)), problem,
    h("section", { "aria-label": "Losses" }, h("div", { class: "plots" }, loss.element)),
    h("section", { "aria-label": "Results" }, h("h2", {}, "Results"), results),
    h("section", { "aria-label": "Settings that differ" }, h("h2", {}, "Settings that differ"), settings),
    h("p", { class: "soft" }, "Thick: validation. Thin: training, mean. Whether a difference is significant, and what makes the runs unequal: ", h("code", {}, `regpt compare ${names.join(" ")}`)));
  let last = "";
  await repeat(async () => {
    try {
      await Promise.all(runs.map((run) => run.update()));
      if (signal.aborted) return;
      redraw();
      const now = runs.map((run) => run.cursor + run.status.state).join();
      if (now === last) return;
      const found = await get(`/api/compare?${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`);
      drawResults(found, results);
      drawSettings(found, settings);
      problem.textContent = "";
      last = now;
    } catch (error) {
      problem.textContent = error.message;
      throw error;
    }
  }, () => Math.min(...runs.map((run) => run.pause)), signal);
}

function seriesOf(run, n, axis) {
  const series = lossSeries(run, axis, `c${n}`, `c${n}`, false);
  return { ...series, name: run.name, legend: [["", `c${n}`, run.name]] };
}

function named(run, n) {
  return h("span", { class: `swatch c${n}` }, h("a", { href: `#/run/${encodeURIComponent(run.name)}` }, run.name));
}

function drawResults({ runs }, element) {
  element.replaceChildren(tableOf(["Run", "State", "Steps", "Tokens", "Loss", "Validation loss", "at step", "HellaSwag", "Tokens/s"],
    runs.map((run, n) => [named(run, n), badge(run.state), count(run.step), short(run.tokens), run.loss === null ? NONE : run.loss.toFixed(4),
      withError(run.validation?.loss, run.validation?.standard_error), count(run.validation?.step),
      withError(run.hellaswag?.score, run.hellaswag?.error), count(run.tokens_per_second)])));
}

function drawSettings({ runs, settings }, element) {
  if (!settings.length) element.replaceChildren(h("p", { class: "soft" }, "None: the recipes are equal."));
  else element.replaceChildren(tableOf(["Setting", ...runs.map((run) => run.name)], settings.map(({ name, values }) => [h("code", {}, name), ...values])));
}
