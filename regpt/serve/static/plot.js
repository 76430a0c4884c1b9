// A small plot: lines, bands, points with errors, linear or logarithmic axes, and a readout for pointer and keyboard.

import { h, setText, svg } from "./dom.js";

const MARGIN = { left: 52, right: 12, top: 8, bottom: 24 };
const ENTRY = 0.05; // of the x axis, where a curve may lie above a linear plot, so that the start does not flatten it
let serial = 0;

export class Plot {
  // `format` writes a value of y for the readout, `tick` for the axis.
  constructor({ title, height, format, tick = format }) {
    Object.assign(this, { height, format, tick, title });
    this.data = { series: [], xName: "", xFormat: String };
    this.logX = this.logY = false;
    this.at = null;
    this.clip = `clip-${(serial += 1)}`;
    this.readout = h("output", { class: "readout" });
    this.svg = svg("svg", { class: "plot", role: "img", tabindex: "0", height: String(height) });
    this.legend = h("ul", { class: "legend" });
    this.figure = h("figure", {}, h("figcaption", {}, h("strong", {}, title), this.readout), this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerdown", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    this.svg.addEventListener("blur", () => this.show(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  set(data) {
    this.data = data;
    this.draw();
  }

  // A point is usable if it is finite, and positive on a logarithmic axis. x = 0 is drawn at the left edge there.
  usableY(y) {
    return y !== null && y !== undefined && (!this.logY || y > 0);
  }

  limits() {
    const xs = this.data.series.flatMap((one) => [one.x, one.points?.x ?? []]);
    const ends = xs.filter((x) => x.length).map((x) => x[x.length - 1]);
    const end = ends.length ? Math.max(...ends) : 1;
    const positive = xs.flatMap((x) => x.find((value) => value > 0) ?? []);
    const start = this.logX && positive.length ? Math.min(...positive) : 0;
    let low = Infinity;
    let high = -Infinity;
    let all = -Infinity;
    const few = Math.max(0, ...this.data.series.map((one) => one.x.length)) < 20;
    const take = (x, y) => {
      if (!this.usableY(y)) return;
      low = Math.min(low, y);
      all = Math.max(all, y);
      if (few || this.logX || this.logY || this.data.whole || x >= ENTRY * end) high = Math.max(high, y);
    };
    for (const one of this.data.series) {
      one.x.forEach((x, i) => take(x, one.y[i]));
      if (one.low) this.bandEnds(one, end).forEach((y) => take(end, y));
      one.points?.x.forEach((x, i) => {
        const error = one.points.error?.[i] ?? 0;
        for (const y of [one.points.y[i] - error, one.points.y[i] + error]) take(x, y);
      });
    }
    if (low > all) return null;
    if (high < low) high = all;
    const room = this.logY ? 0 : 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    if (this.logY && high === low) return { start, end, low: low / 1.1, high: high * 1.1 };
    return { start, end: end > start ? end : start + 1, low: this.data.zero ? Math.min(0, low) : low - room, high: high + room };
  }

  // The range of a band in the plot, without its rare spikes, which are cut at the top.
  bandEnds(one, end) {
    const from = this.logX || this.logY || this.data.whole ? 0 : ENTRY * end;
    const highs = one.high.filter((y, i) => y !== null && one.x[i] >= from).sort((a, b) => a - b);
    const lows = one.low.filter((y, i) => y !== null && one.x[i] >= from).sort((a, b) => a - b);
    return [lows[Math.floor(0.002 * lows.length)], highs[Math.ceil(0.98 * highs.length) - 1]];
  }

  draw() {
    const width = Math.max(200, this.figure.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.replaceChildren();
    const limits = this.limits();
    this.drawLegend();
    if (!limits) {
      this.svg.append(svg("text", { x: width / 2, y: this.height / 2, "text-anchor": "middle" }, "no data yet"));
      this.svg.setAttribute("aria-label", `${this.title}: no data yet`);
      this.scale = null;
      return;
    }
    const { left, right, top, bottom } = MARGIN;
    const along = (value, from, to, log) => {
      if (!log) return (value - from) / (to - from);
      return Math.max(0, Math.log(Math.max(value, from) / from) / Math.log(to / from));
    };
    const X = (x) => left + (width - left - right) * along(x, limits.start, limits.end, this.logX && limits.start > 0);
    const Y = (y) => this.height - bottom - (this.height - top - bottom) * along(y, limits.low, limits.high, this.logY);
    this.scale = { X, Y, width, limits };
    this.drawAxes(X, Y, width, limits);
    const box = { x: left, y: top, width: width - left, height: this.height - top - bottom };
    const inside = svg("g", { "clip-path": `url(#${this.clip})` });
    this.svg.append(svg("clipPath", { id: this.clip }, svg("rect", box)), inside);
    for (const one of this.data.series) this.drawSeries(inside, one, X, Y);
    this.cross = svg("g");
    this.svg.append(this.cross);
    this.svg.setAttribute("aria-label", this.describe());
    this.show(this.at);
  }

  drawAxes(X, Y, width, limits) {
    const floor = this.height - MARGIN.bottom;
    for (const y of ticks(limits.low, limits.high, Math.max(2, Math.floor(this.height / 55)), this.logY)) {
      this.svg.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: Y(y), y2: Y(y) }));
      this.svg.append(svg("text", { x: MARGIN.left - 7, y: Y(y) + 4, "text-anchor": "end" }, this.tick(y)));
    }
    this.svg.append(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor }));
    const log = this.logX && limits.start > 0;
    let free = -Infinity;
    for (const x of ticks(limits.start, limits.end, Math.max(2, Math.floor(width / 75)), log)) {
      const text = this.data.xFormat(x);
      const half = 3.4 * text.length;
      const at = Math.min(Math.max(X(x), half), width - half);
      if (at - half < free) continue;
      free = at + half + 10;
      this.svg.append(svg("text", { x: at, y: floor + 17, "text-anchor": "middle" }, text));
    }
  }

  drawSeries(group, one, X, Y) {
    if (one.raw) group.append(svg("path", { class: `line faint ${one.color}`, d: this.path(one.x, one.raw, X, Y) }));
    if (one.low) group.append(svg("path", { class: `band ${one.color}`, d: this.band(one, X, Y) }));
    if (one.y.length) group.append(svg("path", { class: `line ${one.color} ${one.thick ? "thick" : ""}`, d: this.path(one.x, one.y, X, Y) }));
    const points = one.points;
    if (!points) return;
    if (points.joined) group.append(svg("path", { class: `line ${points.color} thick`, d: this.path(points.x, points.y, X, Y) }));
    const marked = points.x.length <= 60;
    points.x.forEach((x, i) => {
      const y = points.y[i];
      const error = points.error?.[i];
      if (!this.usableY(y)) return;
      if (error && this.usableY(y - error)) {
        group.append(svg("line", { class: `error ${points.color}`, x1: X(x), x2: X(x), y1: Y(y - error), y2: Y(y + error) }));
      }
      if (marked) group.append(svg("circle", { class: `mark ${points.color}`, cx: X(x), cy: Y(y), r: 3.6 }));
    });
  }

  path(xs, ys, X, Y) {
    let text = "";
    let pen = "M";
    for (let i = 0; i < xs.length; i += 1) {
      if (!this.usableY(ys[i])) { pen = "M"; continue; }
      text += `${pen}${X(xs[i]).toFixed(1)} ${Y(ys[i]).toFixed(1)}`;
      pen = "L";
    }
    return text;
  }

  band(one, X, Y) {
    const kept = one.x.map((_, i) => i).filter((i) => this.usableY(one.low[i]) && this.usableY(one.high[i]));
    const above = kept.map((i) => `${X(one.x[i]).toFixed(1)} ${Y(one.high[i]).toFixed(1)}`);
    const below = kept.map((i) => `${X(one.x[i]).toFixed(1)} ${Y(one.low[i]).toFixed(1)}`).reverse();
    return kept.length ? `M${above.join("L")}L${below.join("L")}Z` : "";
  }

  drawLegend() {
    const named = this.data.series.flatMap((one) => one.legend ?? []);
    const key = JSON.stringify(named);
    if (this.shownLegend === key) return;
    this.shownLegend = key;
    this.legend.replaceChildren(...named.map(([kind, color, text]) => h("li", { class: `${kind} ${color}` }, h("span", {}, text))));
  }

  describe() {
    const parts = this.data.series.filter((one) => one.x.length || one.points?.x.length).map((one) => {
      const [x, y] = one.x.length ? [one.x, one.y] : [one.points.x, one.points.y];
      return `${one.name}, from ${this.format(y[0])} to ${this.format(y[y.length - 1])} at ${this.data.xFormat(x[x.length - 1])} ${this.data.xName}`;
    });
    return `${this.title}: ${parts.join("; ")}. Arrow keys read values.`;
  }

  // The readout

  positions() {
    const longest = this.data.series.map((one) => (one.x.length ? one.x : one.points?.x ?? [])).reduce((a, b) => (b.length > a.length ? b : a), []);
    return longest;
  }

  point(clientX) {
    if (!this.scale) return;
    const at = clientX - this.svg.getBoundingClientRect().left;
    const xs = this.positions();
    let best = 0;
    xs.forEach((x, i) => { if (Math.abs(this.scale.X(x) - at) < Math.abs(this.scale.X(xs[best]) - at)) best = i; });
    this.readout.removeAttribute("aria-live");
    this.show(xs[best]);
  }

  key(event) {
    const xs = this.positions();
    if (!xs.length || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const stride = event.shiftKey ? Math.max(1, Math.round(xs.length / 20)) : 1;
    const now = this.at === null ? xs.length - 1 : nearest(xs, this.at);
    const next = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: 0, End: xs.length - 1 }[event.key];
    this.readout.setAttribute("aria-live", "polite");
    this.show(xs[Math.min(xs.length - 1, Math.max(0, next))]);
  }

  show(x) {
    this.at = x ?? null;
    this.cross?.replaceChildren();
    if (this.at === null || !this.scale) return setText(this.readout, "");
    const at = this.scale.X(this.at);
    this.cross.append(svg("line", { class: "cross", x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    const parts = [`${this.data.xFormat(this.at)} ${this.data.xName}`];
    for (const one of this.data.series) {
      const [xs, ys] = one.x.length ? [one.x, one.y] : [one.points?.x ?? [], one.points?.y ?? []];
      if (!xs.length || this.at > xs[xs.length - 1]) continue;
      const value = ys[nearest(xs, this.at)];
      if (value !== null && value !== undefined) parts.push(`${this.data.series.length > 1 ? `${one.name} ` : ""}${this.format(value)}`);
    }
    return setText(this.readout, parts.join(" · "));
  }
}

function nearest(xs, at) {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - xs[low - 1] < xs[low] - at ? low - 1 : low;
}

// About `most` round numbers between two values.
export function ticks(low, high, most, log) {
  if (log) {
    const decades = Math.log10(high / low);
    if (decades > 0.7) {
      const factors = decades > most / 1.5 ? [1] : decades > most / 3 ? [1, 3] : [1, 2, 5];
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        for (const factor of factors) found.push(factor * 10 ** power);
      }
      return found.filter((value) => value >= low && value <= high);
    }
  }
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= raw) ?? 10);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-12); n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

// The mean of up to a fiftieth of the steps, as in reports; `counts` are the steps of each point.
export function smoothed(ys, counts) {
  const total = counts.reduce((sum, one) => sum + one, 0);
  const widest = Math.max(10, total / 50);
  const sums = [0];
  const steps = [0];
  ys.forEach((y, i) => {
    const usable = y !== null;
    sums.push(sums[i] + (usable ? y * counts[i] : 0));
    steps.push(steps[i] + (usable ? counts[i] : 0));
  });
  let first = 0;
  return ys.map((_, i) => {
    const window = Math.min(widest, Math.max(1, steps[i + 1] / 10));
    while (first < i && steps[i + 1] - steps[first + 1] >= window) first += 1;
    const weight = steps[i + 1] - steps[first];
    return weight ? (sums[i + 1] - sums[first]) / weight : null;
  });
}
