// Text whose tokens are coloured by their probability. Pointer and arrow keys read the probabilities.

import { h } from "./dom.js";

// The least probability of each level, and its name. Colours and lines under the text are in the style sheet.
const LEVELS = [[0.5, "50 % and more"], [0.2, "20 to 50 %"], [0.05, "5 to 20 %"], [0.01, "1 to 5 %"], [0, "below 1 %"]];

function levelOf(probability) {
  return LEVELS.findIndex(([least]) => probability >= least);
}

export function percent(probability) {
  const value = 100 * probability;
  return value < 0.01 ? "< 0.01 %" : `${value >= 99.995 ? "100" : value >= 10 ? value.toFixed(1) : value.toPrecision(2)} %`;
}

export function legend() {
  return h("ul", { class: "levels", "aria-label": "Colours and lines of the tokens" },
    ...LEVELS.map(([, name], level) => h("li", {}, h("span", { class: `token p${level}` }, name))));
}

// The text of a token as code. A line break, which is not seen there, has a sign.
function quoted(text) {
  return h("code", { class: "quoted" }, text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
}

// What is known of one token, at the lower edge of the window. One for all texts of a view.
export class Readout {
  constructor() {
    this.element = h("div", { class: "token-readout", "aria-atomic": "true" });
    this.clear();
  }

  clear() {
    this.element.setAttribute("aria-live", "off");
    this.element.classList.remove("shown");
    this.element.replaceChildren(h("p", { class: "soft" }, "Point at a token, or move through a text with the arrow keys, to read its probability and the most likely tokens in its place."));
  }

  // `spoken`: whether a screen reader says it.
  show(name, number, tokens, spoken) {
    this.element.setAttribute("aria-live", spoken ? "polite" : "off");
    this.element.classList.add("shown");
    this.element.replaceChildren(...tokens.map((token, n) => this.line(`${name}, token ${number + n}: `, token)));
  }

  line(name, { text, logprob, top }) {
    const others = top.filter(([other]) => other !== text).map(([other, value]) => h("span", {}, quoted(other), ` ${percent(Math.exp(value))}`));
    return h("p", {}, h("span", { class: "soft" }, name), h("strong", {}, quoted(text), ` ${percent(Math.exp(logprob))}`),
      ...(others.length ? [h("span", { class: "soft" }, "others: "), ...others] : []));
  }
}

// A text that grows token by token.
export class TokenText {
  // `name` is how the readout calls it.
  constructor(name, readout, prompt = "") {
    Object.assign(this, { name, readout, spans: [], made: [], waiting: [], at: -1, count: 0, sum: 0 });
    this.element = h("p", { class: "text", role: "group", tabindex: "0", "aria-label": `${name}. Arrow keys read the probabilities of its tokens.` });
    if (prompt) this.element.append(h("span", { class: "prompt" }, prompt));
    this.element.addEventListener("pointerover", (event) => this.point(event.target));
    this.element.addEventListener("pointerdown", (event) => this.point(event.target));
    this.element.addEventListener("pointerleave", () => this.show(-1));
    this.element.addEventListener("blur", () => this.show(-1));
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // A token may be half a character. Its text then comes with the token that completes it, and both are one span.
  add({ text, tokens, ends }) {
    this.waiting.push(...tokens);
    for (const { logprob } of tokens) {
      this.count += 1;
      this.sum += logprob;
    }
    if (text) this.append(text, "");
    else if (ends && this.waiting.length) this.append(this.waiting.map((token) => token.text).join(""), "end");
  }

  append(text, kind) {
    const { waiting } = this;
    this.waiting = [];
    if (!waiting.length) return this.element.append(text);
    const probability = Math.exp(waiting.reduce((sum, token) => sum + token.logprob, 0));
    const span = h("span", { class: `token p${levelOf(probability)} ${kind}` }, text);
    this.made.push({ number: this.count - waiting.length + 1, tokens: waiting });
    this.spans.push(span);
    return this.element.append(span);
  }

  // The mean probability of the tokens: exp of the mean logarithm. 1 / perplexity.
  get meanProbability() {
    return this.count ? Math.exp(this.sum / this.count) : null;
  }

  point(target) {
    const at = this.spans.indexOf(target);
    if (at >= 0) this.show(at, false);
  }

  key(event) {
    const last = this.spans.length - 1;
    const stride = event.shiftKey ? 10 : 1;
    const next = { ArrowLeft: (this.at < 0 ? last + 1 : this.at) - stride, ArrowRight: this.at + stride, Home: 0, End: last }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    this.show(Math.min(last, Math.max(0, next)), true);
  }

  show(at, spoken) {
    this.spans[this.at]?.classList.remove("current");
    this.at = at;
    if (at < 0) return this.readout.clear();
    const { number, tokens } = this.made[at];
    this.spans[at].classList.add("current");
    if (spoken) this.spans[at].scrollIntoView({ block: "nearest" });
    return this.readout.show(this.name, number, tokens, spoken);
  }
}
