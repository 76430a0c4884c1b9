// The playground: a prompt or a message, settings, and what one or two models make of them.

import { Refused, get } from "./api.js";
import { Conversation } from "./conversation.js";
import { h, setText } from "./dom.js";
import { count } from "./format.js";
import { Samples } from "./samples.js";
import { Readout, legend } from "./tokens.js";

const STORE = "regpt.playground"; // of the tab, so that a reload keeps what was entered
// Settings of a request, as the endpoint names them.
const NUMBERS = [
  { name: "temperature", label: "Temperature", value: "0.8", step: "0.1", hint: "0: the most likely" },
  { name: "top_k", label: "Top-k", value: "50", step: "1", hint: "0: all tokens" },
  { name: "top_p", label: "Top-p", value: "1", step: "0.05", hint: "1: all tokens" },
  { name: "max_tokens", label: "Tokens", value: "100", step: "1", hint: "at most" },
  { name: "n", label: "Samples", value: "3", step: "1", hint: "of each model" },
  { name: "seed", label: "Seed", value: "42", step: "1", hint: "empty: a new one" },
];
const MODES = {
  text: { label: "Prompt", hint: "Ctrl + Enter generates", button: "Generate" },
  chat: { label: "Message", hint: "Enter sends, Shift + Enter begins a line", button: "Send" },
};

export async function showPlayground(main, signal, [, model]) {
  const body = h("div", {}, h("p", { class: "soft" }, "Loading …"));
  main.replaceChildren(h("div", { class: "bar" }, h("h1", { tabindex: "-1" }, "Playground")), body);
  const { data: models } = await get("/v1/models");
  if (signal.aborted) return;
  if (models.length) await new Playground(models, signal, model).show(body);
  else body.replaceChildren(h("p", {}, "No model is served."), h("p", {}, "Start the server with one or several: ", h("code", {}, "regpt serve MODEL"),
    ". A model is a run of the list, a checkpoint, a Hugging Face directory, or hub:OWNER/NAME."));
}

class Playground {
  // `model` is the name of the one to begin with; where it is not served, the tab's last one.
  constructor(models, signal, model) {
    Object.assign(this, { models, signal, stored: stored(), working: null });
    const names = models.map((model) => [model.id, nameOf(model)]);
    this.readout = new Readout();
    this.outputs = { text: new Samples(this.readout), chat: new Conversation(this.readout) };
    this.fields = Object.fromEntries([
      choice("mode", "Mode", [["text", "Text"], ["chat", "Conversation"]], models[0].chat ? "chat" : "text"),
      choice("first", "Model", names, models[0].id),
      choice("second", "Next to it", [["", "none"], ...names], models[1]?.id ?? ""),
      text("prompt", "3", "Once upon a time"), text("message", "3", ""), text("system", "1", "", "System message"),
      ...NUMBERS.map(number),
    ].map((field) => [field.input.id, field]));
    for (const { input } of Object.values(this.fields)) if (input.id in this.stored) restore(input, this.stored[input.id]);
    if (models.some(({ id }) => id === model)) Object.assign(this.fields.first.input, { value: model });
    this.hasChat = models.some((model) => model.chat);
    if (!this.hasChat) this.fields.mode.input.value = "text";
    this.start = h("button", { type: "submit", class: "main" });
    this.stop = h("button", { type: "button", disabled: true, onclick: () => this.end() }, "Stop");
    this.anew = h("button", { type: "button", onclick: () => this.restart() }, "New conversation");
    this.colours = h("button", { type: "button", "aria-pressed": "true", onclick: () => this.toggleColours() }, "Colours");
    this.status = h("p", { class: "soft", role: "status" });
    this.problem = h("p", { class: "alert", role: "alert" });
    this.results = h("div");
    signal.addEventListener("abort", () => this.working?.abort(), { once: true });
  }

  // Resolves never; rejects where the server asks for its token.
  show(body) {
    const { mode, first, second, prompt, message, system } = this.fields;
    const several = this.models.length > 1;
    const choices = [this.hasChat && mode, several && first, several && second].filter(Boolean).map((field) => field.element);
    this.form = h("form", { class: "settings" }, prompt.element, message.element, ...NUMBERS.map(({ name }) => this.fields[name].element), system.element,
      h("div", { class: "bar wide" }, this.start, this.stop, this.anew, this.status));
    this.drawn = h("div", {},
      h("div", { class: "bar key" }, h("span", { class: "soft" }, "Probability of each token, before temperature, top-k and top-p:"), legend(), this.colours), this.results);
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.generate(); });
    this.form.addEventListener("keydown", (event) => this.key(event));
    body.addEventListener("input", () => this.store());
    mode.input.addEventListener("change", () => this.showMode());
    body.replaceChildren(several ? "" : h("p", { class: "soft" }, nameOf(this.models[0])), h("div", { class: "settings" }, ...choices), this.form, this.problem, this.drawn, this.readout.element);
    this.showMode();
    return new Promise((_, reject) => { this.reject = reject; });
  }

  get mode() {
    return this.fields.mode.input.value;
  }

  get entry() {
    return this.fields[this.mode === "chat" ? "message" : "prompt"];
  }

  showMode() {
    this.working?.abort();
    const isChat = this.mode === "chat";
    for (const [name, only] of [["prompt", "text"], ["n", "text"], ["message", "chat"], ["system", "chat"]]) this.fields[name].element.hidden = this.mode !== only;
    setText(this.start, MODES[this.mode].button);
    this.anew.hidden = !isChat;
    this.results.replaceChildren(this.outputs[this.mode].element);
    if (isChat) this.form.before(this.drawn); // the next message stands below what was said
    else this.problem.after(this.drawn);
  }

  key(event) {
    if (event.key !== "Enter") return;
    const sends = event.target === this.fields.message.input && !event.shiftKey && !event.isComposing;
    if (!sends && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.form.requestSubmit();
  }

  store() {
    const values = Object.values(this.fields).map(({ input }) => [input.id, input.value]);
    try {
      sessionStorage.setItem(STORE, JSON.stringify(Object.fromEntries(values)));
    } catch { /* a browser without a store forgets them */ }
  }

  settings() {
    const names = NUMBERS.filter(({ name }) => this.mode === "text" || name !== "n");
    const settings = Object.fromEntries(names.map(({ name, value }) => [name, Number(this.fields[name].input.value || value)]));
    if (!this.fields.seed.input.value) settings.seed = Math.floor(1e6 * Math.random());
    return this.mode === "chat" ? { ...settings, system: this.fields.system.input.value.trim() } : settings;
  }

  chosen() {
    const ids = [this.fields.first.input.value, this.fields.second.input.value];
    return [...new Set(ids.filter(Boolean))].map((id) => this.models.find((model) => model.id === id));
  }

  async generate() {
    const { mode, entry } = this;
    const prompt = entry.input.value;
    if (mode === "chat" && !prompt.trim()) return entry.input.focus();
    this.working?.abort();
    const working = (this.working = new AbortController());
    const began = performance.now();
    let tokens = 0;
    setText(this.problem, "");
    setText(this.status, "Generating …");
    this.stop.disabled = false;
    if (mode === "chat") entry.input.value = "";
    let ended = "stopped";
    try {
      await this.outputs[mode].run({ models: this.chosen(), prompt, settings: this.settings(), signal: working.signal, note: (added) => { tokens += added; } });
      ended = "";
    } catch (error) {
      if (!working.signal.aborted) this.report(error);
      working.abort(); // the other model's request, too
    }
    if (mode === "chat" && !tokens && !entry.input.value) entry.input.value = prompt;
    if (this.working !== working) return; // a later one has begun
    const seconds = (performance.now() - began) / 1000;
    this.working = null;
    this.stop.disabled = true;
    if (mode === "text" && !tokens) this.outputs.text.clear();
    setText(this.status, [tokens ? `${count(tokens)} tokens in ${seconds.toFixed(1)} s, ${count(tokens / seconds)} per second` : "", ended].filter(Boolean).join("; "));
  }

  end() {
    this.working?.abort();
    this.start.focus(); // the button that had the focus is disabled now
  }

  restart() {
    this.working?.abort();
    this.outputs.chat.clear();
    this.fields.message.input.focus();
  }

  report(error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) return this.reject(error);
    setText(this.problem, error.message);
    return this.fields[error.field]?.input.focus();
  }

  toggleColours() {
    const plain = this.results.classList.toggle("plain");
    this.colours.setAttribute("aria-pressed", String(!plain));
  }
}

function choice(id, label, options, value) {
  const input = h("select", { id }, ...options.map(([name, text]) => h("option", { value: name }, text)));
  input.value = value;
  return { input, element: h("div", { class: "field model" }, h("label", { for: id }, label), input) };
}

function text(id, rows, value, label = null) {
  const mode = MODES[id === "prompt" ? "text" : "chat"];
  const input = h("textarea", { id, rows, spellcheck: "false", "aria-describedby": label ? null : `${id}-hint` });
  input.value = value;
  return { input, element: h("div", { class: "field wide" }, h("label", { for: id }, label ?? mode.label), input, label ? null : h("small", { class: "soft", id: `${id}-hint` }, mode.hint)) };
}

function number({ name: id, label, value, step, hint }) {
  const input = h("input", { id, type: "number", min: "0", step, inputmode: "decimal", "aria-describedby": `${id}-hint` });
  input.value = value;
  return { input, element: h("div", { class: "field" }, h("label", { for: id }, label), input, h("small", { class: "soft", id: `${id}-hint` }, hint)) };
}

// A choice that the server no longer has is left as it is.
function restore(input, value) {
  if (input.tagName !== "SELECT" || [...input.options].some((option) => option.value === value)) input.value = value;
}

function nameOf({ id, run, step, averaged }) {
  return run === null ? id : [id, step !== null && `step ${count(step)}`, averaged && "averaged weights"].filter(Boolean).join(", ");
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}
