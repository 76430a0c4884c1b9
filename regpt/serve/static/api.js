// Requests to the server, and the copy of a run that grows with them.

const connection = document.getElementById("connection");

export class Refused extends Error {
  // `field` is the one of the request that is wrong, if the server names one.
  constructor(status, message, field = null) {
    super(message);
    Object.assign(this, { status, field });
  }
}

export async function refusalOf(response) {
  const { error } = await response.json();
  return new Refused(response.status, error.message, error.param);
}

export async function get(path) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin" });
  } catch {
    connection.textContent = "No connection to the server; trying again …";
    throw new Refused(0, "no connection to the server");
  }
  connection.textContent = "";
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

// Call `task` again and again until `signal` ends: `seconds()` after it was done, and only while the page is visible.
// Each call may take its time: no two overlap. A failure does not end it.
export async function repeat(task, seconds, signal) {
  while (!signal.aborted) {
    if (document.hidden) await once(document, "visibilitychange", signal);
    else {
      try {
        await task();
      } catch (error) {
        if (!(error instanceof Refused) || error.status === 401) throw error;
      }
      await wait(1000 * seconds(), signal);
    }
  }
}

function once(target, event, signal) {
  return new Promise((resolve) => {
    target.addEventListener(event, resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

function wait(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// A run as this page knows it. Each update names for each list how many records stay; the rest is replaced.
export class RunCopy {
  constructor(name) {
    this.name = name;
    this.cursor = "";
    this.status = null;
    this.curves = {};
    this.lists = {};
  }

  async update() {
    const path = `/api/runs/${encodeURIComponent(this.name)}?cursor=${encodeURIComponent(this.cursor)}`;
    const { cursor, status, curves, ...lists } = await get(path);
    const { from, largest, ...columns } = curves;
    for (const [name, values] of Object.entries(columns)) replaceEnd((this.curves[name] ??= []), from, values);
    for (const [name, news] of Object.entries(lists)) replaceEnd((this.lists[name] ??= []), news.from, news.records);
    this.cursor = cursor;
    this.status = status;
  }

  get pause() {
    return ["starting", "running"].includes(this.status?.state) ? 1 : 4;
  }
}

function replaceEnd(list, kept, added) {
  list.length = Math.min(kept, list.length);
  for (const one of added) list.push(one);
}
