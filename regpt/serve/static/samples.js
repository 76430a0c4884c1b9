// The samples of one or two models, side by side, as they are drawn.

import { h, setText } from "./dom.js";
import { count } from "./format.js";
import { pieces } from "./stream.js";
import { TokenText, percent } from "./tokens.js";

const LONGEST = 240; // characters of the prompt that are shown before each sample
const MOST = 64; // that are shown; the server refuses more
const ENDS = { length: "", stop: "end of the text", stopped: "stopped" };

export class Samples {
  constructor(readout) {
    this.readout = readout;
    this.element = h("div", { class: "samples" });
  }

  clear() {
    this.element.replaceChildren();
  }

  // Draw the samples of all models at once. Call `note` after each piece with its number of tokens.
  async run({ models, prompt, settings, signal, note }) {
    const name = (model, n) => (models.length > 1 ? `${model.id}, sample ${n + 1}` : `Sample ${n + 1}`);
    const tables = models.map((model) => Array.from({ length: Math.min(MOST, settings.n) },
      (_, n) => new Sample(name(model, n), settings.seed + n, shortened(prompt), this.readout)));
    this.element.classList.toggle("pairs", models.length > 1);
    this.readout.clear();
    this.element.replaceChildren(...tables[0].flatMap((_, n) => tables.map((samples) => samples[n].element)));
    await Promise.all(models.map(async (model, place) => {
      try {
        for await (const piece of pieces("/v1/completions", { model: model.id, prompt, logprobs: 5, ...settings }, signal)) {
          tables[place][piece.index].add(piece);
          note(piece.tokens.length);
        }
      } finally {
        for (const sample of tables[place]) sample.end("stopped");
      }
    }));
  }
}

class Sample {
  constructor(name, seed, prompt, readout) {
    this.text = new TokenText(name, readout, prompt);
    this.state = h("small", { class: "soft" }, "waiting …");
    this.element = h("article", { "aria-label": name }, h("h3", {}, name, h("small", { class: "soft" }, ` seed ${seed}`)), this.text.element, this.state);
    this.ended = false;
  }

  add(piece) {
    this.text.add(piece);
    if (piece.ends) this.end(piece.ends);
    else setText(this.state, `${count(this.text.count)} tokens …`);
  }

  end(reason) {
    if (this.ended) return;
    this.ended = true;
    const mean = this.text.meanProbability;
    setText(this.state, [`${count(this.text.count)} tokens`, ENDS[reason], mean && `mean probability ${percent(mean)}`].filter(Boolean).join(" · "));
  }
}

function shortened(prompt) {
  return prompt.length > LONGEST ? `… ${prompt.slice(-LONGEST)}` : prompt;
}
