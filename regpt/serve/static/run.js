// One run: its state, curves, samples, evaluation, events, recipe and report.

import { RunCopy, Refused, get, repeat } from "./api.js";
import { badge, h, setText } from "./dom.js";
import { NONE, ago, clock, count, duration, scientific, short, withError } from "./format.js";
import { LossPlot, lossSeries } from "./loss.js";
import { Plot } from "./plot.js";

export async function showRun(main, signal, [name]) {
  const run = new RunCopy(name);
  const state = h("span", { role: "status" });
  const details = h("p", { class: "soft" });
  const playground = h("span");
  const bar = h("progress", { max: "1", value: "0", "aria-label": "Progress" });
  const figures = h("dl", { class: "figures" });
  const hellaswag = new Plot({ title: "HellaSwag ± standard error", height: 170, format: (y) => y.toFixed(4), tick: (y) => String(Number(y.toPrecision(4))) });
  const redraw = () => {
    drawCurves(run, loss, plots);
    drawHellaSwag(run, hellaswag, loss.axis);
  };
  const loss = new LossPlot(redraw);
  const plots = smallPlots();
  const parts = { samples: new Samples(), evaluation: h("div"), events: h("ol", { class: "events" }), files: h("div") };
  const section = (title, ...content) => h("section", { "aria-label": title }, h("h2", {}, title), ...content);
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", { tabindex: "-1" }, name), state, playground), details, bar, figures,
    h("section", { "aria-label": "Curves" }, h("div", { class: "plots" }, loss.element, ...plots.map(({ plot }) => plot.figure), hellaswag.figure)),
    section("Samples", parts.samples.element), section("Evaluation", parts.evaluation),
    section("Events", parts.events), section("Recipe and report", parts.files));
  linkModels(name, playground);
  const filled = { events: -1, counts: "" };
  await repeat(async () => {
    try {
      await run.update();
    } catch (error) {
      if (error instanceof Refused && error.status) setText(details, error.message);
      throw error;
    }
    if (signal.aborted) return;
    drawStatus(run.status, state, details, bar, figures);
    redraw();
    parts.samples.update(run.lists.samples);
    const counts = ["validations", "tasks", "events", "skipped"].map((kind) => run.lists[kind].length).join() + run.cursor.split(".")[0];
    if (counts !== filled.counts) {
      drawEvaluation(run, parts.evaluation);
      drawEvents(run, parts.events);
      filled.counts = counts;
    }
    if (filled.events !== run.lists.events.length) {
      filled.events = run.lists.events.length; // a resume may have changed the recipe
      drawFiles(name, parts.files, await get(`/api/runs/${encodeURIComponent(name)}/files`));
    }
  }, () => run.pause, signal);
}

// Link to the playground of each model of this run that the server has.
async function linkModels(name, place) {
  const { data: models } = await get("/v1/models").catch(() => ({ data: [] }));
  const links = models.filter(({ run }) => run === name).map(({ id }) => h("a", { href: `#/playground/${encodeURIComponent(id)}` }, `Try ${id}`));
  place.replaceChildren(...links.flatMap((link) => [link, " "]));
}

function drawStatus(status, state, details, bar, figures) {
  if (state.textContent !== status.state) state.replaceChildren(badge(status.state));
  setText(details, [status.recipe, status.device, ...status.details].filter(Boolean).join(" · "));
  bar.value = Math.min(1, status.step / status.max_steps);
  const { validation, hellaswag } = status;
  const rows = [
    ["Step", count(status.step), `of ${count(status.max_steps)}`],
    ["Tokens", short(status.tokens), `of ${short(status.total_tokens)}`],
    ["Loss", status.loss === null ? NONE : status.loss.toFixed(4), "of the last step"],
    ["Validation loss", withError(validation?.loss, validation?.standard_error), validation ? `at step ${count(validation.step)}` : "not measured yet"],
    hellaswag && ["HellaSwag", withError(hellaswag.score, hellaswag.error), `${count(hellaswag.count)} items, step ${count(hellaswag.step)}`],
    ["Tokens/s", count(status.tokens_per_second), status.share_of_peak ? `${(100 * status.share_of_peak).toPrecision(3)} % of peak` : ""],
    status.is_over ? ["Training time", duration(status.training_seconds), "in steps"] : ["Time left", duration(status.seconds_left), "estimated"],
    ["Last record", ago(status.written_at), clock(status.written_at)],
  ].filter(Boolean);
  if (figures.children.length !== rows.length) {
    figures.replaceChildren(...rows.map(() => h("div", {}, h("dt"), h("dd", {}, h("span"), h("small")))));
  }
  rows.forEach(([title, value, more], n) => {
    const [term, description] = figures.children[n].children;
    setText(term, title);
    setText(description.children[0], value);
    setText(description.children[1], more);
  });
}

function smallPlots() {
  return [
    { title: "Learning rate", column: "learning_rate", format: scientific, color: "c3", options: { zero: true, whole: true } },
    { title: "Gradient norm (before clipping)", column: "gradient_norm", format: scientific, color: "c4", band: true, options: {} },
    { title: "Tokens/s", column: "tokens_per_second", format: short, color: "c2", options: { zero: true } },
  ].map((one) => ({ ...one, plot: new Plot({ title: one.title, height: 170, format: one.format }) }));
}

function drawHellaSwag(run, plot, axis) {
  const scores = (run.lists.tasks ?? []).filter((task) => task.task === "hellaswag");
  const same = scores.filter((task) => task.digest === scores[scores.length - 1].digest); // a resume may change the items
  plot.figure.hidden = same.length < 2;
  const points = { x: same.map((one) => one[axis]), y: same.map((one) => one.score), error: same.map((one) => one.error), color: "c5", joined: true };
  plot.set({ series: [{ name: "HellaSwag", color: "c5", x: [], y: [], points }], ...axisOf(axis) });
}

function axisOf(axis) {
  return { xName: axis === "tokens" ? "tokens" : "steps", xFormat: axis === "tokens" ? short : count };
}

function drawCurves(run, loss, plots) {
  const { axis } = loss;
  const series = lossSeries(run, axis, "c1", "c0", true);
  const legend = [["", "c1", "training, mean"]];
  if (run.curves.largest || Math.max(0, ...(run.curves.count ?? [])) > 1 || series.x.length > 20) legend.push(["area", "c1", "training, each step"]);
  if (series.points.x.length) legend.push(["points", "c0", "validation ± standard error"]);
  loss.set([{ ...series, legend }]);
  for (const { plot, column, color, band, options } of plots) {
    const one = { name: plot.title, color, x: run.curves[axis] ?? [], y: run.curves[column] ?? [] };
    if (band) Object.assign(one, { low: run.curves[`${column}_min`], high: run.curves[`${column}_max`] });
    plot.set({ series: [one], ...axisOf(axis), ...options });
  }
}

// The samples of one step; a slider moves through the training.
class Samples {
  constructor() {
    this.slider = h("input", { type: "range", min: "0", "aria-label": "Step of the samples" });
    this.step = h("output", {});
    this.texts = h("div");
    this.none = h("p", { class: "soft" }, "No samples yet.");
    this.bar = h("div", { class: "bar" }, this.step, this.slider);
    this.element = h("div", {}, this.none, this.bar, this.texts);
    this.records = [];
    this.follows = true; // the newest, until the reader moves the slider
    this.slider.addEventListener("input", () => {
      this.follows = Number(this.slider.value) === this.records.length - 1;
      this.draw();
    });
  }

  update(records) {
    this.records = records;
    this.none.hidden = records.length > 0;
    this.bar.hidden = records.length === 0;
    this.slider.max = String(Math.max(0, records.length - 1));
    this.slider.hidden = records.length < 2;
    if (this.follows) this.slider.value = this.slider.max;
    this.draw();
  }

  draw() {
    const record = this.records[Number(this.slider.value)];
    if (record === this.drawn) return;
    this.drawn = record;
    this.texts.replaceChildren();
    if (!record) return;
    setText(this.step, `After step ${count(record.step)}`);
    this.slider.setAttribute("aria-valuetext", `step ${record.step}`);
    for (const text of record.texts) {
      const begins = record.prompt && text.startsWith(record.prompt);
      this.texts.append(h("p", { class: "text" }, h("span", { class: "prompt" }, begins ? record.prompt : ""), begins ? text.slice(record.prompt.length) : text));
    }
  }
}

export function tableOf(heads, rows) {
  const cell = (tag, value, place) => h(tag, { class: place ? "number" : null, scope: tag === "th" ? (place ? "col" : "row") : null }, value);
  return h("div", { class: "table", tabindex: "0" }, h("table", {},
    h("thead", {}, h("tr", {}, ...heads.map((text, place) => h("th", { scope: "col", class: place ? "number" : null }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((value, place) => cell(place ? "td" : "th", value, place)))))));
}

function drawEvaluation(run, element) {
  const { validations, tasks } = run.lists;
  element.replaceChildren();
  if (!validations.length && !tasks.length) element.append(h("p", { class: "soft" }, "Nothing is evaluated yet."));
  if (tasks.length) {
    const newest = new Map(tasks.map((task) => [`${task.task}/${task.count}`, task]));
    element.append(tableOf(["Task", "Step", "Accuracy", "Items"], [...newest.values()].map((task) => [
      task.task, count(task.step), withError(task.score, task.error), count(task.count) + (task.is_subset ? ` of ${count(task.dataset_size)}` : "")])));
  }
  if (!validations.length) return;
  const averaged = validations.some((one) => one.averaged_loss !== null && one.averaged_loss !== undefined);
  const rows = validations.slice().reverse().map((one) => [
    count(one.step), short(one.tokens), withError(one.loss, one.standard_error),
    ...(averaged ? [withError(one.averaged_loss)] : []), one.bits_per_byte ? one.bits_per_byte.toFixed(4) : NONE]);
  const heads = ["Step", "Tokens", "Validation loss", ...(averaged ? ["Averaged weights"] : []), "Bits per byte"];
  element.append(tableOf(heads, rows.slice(0, 8)));
  if (rows.length > 8) element.append(h("details", {}, h("summary", {}, `${count(rows.length - 8)} earlier validations`), tableOf(heads, rows.slice(8))));
}

function drawEvents(run, element) {
  const worries = ["rollback", "out_of_memory", "checkpoint_failed", "failed"];
  const events = run.lists.events.map((one) => h("li", {}, h("time", { datetime: new Date(one.at * 1000).toISOString?.() }, clock(one.at)),
    h("span", { class: worries.includes(one.event) ? "alert" : null }, one.text)));
  const skipped = run.lists.skipped.slice(-50).map((one) => h("li", {}, h("time", {}, `step ${count(one.step)}`), h("span", { class: "alert" }, `skipped: ${one.reason}`)));
  element.replaceChildren(...events.reverse(), ...skipped.reverse());
  if (!element.children.length) element.append(h("li", { class: "soft" }, "No events yet."));
}

function drawFiles(name, element, { recipe, environment, has_report }) {
  const path = `/runs/${encodeURIComponent(name)}/report.html`;
  element.replaceChildren(
    has_report
      ? h("p", {}, h("a", { href: path, target: "_blank", rel: "noopener" }, "Report of this run"), " (as it was written last)")
      : h("p", { class: "soft" }, "No report yet: ", h("code", {}, `regpt report ${name} --html`), " writes it."),
    h("details", {}, h("summary", {}, "Recipe"), h("pre", { tabindex: "0" }, recipe ?? NONE)),
    h("details", {}, h("summary", {}, "Environment"), h("pre", { tabindex: "0" }, environment ?? NONE)));
}
