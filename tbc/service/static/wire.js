// What is asked of the server, and the stream of what happens. The token goes into a header, never into a URL.

import { parse } from "./amounts.js";

const QUIET_MS = 45_000; // a sign of life comes every 15 s
const FIRST_WAIT_MS = 500;
const LAST_WAIT_MS = 15_000;
const KEY = "tbc-token";
/** What a reader of events returns if it must begin anew. */
export const AGAIN = Symbol("again");

/** A request that was not served. */
export class Refused extends Error {
  constructor(status, error, wait) {
    super(error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? "";
    this.wait = wait;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

async function open(path, headers, signal) {
  const known = token.get();
  const answer = await fetch(path, {
    headers: known ? { ...headers, Authorization: `Bearer ${known}` } : headers,
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  });
  if (answer.ok) return answer;
  let error = null;
  try {
    error = parse(await answer.text()).error;
  } catch {
    // no envelope: the status must do
  }
  throw new Refused(answer.status, error, Number(answer.headers.get("Retry-After") ?? 0) * 1000);
}

export async function ask(path) {
  return parse(await (await open(path, { Accept: "application/json" })).text());
}

export async function askText(path) {
  return (await open(path, { Accept: "text/plain" })).text();
}

/** Events of a text/event-stream, as they come: [name, id, data]. */
export async function* events(answer, heard) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message", id = null;
      const data = [];
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon < 1) continue;
        const text = line.slice(colon + 1).replace(/^ /, "");
        if (line.startsWith("event:")) name = text;
        else if (line.startsWith("id:")) id = Number(text);
        else if (line.startsWith("data:")) data.push(text);
      }
      if (data.length) yield [name, id, parse(data.join("\n"))];
    }
  }
}

/**
 * Follow the journal: connect, read, and connect again after what was read last, until told to stop.
 *
 * `reader` has `load()`: catch up and return the last line known; `joined()`: the stream is there, so what happens
 * from now on comes; `event(name, id, data)`; `state(what, why)`: "connecting", "live", "lost"; and `locked(why)`: a token is asked for.
 */
export class Follower {
  constructor(reader) {
    this.reader = reader;
    this.stopped = false;
    this.wait = FIRST_WAIT_MS;
    this.again = null;
    addEventListener("online", () => this.again?.());
  }

  stop() {
    this.stopped = true;
    this.abort?.abort();
    this.again?.();
  }

  async run() {
    while (!this.stopped) {
      let wait = this.wait;
      try {
        if ((await this.once()) === AGAIN) this.reader.state("connecting", "");
        else this.reader.state("lost", "The server has ended the stream.");
      } catch (error) {
        if (this.stopped) return;
        if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
          this.reader.locked(error);
          return;
        }
        const expected = error instanceof Refused || error instanceof TypeError || error.name === "AbortError" || error.why;
        if (!expected) console.error(error);
        if (error instanceof Refused) wait = Math.max(wait, error.wait);
        const why = error instanceof Refused ? error.message : error.why ?? "The server does not answer.";
        this.reader.state("lost", why);
      }
      this.wait = Math.min(LAST_WAIT_MS, this.wait * 2);
      await this.pause(wait * (0.75 + Math.random() / 2));
    }
  }

  async once() {
    const since = await this.reader.load();
    this.abort = new AbortController();
    let timer;
    const quiet = () => this.abort.abort(Object.assign(new Error(), { why: "Nothing was heard for 45 seconds." }));
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(quiet, QUIET_MS);
    };
    heard();
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": String(since) };
      const answer = await open("/v1/events", headers, this.abort.signal);
      this.reader.state("live", "");
      this.wait = FIRST_WAIT_MS;
      const { abort } = this;
      this.reader.joined().catch((error) => abort.abort(error));
      for await (const [name, id, data] of events(answer, heard)) {
        if (this.reader.event(name, id, data) === AGAIN) return AGAIN;
      }
      return null;
    } finally {
      clearTimeout(timer);
      this.abort.abort();
    }
  }

  pause(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.again = () => {
        clearTimeout(timer);
        done();
      };
    });
  }
}
