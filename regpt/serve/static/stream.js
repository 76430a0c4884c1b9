// Requests to a model. Its answer arrives as server-sent events, which become pieces of text with their tokens.

import { Refused, refusalOf } from "./api.js";

const LOST = "The connection to the server was lost. Is regpt serve still running? Then try again.";

// Yield pieces `{ index, text, tokens, ends }`: `tokens` made the text certain, `ends` is why it ends, or null. A token
// has its text, its log-probability, and the most likely tokens with theirs. Ends with an AbortError after `signal`.
export async function* pieces(path, body, signal) {
  let done = false;
  try {
    const response = await fetch(path, { method: "POST", credentials: "same-origin", signal, body: JSON.stringify({ ...body, stream: true }) });
    if (!response.ok) throw await refusalOf(response);
    for await (const data of events(response.body)) {
      done = data === "[DONE]";
      if (done) break;
      const { error, choices } = JSON.parse(data);
      if (error) throw new Refused(500, error.message);
      for (const choice of choices) yield pieceOf(choice);
    }
  } catch (error) {
    throw error instanceof TypeError ? new Refused(0, LOST) : error;
  }
  if (!done) throw new Refused(0, LOST);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// A completion has text and lists, a chat a message that grows and objects.
function pieceOf({ index, text, delta, logprobs, finish_reason: ends }) {
  const tokens = delta
    ? (logprobs?.content ?? []).map((one) => ({ text: one.token, logprob: one.logprob, top: one.top_logprobs.map((other) => [other.token, other.logprob]) }))
    : (logprobs?.tokens ?? []).map((token, n) => ({ text: token, logprob: logprobs.token_logprobs[n], top: Object.entries(logprobs.top_logprobs[n] ?? {}) }));
  for (const token of tokens) token.top.sort((a, b) => b[1] - a[1]);
  return { index, text: delta ? delta.content ?? "" : text, tokens, ends };
}
