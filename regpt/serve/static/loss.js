// The plot of losses with its controls, for one run and for several.

import { h } from "./dom.js";
import { count, short } from "./format.js";
import { Plot, smoothed } from "./plot.js";

const kept = { axis: "tokens", logX: false, logY: false }; // while the page is open

export class LossPlot {
  constructor(redraw) {
    this.plot = new Plot({ title: "Loss (nats per token)", height: 340, format: (y) => y.toFixed(4), tick: (y) => String(Number(y.toPrecision(4))) });
    const axis = h("select", { "aria-label": "Horizontal axis" }, h("option", { value: "tokens" }, "over tokens"), h("option", { value: "step" }, "over steps"));
    axis.value = kept.axis;
    axis.addEventListener("change", () => { kept.axis = axis.value; redraw(); });
    this.controls = h("div", { class: "bar", role: "group", "aria-label": "Axes of the loss" }, axis,
      toggle("log x", "logX", redraw), toggle("log loss", "logY", redraw));
    this.element = h("div", { class: "large" }, this.controls, this.plot.figure);
  }

  get axis() {
    return kept.axis;
  }

  set(series) {
    Object.assign(this.plot, { logX: kept.logX, logY: kept.logY });
    this.plot.set({ series, xName: kept.axis === "tokens" ? "tokens" : "steps", xFormat: kept.axis === "tokens" ? short : count });
  }
}

function toggle(text, name, redraw) {
  const button = h("button", { type: "button", "aria-pressed": String(kept[name]) }, text);
  button.addEventListener("click", () => {
    kept[name] = !kept[name];
    button.setAttribute("aria-pressed", String(kept[name]));
    redraw();
  });
  return button;
}

// The losses of a run: each point faint, its least and largest as a band, a longer mean as a line, validation as points.
export function lossSeries(run, axis, color, validationColor, withBand) {
  const { curves, lists } = run;
  const validations = lists.validations ?? [];
  const many = (curves.loss ?? []).length > 20;
  const points = { x: validations.map((one) => one[axis]), y: validations.map((one) => one.loss), error: validations.map((one) => one.standard_error), color: validationColor, joined: true };
  return {
    name: "training",
    color,
    x: curves[axis] ?? [],
    y: many ? smoothed(curves.loss, curves.count) : curves.loss ?? [],
    raw: withBand && many ? curves.loss : undefined,
    low: withBand ? curves.loss_min : undefined,
    high: withBand ? curves.loss_max : undefined,
    points,
  };
}
