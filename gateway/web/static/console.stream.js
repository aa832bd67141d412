/*
 * Reading an event stream that comes back by itself; nothing here knows the gateway's events.
 *
 * Why not EventSource? It hands out named events only to listeners of that name, and drops the
 * others without a trace, while it still takes their ids. A console must show every type, those
 * that nobody told it of included. So it reads with fetch, by EventSource's own rules (WHATWG
 * HTML 9.2): the same request (`Accept`, `Last-Event-ID`), the same resume, the same `retry:`.
 * It differs in one thing: where EventSource gives up for good (5xx, 408, 429), this says why and
 * tries again.
 */
import { describe, isPassing, problemOf } from "./console.request.js";

/** Parses an event stream: text in, blocks out. A block without data has `data: null`. */
export class BlockParser {
  #rest = "";
  #afterCr = false;
  #type = "";
  #data = [];
  #id;

  constructor(lastEventId = "") {
    this.#id = lastEventId;
    this.retryMs = null;
  }

  /** Returns the blocks that `text` completes. What is cut off at the end waits for the rest. */
  feed(text) {
    const blocks = [];
    // A CR ends a line at once; if an LF follows, in this piece or the next, it belongs to it.
    const fresh = this.#afterCr && text.startsWith("\n") ? text.slice(1) : text;
    if (text !== "") this.#afterCr = text.endsWith("\r");
    const lines = (this.#rest + fresh).split(/\r\n|\r|\n/);
    this.#rest = lines.pop();
    for (const line of lines) {
      const block = line === "" ? this.#dispatch() : this.#field(line);
      if (block) blocks.push(block);
    }
    return blocks;
  }

  #field(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // A comment, such as a heartbeat.
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retryMs = Number(value);
  }

  #dispatch() {
    const block = { id: this.#id, type: this.#type || "message", data: null };
    if (this.#data.length > 0) block.data = this.#data.join("\n");
    this.#type = "";
    this.#data = [];
    return block;
  }
}

/** One stream that comes back: connects, reads, waits `retry:`, resumes after the last id. */
export class Stream {
  lastEventId = "";
  retryMs = 3_000;
  opened = 0;
  #url;
  #on;
  #abort = new AbortController();
  #wake = () => {};

  /** `on` has `state(name, {reason, waitMs})`, `block(block)` and `bytes()`. */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
  }

  async run() {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      this.#on.state("connecting", {});
      const { reason, final = false, notBeforeMs = 0 } = await this.#connect();
      if (signal.aborted) return;
      if (final) {
        this.#on.state("stopped", { reason });
        return;
      }
      const waitMs = Math.max(notBeforeMs, this.retryMs);
      this.#on.state("waiting", { reason, waitMs });
      await this.#pause(waitMs);
    }
  }

  connectNow() {
    this.#wake();
  }

  close() {
    this.#abort.abort();
    this.#wake();
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Reads one connection to its end; returns why it ended and whether to come back. */
  async #connect() {
    const headers = { Accept: "text/event-stream" };
    if (this.lastEventId !== "") headers["Last-Event-ID"] = this.lastEventId;
    const { signal } = this.#abort;
    try {
      const response = await fetch(this.#url, { headers, cache: "no-store", signal });
      const type = response.headers.get("Content-Type") ?? "";
      if (response.status !== 200) return await refusal(response);
      if (!/^text\/event-stream\b/i.test(type))
        return { reason: `the answer is ${type}`, final: true };
      this.opened += 1;
      this.#on.state("live", {});
      await this.#read(response.body);
      return { reason: "the stream ended" };
    } catch {
      // fetch tells a page no more of a connection that could not be made, or broke.
      return {
        reason: navigator.onLine ? "the gateway cannot be reached" : "this browser is offline",
      };
    }
  }

  async #read(body) {
    const parser = new BlockParser(this.lastEventId);
    const text = new TextDecoder();
    const reader = body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // A block that is not complete yet is dropped: it comes again.
      this.#on.bytes();
      const blocks = parser.feed(text.decode(value, { stream: true }));
      this.retryMs = parser.retryMs ?? this.retryMs;
      for (const block of blocks) {
        if (this.#abort.signal.aborted) return;
        this.lastEventId = block.id;
        this.#on.block(block);
      }
    }
  }
}

async function refusal(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  const reason = describe(await problemOf(response));
  return { reason, final: !isPassing(response.status), notBeforeMs: seconds * 1_000 };
}
