// A conversation with one or two models: the same messages to each, and the answers of each side by side.

import { h } from "./dom.js";
import { pieces } from "./stream.js";
import { TokenText } from "./tokens.js";

export class Conversation {
  constructor(readout) {
    this.readout = readout;
    this.talks = new Map();
    this.element = h("div", { class: "samples talks" });
  }

  clear() {
    this.talks.clear();
    this.element.replaceChildren();
  }

  // Send a message to all models at once. Call `note` after each piece with its number of tokens.
  async run({ models, prompt, settings: { system, ...settings }, signal, note }) {
    for (const { id } of models) if (!this.talks.has(id)) this.talks.set(id, new Talk(id, this.readout));
    const talks = models.map(({ id }) => this.talks.get(id));
    this.element.classList.toggle("pairs", talks.length > 1);
    this.element.replaceChildren(...talks.map((talk) => talk.element));
    await Promise.all(talks.map((talk) => talk.send(prompt, system, settings, signal, note)));
  }
}

// What was said to one model, and its answers.
class Talk {
  constructor(model, readout) {
    Object.assign(this, { model, readout, messages: [] });
    this.list = h("ol", { class: "talk" });
    this.element = h("article", { "aria-label": `Conversation with ${model}` }, h("h3", {}, model), this.list);
  }

  async send(content, system, settings, signal, note) {
    const messages = [...this.messages, { role: "user", content }];
    const answer = new TokenText(`${this.model}, answer ${(messages.length + 1) / 2}`, this.readout);
    const said = [h("li", {}, h("h4", {}, "You"), h("p", { class: "message" }, content)), h("li", {}, h("h4", {}, "Answer"), answer.element)];
    this.list.append(...said);
    said[1].scrollIntoView({ block: "nearest" });
    const request = { model: this.model, messages: system ? [{ role: "system", content: system }, ...messages] : messages, ...settings, logprobs: true, top_logprobs: 5 };
    let text = "";
    try {
      for await (const piece of pieces("/v1/chat/completions", request, signal)) {
        text += piece.text;
        answer.add(piece);
        note(piece.tokens.length);
      }
    } finally {
      if (text) this.messages = [...messages, { role: "assistant", content: text }];
      else for (const item of said) item.remove(); // an empty answer is no message
    }
  }
}
