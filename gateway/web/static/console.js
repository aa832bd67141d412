/*
 * The console: follow a channel or a prefix, see its snapshot and its live tail, publish by hand.
 *
 * Why not EventSource? It hands out named events only to listeners of that name, and drops the
 * others without a trace, while it still takes their ids. A console must show every type, those
 * that nobody told it of included, so it reads the stream with fetch and the small reader below,
 * which keeps EventSource's rules: WHATWG HTML 9.2. The request is the same one (`Accept`,
 * `Last-Event-ID`), and so are the resume and the waiting time (`retry:`). It differs in one
 * thing: where EventSource gives up for good (5xx, 408, 429) it says why and tries again.
 *
 * Hooks for tests and scripts, and nothing else is promised:
 *   document.documentElement.dataset  channel, state, lastId, reconnects, gaps
 *   globalThis.sseConsole             { ids, reconnects, gaps, state }: `ids` are those of the
 *                                     events that the stream brought, in the order they came,
 *                                     repeats included, the last 10,000.
 */

const BASE = new URL("../", import.meta.url);
const IDS_LIMIT = 10_000;
const TAIL_LIMIT = 200;
const HISTORY_PAGES_LIMIT = 10;
const RECENT_LIMIT = 6_000; // Events kept to redraw the chart for another field…
const RECENT_LIMIT_CHARS = 4_000_000; // …and their size, as one may have 256 KiB.
const PENDING_LIMIT = 5_000; // Events held back while a snapshot loads.
const CHANNELS_PAGE = 500;
const MEMBERS_LIMIT = 100; // Channels that a prefix shows one by one.
const LEAVES_LIMIT = 200;
const STATE_LIMIT_CHARS = 100_000; // Of a state shown as JSON.
const CHART_SECONDS_LIMIT = 600;

/* ------------------------------------------------------------------ the stream, as WHATWG reads it */

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
    if (this.#afterCr && text.startsWith("\n")) text = text.slice(1);
    if (text !== "") this.#afterCr = text.endsWith("\r");
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
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

/** One stream that comes back: connects, reads, waits `retry:`, resumes from the last id. */
class Stream {
  #url;
  #on;
  #abort = new AbortController();
  #wake = null;
  #failures = 0;

  /** `on` has `state(name, {reason, waitMs})`, `block(block)` and `bytes()`. */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    this.lastEventId = "";
    this.retryMs = 3_000;
    this.opened = 0;
  }

  async run() {
    while (!this.#abort.signal.aborted) {
      this.#on.state("connecting", {});
      const { reason, final, notBeforeMs } = await this.#connect();
      if (this.#abort.signal.aborted) return;
      if (final) return void this.#on.state("stopped", { reason });
      const waitMs = Math.max(notBeforeMs, this.retryMs * 2 ** Math.min(this.#failures, 3));
      this.#on.state("waiting", { reason, waitMs });
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, waitMs);
        this.#wake = () => { clearTimeout(timer); resolve(); };
      });
    }
  }

  connectNow() { this.#wake?.(); }

  close() {
    this.#abort.abort();
    this.#wake?.();
  }

  /** Reads one connection to its end; returns why it ended and whether to come back. */
  async #connect() {
    const headers = { Accept: "text/event-stream" };
    if (this.lastEventId !== "") headers["Last-Event-ID"] = this.lastEventId;
    try {
      const response = await fetch(this.#url, { headers, cache: "no-store", signal: this.#abort.signal });
      const type = response.headers.get("Content-Type") ?? "";
      if (response.status !== 200 || !/^text\/event-stream\b/i.test(type)) return await this.#refused(response);
      this.#failures = 0;
      this.opened += 1;
      this.#on.state("live", {});
      await this.#read(response.body);
      return { reason: "the stream ended", final: false, notBeforeMs: 0 };
    } catch {
      // fetch tells pages nothing more of a connection that could not be made or broke.
      const reason = navigator.onLine ? "the gateway cannot be reached" : "this browser is offline";
      if (this.opened === 0 || this.#failures > 0) this.#failures += 1;
      return { reason, final: false, notBeforeMs: 0 };
    }
  }

  async #refused(response) {
    this.#failures += 1;
    const { status } = response;
    const final = status < 500 && status !== 408 && status !== 429;
    const seconds = Number(response.headers.get("Retry-After")) || 0;
    const reason = status === 200 ? "the answer is not an event stream" : describe(await problemOf(response));
    return { reason, final, notBeforeMs: seconds * 1_000 };
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
      if (parser.retryMs !== null) this.retryMs = parser.retryMs;
      for (const block of blocks) {
        if (this.#abort.signal.aborted) return; // Closed by what the block before said.
        this.lastEventId = block.id;
        this.#on.block(block);
      }
    }
  }
}

/* ------------------------------------------------------------------------------- requests and problems */

/** Returns an address of the gateway; `channel`, if given, is the last part of the path. */
function address(resource, channel, query = {}) {
  const path = channel === undefined ? resource : `${resource}/${encodeURI(channel).replace(/[?#]/g, encodeURIComponent)}`;
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) if (value !== "") url.searchParams.set(name, value);
  return url;
}

/** Returns a refusal's problem document (RFC 9457), or one made from what there is. */
async function problemOf(response) {
  const plain = { status: response.status, title: response.statusText || `status ${response.status}` };
  try {
    const problem = await response.json();
    return typeof problem === "object" && problem !== null ? { ...plain, ...problem } : plain;
  } catch {
    return plain;
  }
}

function describe(problem) {
  const text = problem.detail || problem.title;
  return `${problem.status}: ${text}${problem.rule && !text.includes(problem.rule) ? ` (${problem.rule})` : ""}`;
}

/** Returns the value of a JSON text; integers that a double cannot hold keep their digits. */
function parseJson(text) {
  if (!/[0-9]{16}/.test(text) || !JSON.rawJSON) return JSON.parse(text);
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?[0-9]+$/.test(context?.source ?? "")
      ? JSON.rawJSON(context.source)
      : value);
}

async function getJson(url, signal, cache = "no-cache") {
  const response = await fetch(url, { signal, cache });
  if (!response.ok) throw Object.assign(new Error("refused"), { problem: await problemOf(response) });
  return parseJson(await response.text());
}

/* ------------------------------------------------------------------------ positions, states and values */

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value) && !JSON.isRawJSON?.(value);
const isPrefix = (name) => name.endsWith("/*");
const isGap = (body) => isObject(body) && ["reason", "requested", "newest"].every((name) => typeof body[name] === "string");
const ENVELOPE = ["channel", "key", "data"];

/** Compares two positions `<milliseconds>-<sequence>`: below 0, 0 or above 0, as a sort does. */
export function comparePositions(a, b) {
  const [aMs, aSequence] = a.split("-").map(Number);
  const [bMs, bSequence] = b.split("-").map(Number);
  return aMs - bMs || aSequence - bSequence;
}

const millisecondsOf = (id) => Number(id.split("-")[0]);

/** Returns `target` with a merge patch applied. Source: RFC 7396 section 2. */
export function mergePatch(target, patch) {
  if (!isObject(patch)) return patch;
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, mergePatch(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** Returns the state after one more event, as the channel's reducer adds it up; may change `state`. */
export function foldEvent(reducer, state, event) {
  if (reducer === "last") return event.data;
  if (reducer === "merge") return mergePatch(state, event.data);
  if (reducer !== "keyed") return state;
  const values = isObject(state) ? state : {};
  if (event.data === "") delete values[event.key];
  // Defined, not assigned: a key may be `__proto__`.
  else Object.defineProperty(values, event.key, { value: event.data, writable: true, enumerable: true, configurable: true });
  return values;
}

/** Yields [path, value] for what is not an object or a list inside `value`, in its order. */
function* leaves(value, path = []) {
  if (typeof value !== "object" || value === null || JSON.isRawJSON?.(value)) yield [path, value];
  else for (const [name, member] of Object.entries(value)) yield* leaves(member, [...path, name]);
}

function firstLeaves(value) {
  const found = [];
  for (const leaf of leaves(value)) {
    if (found.length === LEAVES_LIMIT) return { found, more: true };
    found.push(leaf);
  }
  return { found, more: false };
}

function valueAt(value, path) {
  for (const name of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) return undefined;
    value = value[name];
  }
  return value;
}

/** Returns the number that an event gives a field of the state, or undefined when it says nothing. */
function numberIn(event, path) {
  const inKey = event.key !== "" && path[0] === event.key;
  const value = valueAt(event.data, inKey ? path.slice(1) : path);
  return typeof value === "number" ? value : undefined;
}

/** Picks the field that an operator would most likely want to see. */
function pickField(state) {
  const numeric = firstLeaves(state).found.filter(([, value]) => typeof value === "number").map(([path]) => path);
  const likely = /(^|_)(percent|value|price|rate|load|temperature|latency|per_second)(_|$)/;
  return numeric.find((path) => likely.test(path.at(-1) ?? "")) ?? numeric[0] ?? null;
}

const pathText = (path) => (path.length === 0 ? "(value)" : path.join(" › "));

/* ---------------------------------------------------------------------------------------------- figures */

const decimals = (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits });
const [WHOLE, ONE, TWO, FOUR] = [0, 1, 2, 4].map(decimals);
const PERCENT = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Returns [text, unit] for a number whose field name ends in its unit. */
function figure(value, name = "") {
  const bytes = /(^|_)bytes(_per_second)?$/.exec(name);
  if (bytes) {
    const power = Math.min(Math.floor(Math.log(Math.max(Math.abs(value), 1)) / Math.log(1024)), BYTE_UNITS.length - 1);
    const scaled = value / 1024 ** power;
    return [(scaled < 10 && power > 0 ? TWO : scaled < 100 ? ONE : WHOLE).format(scaled), BYTE_UNITS[power] + (bytes[2] ? "/s" : "")];
  }
  if (/(^|_)percent$/.test(name)) return [PERCENT.format(value), "%"];
  if (/_per_second$/.test(name)) return [TWO.format(value), "/s"];
  if (/_(seconds|s)$/.test(name)) return [FOUR.format(value), "s"];
  if (/_(milliseconds|ms)$/.test(name)) return [TWO.format(value), "ms"];
  const small = value !== 0 && Math.abs(value) < 0.001;
  return [small ? value.toPrecision(3) : FOUR.format(value), ""];
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const clockTime = (ms) => CLOCK.format(new Date(ms));

function duration(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

const milliseconds = (ms) => (Math.abs(ms) < 1_000 ? `${WHOLE.format(ms)} ms` : `${ONE.format(ms / 1000)} s`);
const count = (number, noun) => `${WHOLE.format(number)} ${noun}${number === 1 ? "" : "s"}`;

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** An array that forgets its oldest items beyond a limit, in pieces so that pushing stays cheap. */
class Recent {
  constructor(limit) { this.limit = limit; this.items = []; }
  push(item) {
    this.items.push(item);
    if (this.items.length >= this.limit * 1.25) this.items.splice(0, this.items.length - this.limit);
  }
  last(count) { return this.items.slice(-count); }
}

/* ---------------------------------------------------------------------------------- following a selector */

/** What one followed selector has shown so far; the view reads it, and nothing here draws. */
class Following {
  #abort = new AbortController();
  #stream = null;
  #membersAsked = false;
  #changed;

  constructor(selector, changed) {
    this.selector = selector;
    this.many = isPrefix(selector);
    this.#changed = changed;
    this.state = "loading";
    this.reason = "";
    this.resumesAt = 0;
    this.liveSince = 0;
    this.heardAt = 0;
    this.startedAt = Date.now();
    this.position = "";
    this.epoch = "";
    this.ids = [];
    this.count = 0;
    this.reconnects = 0;
    this.gaps = 0;
    this.lastGap = null;
    this.notice = null;
    this.latencies = new Recent(200);
    this.seconds = []; // [second, events] of the last ten minutes, for the rate.
    this.recent = [];
    this.recentChars = 0;
    this.marks = new Recent(100);
    this.rows = []; // The tail, oldest first: events and notes.
    this.members = new Map(); // Channel → what is known of its state.
    this.membersLeftOut = false;
  }

  async start() {
    if (!this.many) {
      // Opened where the snapshot ends, the stream misses nothing and brings nothing twice.
      const id = await this.#loadSnapshot(this.selector);
      if (id === null) return;
      this.position = id;
      this.#connect(id);
      this.#seed(id);
    } else {
      // The stream first: from its start on it brings all; the snapshots bring what was before.
      this.#connect("");
    }
  }

  stop() {
    this.#abort.abort();
    this.#stream?.close();
  }

  connectNow() { this.#stream?.connectNow(); }

  /** Returns the events per second over the last `seconds` whole seconds. */
  rate(seconds, now = Date.now()) {
    const end = Math.floor(now / 1000);
    const lived = Math.max(1, Math.min(seconds, end - Math.floor(this.startedAt / 1000)));
    let sum = 0;
    for (let index = this.seconds.length - 1; index >= 0 && this.seconds[index][0] >= end - lived; index -= 1) {
      if (this.seconds[index][0] < end) sum += this.seconds[index][1];
    }
    return sum / lived;
  }

  member(channel) {
    let member = this.members.get(channel);
    if (member === undefined) {
      if (this.members.size >= MEMBERS_LIMIT) { this.membersLeftOut = true; return null; }
      member = { channel, id: "", at: 0, value: undefined, reducer: "", namespace: "", nothing: true, reason: "", pending: null, refreshing: false, field: null, trace: new Recent(90) };
      this.members.set(channel, member);
    }
    return member;
  }

  get only() { return this.members.get(this.selector); }

  #set(state, reason = "") {
    this.state = state;
    this.reason = reason;
    this.#changed(true);
  }

  #connect(id) {
    const url = address("events", undefined, { channel: this.selector, last_event_id: id });
    const stream = new Stream(url, {
      state: (name, detail) => this.#streamState(stream, name, detail),
      block: (block) => this.#block(block),
      bytes: () => { this.heardAt = Date.now(); },
    });
    this.#stream = stream;
    stream.run();
  }

  #streamState(stream, name, { reason = "", waitMs = 0 }) {
    const now = Date.now();
    if (name === "live") {
      this.liveSince = this.heardAt = now;
      if (stream.opened > 1) {
        this.reconnects += 1;
        this.marks.push({ at: now, kind: "reconnect" });
        this.#note("reconnect", `Reconnected, resuming after ${stream.lastEventId || "nothing"}.`);
      }
      if (this.notice?.kind === "unavailable") this.notice = null;
    }
    // The reason that the gateway gave beats the bare fact that the stream ended.
    if (name === "waiting" && this.notice?.kind === "unavailable") reason = this.notice.short;
    this.resumesAt = name === "waiting" ? now + waitMs : 0;
    if (name === "stopped") this.#note("gap", `Stopped: ${reason}.`);
    this.#set(name, reason);
  }

  #block({ id, type, data }) {
    const moved = id !== this.position;
    if (id !== "") this.position = id;
    if (this.many && !this.#membersAsked) this.#loadMembers(id);
    if (data === null) return this.#changed();
    let body = data;
    try { body = parseJson(data); } catch { /* Text: it stays as it is. */ }
    if (type === "gap" && isGap(body)) return this.#gap(body);
    // The gateway's own last word has no id; an event always has one.
    if (type === "unavailable" && !moved && isObject(body)) return this.#unavailable(body);
    if (!this.#isEnveloped(body)) body = { channel: this.selector, data: body };
    this.#event({ id, type, channel: body.channel, key: body.key ?? "", data: body.data, size: data.length, at: Date.now(), before: false });
  }

  /** Streams of a prefix, and of one channel whose events have keys, wrap each event's data. */
  #isEnveloped(body) {
    if (this.many) return isObject(body) && "channel" in body && "data" in body;
    const { reducer } = this.only;
    if (reducer !== "") return reducer === "keyed";
    return isObject(body) && body.channel === this.selector && "data" in body
      && Object.keys(body).every((name) => ENVELOPE.includes(name));
  }

  #event(event) {
    this.count += 1;
    this.ids.push(event.id);
    if (this.ids.length > IDS_LIMIT) this.ids.shift();
    const second = Math.floor(event.at / 1000);
    const newest = this.seconds.at(-1);
    if (newest?.[0] === second) newest[1] += 1;
    else this.seconds.push([second, 1]);
    if (this.seconds.length > CHART_SECONDS_LIMIT + 60) this.seconds.splice(0, 60);
    // What was published before the page came says nothing of the way here.
    if (millisecondsOf(event.id) >= this.startedAt) this.latencies.push(event.at - millisecondsOf(event.id));
    this.#remember(event);
    this.#row(event);
    const member = this.member(event.channel);
    if (member) this.#fold(member, event);
    this.#changed();
  }

  #remember(event) {
    this.recent.push(event);
    this.recentChars += event.size;
    while (this.recent.length > RECENT_LIMIT || (this.recentChars > RECENT_LIMIT_CHARS && this.recent.length > 1)) {
      this.recentChars -= this.recent.shift().size;
    }
  }

  #row(row) {
    this.rows.push(row);
    if (this.rows.length > TAIL_LIMIT * 2) this.rows.splice(0, this.rows.length - TAIL_LIMIT);
  }

  #note(kind, text) {
    this.#row({ note: kind, text, at: Date.now() });
  }

  #fold(member, event) {
    if (member.pending !== null) {
      if (member.pending.length < PENDING_LIMIT) member.pending.push(event);
      else member.overflow = true;
      return;
    }
    if (member.id !== "" && comparePositions(event.id, member.id) <= 0) return;
    this.#trace(member, event);
    if (member.reducer === "" && !this.many) return this.#refresh(member, event.id);
    // Of a prefix's channel whose reducer is not known, the latest event stands for its state.
    member.value = foldEvent(member.reducer || "last", member.value, event);
    member.id = event.id;
    member.at = event.at;
    member.nothing = member.value === undefined;
  }

  #trace(member, event) {
    member.field ??= pickField(member.reducer === "keyed" ? { [event.key]: event.data } : event.data);
    const value = member.field && numberIn(event, member.field);
    if (typeof value === "number") member.trace.push(value);
  }

  /** Follows a state whose reducer is not known by its snapshot, at most once a second. */
  #refresh(member, min) {
    member.wanted = min;
    if (member.refreshing) return;
    member.refreshing = true;
    setTimeout(async () => {
      member.refreshedAt = Date.now();
      if (this.#abort.signal.aborted) return;
      try { await this.#fetchSnapshot(member, member.wanted); } catch { /* The next event asks again. */ }
      member.refreshing = false;
      this.#changed();
    }, Math.max(0, (member.refreshedAt ?? 0) + 1_000 - Date.now()));
  }

  /** Loads the snapshot, however long it takes; returns its position, null when there is no hope. */
  async #loadSnapshot(channel) {
    const member = this.member(channel);
    for (let failures = 0; !this.#abort.signal.aborted; failures += 1) {
      try {
        return await this.#fetchSnapshot(member);
      } catch (error) {
        if (this.#abort.signal.aborted) return null;
        const { problem } = error;
        const reason = problem ? describe(problem) : "the gateway cannot be reached";
        if (problem && problem.status < 500 && problem.status !== 408 && problem.status !== 429) {
          this.#set("stopped", reason);
          return null;
        }
        const waitMs = 1_000 * 2 ** Math.min(failures, 3);
        this.resumesAt = Date.now() + waitMs;
        this.#set("waiting", reason);
        await new Promise((resolve) => { setTimeout(resolve, waitMs); });
        if (!this.#abort.signal.aborted) this.#set("loading");
      }
    }
    return null;
  }

  /** Loads a member's snapshot, true at `min` at least, and folds in what came meanwhile. */
  async #fetchSnapshot(member, min = "") {
    member.pending ??= [];
    try {
      const { id, epoch, state, reducer, reason } = await this.#snapshotOf(member.channel, min);
      this.epoch = epoch ?? this.epoch;
      if (member.reducer === "") member.reducer = reducer ?? reducers.get(member.channel) ?? "";
      const nothing = state === undefined;
      Object.assign(member, { id, loadedId: id, value: state, nothing, reason, at: nothing ? 0 : millisecondsOf(id) });
      member.field = (nothing ? null : pickField(state)) ?? member.field;
      return id;
    } finally {
      const held = member.pending;
      member.pending = null;
      for (const event of held) this.#fold(member, event);
      if (member.overflow) this.#refresh(member, this.position);
      member.overflow = false;
      this.#changed();
    }
  }

  /** "Nothing yet" is an answer too: a 404 that says which position it is true at. */
  async #snapshotOf(channel, min) {
    try {
      return await getJson(address("snapshots", channel, { min }), this.#abort.signal);
    } catch (error) {
      const { problem } = error;
      if (problem?.status !== 404 || typeof problem.id !== "string") throw error;
      return { id: problem.id, epoch: problem.epoch, state: undefined, reason: problem.detail };
    }
  }

  /** Loads what the prefix's channels were when the stream began at `min`. */
  async #loadMembers(min) {
    this.#membersAsked = true;
    try {
      const query = { prefix: this.selector.slice(0, -1), limit: MEMBERS_LIMIT };
      const page = await getJson(address("channels", undefined, query), this.#abort.signal);
      this.membersLeftOut ||= Boolean(page.next);
      learn(page.channels);
      // Each holds its events back until its snapshot is there.
      const members = page.channels.map(({ channel }) => this.member(channel)).filter(Boolean);
      for (const member of members) member.pending ??= [];
      await Promise.allSettled(members.map((member) => this.#fetchSnapshot(member, min)));
    } catch { /* The tail goes on without: each channel appears with its first event. */ }
  }

  /** Shows the two minutes before the snapshot: nothing depends on them, so this may fail. */
  async #seed(id) {
    try {
      const before = await this.#historyUntil(id, `${Math.max(0, millisecondsOf(id) - 120_000)}-0`);
      if (before.length === 0 || this.#abort.signal.aborted) return;
      const note = { note: "snapshot", text: `Snapshot at ${id}. What stands below came before it.`, at: this.startedAt };
      this.recent.unshift(...before);
      this.recentChars += before.reduce((sum, { size }) => sum + size, 0);
      this.rows.unshift(...before.slice(-50), note);
      const { field, trace } = this.only;
      if (field) trace.items.unshift(...before.map((event) => numberIn(event, field)).filter((value) => value !== undefined));
      this.#changed(true);
    } catch { /* The chart starts empty. */ }
  }

  /** Returns the events in (after, id]; none when they are too many or partly gone: no false picture. */
  async #historyUntil(id, after) {
    const before = [];
    for (let pages = 0; pages < HISTORY_PAGES_LIMIT; pages += 1) {
      const page = await getJson(address("history", this.selector, { after }), this.#abort.signal);
      if (page.gap) return [];
      for (const event of page.events) {
        if (comparePositions(event.id, id) > 0) return before;
        before.push({ id: event.id, type: event.type ?? "message", channel: this.selector, key: event.key ?? "", data: event.data, size: JSON.stringify(event.data).length, at: millisecondsOf(event.id), before: true });
      }
      if (page.events.length === 0 || comparePositions(page.next, id) >= 0) return before;
      after = page.next;
    }
    return [];
  }

  #gap(gap) {
    this.gaps += 1;
    this.lastGap = { ...gap, at: Date.now() };
    this.marks.push({ at: Date.now(), kind: "gap" });
    const text = gap.reason === "deleted"
      ? `Gap (deleted): the channel was deleted at ${gap.newest}, its history with it.`
      : `Gap (${gap.reason}): events after ${gap.requested} are gone; the oldest kept is ${gap.oldest ?? "unknown"}.`;
    this.#note("gap", text);
    this.notice = { kind: "gap", text: `${text} Loading the snapshot…`, short: gap.reason };
    this.#changed(true);
    this.#recover(text, this.position);
  }

  /**
   * Starts again from snapshots that hold all that the stream will not bring: `min` sees to that,
   * whatever caches are on the way. What the stream brings meanwhile is folded in after.
   */
  async #recover(text, min) {
    const members = this.many ? [...this.members.values()] : [this.member(this.selector)];
    for (const member of members) member.pending ??= [];
    const loaded = await Promise.allSettled(members.map((member) => this.#fetchSnapshot(member, min)));
    if (this.#abort.signal.aborted) return;
    const failed = loaded.filter(({ status }) => status === "rejected").length;
    let outcome = `${failed} of ${members.length} snapshots could not be loaded: what is shown may miss events.`;
    if (failed === 0 && this.many) outcome = "Each channel starts again from its snapshot.";
    else if (failed === 0 && this.only.nothing) outcome = "There is no state now.";
    else if (failed === 0) outcome = `The state starts again from the snapshot at ${this.only.loadedId}.`;
    this.#note("snapshot", outcome);
    if (this.notice?.kind === "gap") this.notice.text = `${text} ${outcome}`;
    this.#changed(true);
  }

  #unavailable(body) {
    const short = body.reason ? `the gateway is unavailable: ${body.reason}` : "the gateway is unavailable";
    this.#note("unavailable", `Unavailable${body.reason ? ` (${body.reason})` : ""}: the gateway closes the stream and asks to come back.`);
    this.notice = { kind: "unavailable", text: `${short[0].toUpperCase()}${short.slice(1)}. The stream resumes from ${this.position || "its start"}.`, short };
    this.#changed(true);
  }
}

/* ----------------------------------------------------------------------------------------- the document */

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const svgPath = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/* --------------------------------------------------------------------------------------------- the chart */

const PLOT = { left: 0, right: 64, top: 8, bottom: 22 };

/** Returns round values that divide [low, high] into about four. */
function ticksOf(low, high) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let tick = Math.floor(low / step) * step; tick < high + step * 0.999; tick += step) ticks.push(Math.round(tick / step) * step);
  return ticks;
}

/** Returns the lowest and highest value to show. */
function domainOf(values, name) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  // From zero, unless that would flatten the line: what happens near the top matters more then.
  if (low >= 0 && high > 0 && (low < high * 0.6 || /(^|_)percent$/.test(name))) return [0, high];
  if (low < high) return [low, high];
  return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.05, high + Math.abs(high) * 0.05];
}

/** Draws `points` ([time in ms, value]) over the last `seconds`, to the right edge at `now`. */
class Chart {
  #svg;
  #crossAt = null;
  #last = null;

  constructor(svg) {
    this.#svg = svg;
    svg.addEventListener("pointermove", (event) => {
      this.#crossAt = event.clientX - svg.getBoundingClientRect().left;
      this.redraw();
    });
    svg.addEventListener("pointerleave", () => { this.#crossAt = null; this.redraw(); });
    new ResizeObserver(() => this.redraw()).observe(svg);
  }

  redraw() { if (this.#last) this.draw(this.#last); }

  draw(picture) {
    this.#last = picture;
    const { points, marks, seconds, now, name, empty } = picture;
    const { width, height } = this.#svg.getBoundingClientRect();
    if (width === 0) return;
    const right = width - PLOT.right;
    const bottom = height - PLOT.bottom;
    const x = (at) => right - ((now - at) / (seconds * 1000)) * (right - PLOT.left);
    const parts = this.#timeAxis(seconds, x, now, bottom);
    const shown = points.filter(([at]) => at >= now - seconds * 1000);
    if (shown.length === 0) {
      parts.push(drawing("path", { class: "grid", d: `M0 ${bottom}H${right}` }));
      parts.push(drawing("text", { class: "nothing", x: 0, y: height / 2 - 8 }, empty));
      this.#svg.setAttribute("aria-label", empty);
    } else {
      parts.push(...this.#plot(shown, x, right, bottom, name), ...this.#cross(shown, x, right, bottom, name));
    }
    for (const { at, kind } of marks) {
      if (at < now - seconds * 1000) continue;
      const mark = drawing("path", { class: `mark ${kind}`, d: `M${x(at).toFixed(1)} ${PLOT.top}V${bottom}` });
      mark.append(drawing("title", {}, `${kind} at ${clockTime(at)}`));
      parts.push(mark);
    }
    this.#svg.replaceChildren(...parts);
  }

  #timeAxis(seconds, x, now, bottom) {
    const step = seconds / 4;
    const label = (ago) => (ago === 0 ? "now" : ago % 60 === 0 ? `−${ago / 60} min` : ago > 60 ? `−${ago / 60} min` : `−${ago} s`);
    const parts = x(now) < 420 ? [4, 2, 0] : [4, 3, 2, 1, 0];
    return parts.map((part) => {
      const at = x(now - part * step * 1000);
      return drawing("text", { x: at.toFixed(1), y: bottom + 16, "text-anchor": part === 4 ? "start" : part === 0 ? "end" : "middle" }, label(part * step));
    });
  }

  #plot(shown, x, right, bottom, name) {
    const values = shown.map(([, value]) => value);
    const [low, high] = domainOf(values, name);
    const ticks = ticksOf(low, high);
    const y = (value) => bottom - ((value - ticks[0]) / (ticks.at(-1) - ticks[0])) * (bottom - PLOT.top);
    this.#scale = y;
    const parts = ticks.flatMap((tick) => {
      const at = Math.round(y(tick)) + 0.5;
      return [
        drawing("path", { class: "grid", d: `M0 ${at}H${right}` }),
        drawing("text", { x: right + 8, y: at + 4 }, figure(tick, name).join(" ").trim()),
      ];
    });
    const line = thin(shown.map(([at, value]) => [x(at), y(value)]));
    const [headX, headY] = line.at(-1);
    if (line.length > 1) {
      parts.push(drawing("path", { class: "under", d: `${svgPath(line)}L${headX.toFixed(1)} ${bottom}L${line[0][0].toFixed(1)} ${bottom}Z` }));
      parts.push(drawing("path", { class: "trace", d: svgPath(line) }));
    }
    parts.push(drawing("circle", { class: "head", cx: headX.toFixed(1), cy: headY.toFixed(1), r: 3 }));
    this.#svg.setAttribute("aria-label", `${name || "value"}: latest ${figure(values.at(-1), name).join(" ")}, lowest ${figure(Math.min(...values), name).join(" ")}, highest ${figure(Math.max(...values), name).join(" ")}`);
    return parts;
  }

  #scale = null;

  #cross(shown, x, right, bottom, name) {
    if (this.#crossAt === null || this.#crossAt > right) return [];
    const distance = ([at]) => Math.abs(x(at) - this.#crossAt);
    const nearest = shown.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    const at = x(nearest[0]);
    const toLeft = at > right / 2;
    return [
      drawing("path", { class: "cross", d: `M${at.toFixed(1)} ${PLOT.top}V${bottom}` }),
      drawing("circle", { class: "head", cx: at.toFixed(1), cy: this.#scale(nearest[1]).toFixed(1), r: 3.5 }),
      drawing("text", { class: "cross-label", x: (at + (toLeft ? -8 : 8)).toFixed(1), y: PLOT.top + 10, "text-anchor": toLeft ? "end" : "start" },
        `${figure(nearest[1], name).join(" ").trim()} at ${clockTime(nearest[0]).slice(0, 8)}`),
    ];
  }
}

/** Thins a line to the first, lowest, highest and last point of each pixel column. */
function thin(points) {
  if (points.length < 1_500) return points;
  const columns = new Map();
  for (const point of points) {
    const column = Math.round(point[0]);
    const kept = columns.get(column);
    if (!kept) columns.set(column, { first: point, low: point, high: point, last: point });
    else {
      if (point[1] < kept.low[1]) kept.low = point;
      if (point[1] > kept.high[1]) kept.high = point;
      kept.last = point;
    }
  }
  return [...columns.values()].flatMap(({ first, low, high, last }) => [...new Set([first, low, high, last])].sort((a, b) => a[0] - b[0]));
}

/* ---------------------------------------------------------------------------------------------- the view */

const reducers = new Map(); // Channel → reducer, when the gateway says it.
const chart = new Chart($("chart"));
const shown = { following: null, plot: null, plotChosen: false, seconds: 120, view: "fields", paused: false, pausedAt: 0, missed: 0 };
const drawn = { rows: new Map(), fields: new Map(), options: "", stateKind: "" };
let dirty = false;
let lastState = "";

globalThis.sseConsole = {
  get ids() { return shown.following?.ids ?? []; },
  get reconnects() { return shown.following?.reconnects ?? 0; },
  get gaps() { return shown.following?.gaps ?? 0; },
  get state() { return shown.following?.state ?? "idle"; },
};

function learn(channels) {
  for (const { channel, reducer } of channels) if (reducer) reducers.set(channel, reducer);
}

function follow(selector) {
  shown.following?.stop();
  Object.assign(shown, { plot: null, plotChosen: false, missed: 0 });
  setPaused(false);
  drawn.rows.clear();
  $("rows").replaceChildren();
  clearState();
  const following = new Following(selector, (urgent) => {
    dirty = true;
    publishHooks(following);
    if (urgent) speak(following);
  });
  shown.following = following;
  $("suggestions").hidden = true;
  $("instruments").hidden = false;
  document.documentElement.dataset.channel = selector;
  $("publish-channel").value = following.many ? selector.slice(0, -1) : selector;
  lastState = "";
  markCurrent();
  render();
  following.start();
}

function publishHooks(following) {
  if (following !== shown.following) return;
  const { dataset } = document.documentElement;
  dataset.state = following.state;
  dataset.lastId = following.ids.at(-1) ?? "";
  dataset.reconnects = following.reconnects;
  dataset.gaps = following.gaps;
}

const STATES = {
  idle: "No channel", loading: "Loading the snapshot", connecting: "Connecting",
  live: "Live", waiting: "Reconnecting", stopped: "Stopped",
};

/** Speaks what changes rarely and matters, so that a screen reader is not talked over. */
function speak(following) {
  if (following !== shown.following || following.state === lastState) return;
  if (["live", "waiting", "stopped"].includes(following.state)) {
    say($("spoken"), `${STATES[following.state]}: ${following.selector}. ${following.reason}`);
  }
  lastState = following.state;
}

function render() {
  dirty = false;
  const { following } = shown;
  if (!following) return;
  const now = Date.now();
  renderLink(following, now);
  renderTitle(following);
  renderPlot(following, now);
  renderReadouts(following, now);
  renderNotice(following);
  renderState(following, now);
  renderTail(following);
}

function renderLink(following, now) {
  const { state } = following;
  $("link").dataset.state = state;
  say($("link-text"), STATES[state]);
  const silent = (now - following.heardAt) / 1000;
  const notes = {
    live: silent > 3 ? `last byte ${duration(silent)} ago` : "",
    waiting: `${following.reason}, next try in ${ONE.format(Math.max(0, following.resumesAt - now) / 1000)} s`,
    stopped: following.reason,
  };
  say($("link-note"), notes[state] ?? "");
  $("link-note").title = notes[state] ?? "";
  $("reconnect").hidden = !(state === "stopped" || (state === "waiting" && following.resumesAt - now > 1_500));
  document.title = `${state === "live" ? "" : "! "}${following.selector} · sse-gateway`;
}

function renderTitle(following) {
  say($("title"), following.selector);
  const { only } = following;
  const reducer = only?.reducer || reducers.get(following.selector);
  say($("title-note"), following.many
    ? `${count(following.members.size, "channel")}${following.membersLeftOut ? ", and more" : ""}`
    : reducer ? `reducer ${reducer}` : "");
}

/** Returns the plotted field: the one chosen, else the first that is likely, else null for the rate. */
function plotOf(following) {
  if (shown.plotChosen) return shown.plot;
  if (shown.plot === null) {
    const member = [...following.members.values()].sort((a, b) => (a.channel < b.channel ? -1 : 1)).find(({ field }) => field);
    if (member) shown.plot = { channel: member.channel, path: member.field };
  }
  return shown.plot;
}

function pointsOf(following, plot, now) {
  if (plot === null) {
    const end = Math.floor(now / 1000);
    const counted = new Map(following.seconds);
    const first = Math.max(end - shown.seconds, Math.floor(following.startedAt / 1000) + 1);
    const points = [];
    for (let second = first; second < end; second += 1) points.push([(second + 1) * 1000, counted.get(second) ?? 0]);
    return points;
  }
  const points = [];
  for (const event of following.recent) {
    if (event.channel !== plot.channel) continue;
    const value = numberIn(event, plot.path);
    if (value !== undefined) points.push([event.at, value]);
  }
  return points;
}

function renderPlot(following, now) {
  const plot = plotOf(following);
  renderFieldChoice(following, plot);
  const name = plot ? String(plot.path.at(-1) ?? "") : "events_per_second";
  const points = pointsOf(following, plot, now);
  const current = plot ? valueAt(following.members.get(plot.channel)?.value, plot.path) : following.rate(5, now);
  const latest = typeof current === "number" ? current : points.at(-1)?.[1];
  const [text, unit] = latest === undefined ? ["–", ""] : figure(latest, name);
  say($("value"), text);
  say($("unit"), unit);
  const empty = following.state === "stopped" ? "Nothing to plot." : plot ? "No value in this time." : "Counting starts with the next second.";
  chart.draw({ points, marks: following.marks.items, seconds: shown.seconds, now, name, empty });
}

function renderFieldChoice(following, plot) {
  const choices = [{ value: "", text: "events per second", group: "" }];
  for (const member of following.members.values()) {
    if (choices.length > LEAVES_LIMIT) break;
    for (const [path, value] of firstLeaves(member.value).found) {
      if (typeof value !== "number") continue;
      choices.push({ value: JSON.stringify({ channel: member.channel, path }), text: pathText(path), group: following.many ? member.channel : "" });
    }
  }
  const selected = plot ? JSON.stringify({ channel: plot.channel, path: plot.path }) : "";
  if (!choices.some(({ value }) => value === selected)) choices.push({ value: selected, text: pathText(plot.path), group: following.many ? plot.channel : "" });
  const select = $("field");
  const signature = JSON.stringify(choices);
  // An open list must not change under the pointer: only what differs is rebuilt.
  if (signature !== drawn.options) {
    drawn.options = signature;
    const groups = Map.groupBy ? Map.groupBy(choices, ({ group }) => group) : new Map([["", choices]]);
    select.replaceChildren(...[...groups].flatMap(([group, members]) => {
      const options = members.map(({ value, text }) => element("option", { value, textContent: group ? `${group} › ${text}` : text }));
      return group ? [Object.assign(element("optgroup", {}, ...options), { label: group })] : options;
    }));
  }
  if (select.value !== selected) select.value = selected;
}

function renderReadouts(following, now) {
  const { position, count: received, latencies, reconnects, gaps, lastGap } = following;
  say($("position"), position || "–");
  $("position").title = position;
  say($("position-sub"), position ? `${clockTime(millisecondsOf(position))}, gateway's clock` : "nothing received");
  say($("epoch"), following.epoch || "–");
  $("epoch").title = following.epoch;
  say($("rate"), received || following.liveSince ? `${decimals(1).format(following.rate(10, now))} /s` : "–");
  say($("rate-sub"), received ? `${WHOLE.format(received)} received` : "none yet");
  const sorted = [...latencies.last(200)].sort((a, b) => a - b);
  say($("latency"), sorted.length ? milliseconds(latencies.items.at(-1)) : "–");
  say($("latency-sub"), sorted.length ? `p50 ${milliseconds(quantile(sorted, 0.5))}, p95 ${milliseconds(quantile(sorted, 0.95))}` : "publish to here");
  $("latency").title = "From the position's milliseconds to this browser's clock; a difference between the two clocks is part of it.";
  say($("reconnects"), WHOLE.format(reconnects));
  $("reconnects").className = reconnects ? "watch" : "";
  say($("reconnects-sub"), following.state === "live" ? `up ${duration((now - following.liveSince) / 1000)}` : "not connected");
  say($("gaps"), WHOLE.format(gaps));
  $("gaps").className = gaps ? "alarm" : "";
  say($("gaps-sub"), lastGap ? `${lastGap.reason ?? "gap"}, ${duration((now - lastGap.at) / 1000)} ago`.replace("now ago", "now") : "none");
}

function renderNotice(following) {
  const { notice } = following;
  $("notice").hidden = notice === null;
  if (notice === null) return;
  $("notice").dataset.kind = notice.kind;
  say($("notice-text"), notice.text);
}

/* --------------------------------------------------------------------------------------------- the state */

function clearState() {
  drawn.fields.clear();
  drawn.stateKind = "";
  $("state").replaceChildren();
}

function renderState(following, now) {
  const { only } = following;
  $("state-view").hidden = following.many;
  say($("state-title"), following.many ? "Channels" : "State");
  say($("state-note"), following.many || !only?.id || only.nothing ? "" : `at ${only.id}`);
  if (following.many) return renderMembers(following, now);
  if (!only || only.nothing) return renderStateText("empty", absence(following, only));
  if (shown.view === "json") return renderStateText("json", cut(JSON.stringify(only.value, null, 2), STATE_LIMIT_CHARS));
  renderFields(only);
}

/** Returns why there is no state to show. */
function absence(following, only) {
  if (!only?.id && following.state === "stopped") return `No snapshot: ${following.reason}.`;
  if (!only?.id && following.state === "waiting") return "The snapshot could not be loaded yet.";
  if (!only?.id) return "Loading…";
  if (only.reason?.includes("keeps no state")) return "This channel keeps no state: its events stand for themselves.";
  return "Nothing yet. The first event becomes the state.";
}

function renderStateText(kind, text) {
  if (drawn.stateKind !== kind) {
    clearState();
    drawn.stateKind = kind;
    $("state").append(kind === "json" ? element("pre", { tabIndex: 0 }) : element("p", { className: "empty" }));
  }
  say($("state").firstChild, text);
}

/** Returns the table's body, and makes the table when another kind of picture was there. */
function stateTable(kind, caption) {
  if (drawn.stateKind !== kind) {
    clearState();
    drawn.stateKind = kind;
    $("state").append(element("table", {}, element("caption", { className: "sr", textContent: caption }), element("tbody")));
  }
  return $("state").querySelector("tbody");
}

function plotButton(text, plot) {
  const button = element("button", { type: "button", className: "plot", textContent: text, title: "Plot this field" });
  button.addEventListener("click", () => choosePlot(plot));
  return button;
}

const samePlot = (a, b) => a !== null && a.channel === b.channel && a.path.join("\n") === b.path.join("\n");

function renderFields(member) {
  const body = stateTable("fields", "Fields of the state");
  const { found, more } = firstLeaves(member.value);
  const keep = new Set();
  found.forEach(([path, value], index) => {
    const numeric = typeof value === "number";
    const key = `${numeric}:${JSON.stringify(path)}`;
    keep.add(key);
    let row = drawn.fields.get(key);
    if (!row) {
      const plot = { channel: member.channel, path };
      const name = numeric ? plotButton(pathText(path), plot) : element("span", { textContent: pathText(path) });
      const text = element("span");
      const unit = element("span", { className: "unit" });
      const cell = element("td", { className: numeric ? "figure" : "figure text" }, text, unit);
      row = { node: element("tr", {}, element("th", { scope: "row", className: "path" }, name), cell), name, text, unit, plot };
      drawn.fields.set(key, row);
    }
    const [text, unit] = numeric ? figure(value, String(path.at(-1) ?? "")) : [JSON.isRawJSON?.(value) ? value.rawJSON : typeof value === "string" ? value : JSON.stringify(value), ""];
    say(row.text, text);
    say(row.unit, unit);
    row.text.title = numeric ? String(value) : "";
    if (numeric) row.name.setAttribute("aria-pressed", String(samePlot(shown.plot, row.plot)));
    if (body.children[index] !== row.node) body.insertBefore(row.node, body.children[index] ?? null);
  });
  dropRows(keep);
  say($("state-note"), `at ${member.id}${more ? `, first ${LEAVES_LIMIT} fields` : ""}`);
}

function renderMembers(following, now) {
  if (following.members.size === 0) return renderStateText("empty", "No channel under this prefix yet. Each appears with its first event.");
  const body = stateTable("members", "Channels under the prefix");
  const keep = new Set();
  [...following.members.values()].sort((a, b) => (a.channel < b.channel ? -1 : 1)).forEach((member, index) => {
    keep.add(member.channel);
    const row = drawn.fields.get(member.channel) ?? memberRow(member, following.selector.slice(0, -1));
    const value = member.field ? valueAt(member.value, member.field) : undefined;
    const name = String(member.field?.at(-1) ?? "");
    const [text, unit] = typeof value === "number" ? figure(value, name) : [brief(member.value), ""];
    say(row.text, text);
    say(row.unit, unit);
    say(row.field, member.field ? pathText(member.field) : member.at ? `${duration((now - member.at) / 1000)} ago`.replace("now ago", "now") : "");
    row.line.setAttribute("d", sparkPath(member.trace.last(90), name));
    row.name.disabled = !member.field;
    row.spark.hidden = !member.field;
    row.figure.colSpan = member.field ? 1 : 2;
    row.figure.className = member.field ? "figure" : "figure text";
    row.name.setAttribute("aria-pressed", String(Boolean(member.field) && samePlot(shown.plot, { channel: member.channel, path: member.field })));
    if (body.children[index] !== row.node) body.insertBefore(row.node, body.children[index] ?? null);
  });
  dropRows(keep);
  say($("state-note"), following.membersLeftOut ? `the first ${MEMBERS_LIMIT}` : "");
}

function memberRow(member, prefix) {
  const name = element("button", { type: "button", className: "plot", textContent: member.channel.slice(prefix.length), title: `Plot ${member.channel}` });
  name.addEventListener("click", () => { if (member.field) choosePlot({ channel: member.channel, path: member.field }); });
  const line = drawing("path", {});
  const text = element("span");
  const unit = element("span", { className: "unit" });
  const field = element("span", { className: "field-name" });
  const spark = element("td", { className: "spark-cell" }, drawing("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, line));
  const figure = element("td", {}, text, unit);
  const node = element("tr", {}, element("th", { scope: "row", className: "path" }, name, field), spark, figure);
  const row = { node, name, line, text, unit, field, spark, figure };
  drawn.fields.set(member.channel, row);
  return row;
}

function dropRows(keep) {
  for (const [key, { node }] of drawn.fields) {
    if (keep.has(key)) continue;
    node.remove();
    drawn.fields.delete(key);
  }
}

function sparkPath(values, name) {
  if (values.length < 2) return "";
  const [low, high] = domainOf(values, name);
  return svgPath(values.map((value, index) => [(index / (values.length - 1)) * 100, 18.5 - ((value - low) / (high - low)) * 17]));
}

const cut = (text, limit) => (text.length > limit ? `${text.slice(0, limit)}…` : text);

function brief(value) {
  if (value === undefined) return "–";
  return cut(typeof value === "string" ? value : JSON.stringify(value), 60);
}

/* ---------------------------------------------------------------------------------------------- the tail */

function setPaused(paused) {
  shown.paused = paused;
  shown.pausedAt = shown.following?.count ?? 0;
  $("pause").setAttribute("aria-pressed", String(paused));
  say($("pause"), paused ? "Resume" : "Pause");
  dirty = true;
}

function renderTail(following) {
  $("rows").classList.toggle("many", following.many);
  $("rows").classList.toggle("typed", following.rows.some(({ type }) => type !== undefined && type !== "message"));
  $("tail-empty").hidden = following.rows.length > 0;
  if (following.rows.length === 0) {
    say($("tail-empty"), following.state === "stopped" ? "No tail." : "Events appear here as they are published, newest first.");
  }
  const missed = following.count - shown.pausedAt;
  say($("tail-note"), shown.paused ? `paused, ${WHOLE.format(missed)} newer` : "");
  if (shown.paused) return;
  const list = $("rows");
  const rows = following.rows.slice(-TAIL_LIMIT).reverse();
  const keep = new Set(rows);
  for (const [row, node] of drawn.rows) {
    if (keep.has(row)) continue;
    node.remove();
    drawn.rows.delete(row);
  }
  // Newest first: new ones go before the first that is already there; older ones follow at the end.
  let next = list.firstChild;
  for (const row of rows) {
    let node = drawn.rows.get(row);
    if (node === undefined) {
      node = row.note ? noteRow(row) : eventRow(row, following.many ? following.selector.slice(0, -1) : "");
      drawn.rows.set(row, node);
      list.insertBefore(node, next);
    } else next = node.nextSibling;
  }
}

function noteRow({ note, text, at }) {
  return element("li", {}, element("p", { className: `note ${note}`, textContent: `${clockTime(at).slice(0, 8)}  ${text}` }));
}

function eventRow(event, prefix) {
  const text = typeof event.data === "string" ? event.data : JSON.stringify(event.data);
  const data = element("span", { className: "data" });
  if (event.key) data.append(element("span", { className: "key", textContent: `${event.key} ` }));
  data.append(text === "" ? "(empty)" : cut(text, 300));
  const cells = [element("span", { className: "id", textContent: event.id })];
  if (prefix !== "") cells.push(element("span", { className: "channel", textContent: event.channel.slice(prefix.length), title: event.channel }));
  cells.push(element("span", { className: event.type === "message" ? "type" : "type named", textContent: event.type, title: event.type }), data);
  const details = element("details", {}, element("summary", {}, ...cells));
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    if (details.children.length === 1) details.append(eventDetail(event));
    setPaused(true); // What one reads should not walk away.
  });
  return element("li", { className: event.before ? "before" : "" }, details);
}

function eventDetail(event) {
  const facts = [`${event.channel}`, `type ${event.type}`];
  if (event.key) facts.push(`key ${event.key}`);
  facts.push(`published ${clockTime(millisecondsOf(event.id))}`);
  if (!event.before) facts.push(`here ${milliseconds(event.at - millisecondsOf(event.id))} later`);
  const text = typeof event.data === "string" ? event.data : JSON.stringify(event.data, null, 2);
  return element("div", { className: "detail" }, element("p", { textContent: facts.join(" · ") }), element("pre", { textContent: text, tabIndex: 0 }));
}

/* -------------------------------------------------------------------------------------- list of channels */

const list = { channels: [], loadedAt: 0, more: false, problem: "", nodes: new Map() };

async function loadChannels() {
  const filter = filterText();
  try {
    // With more channels than one page holds, the gateway filters, by prefix.
    const prefix = list.more && /^[\w.~/-]+$/.test(filter) ? filter : "";
    const page = await getJson(address("channels", undefined, { prefix, limit: CHANNELS_PAGE }), undefined, "no-store");
    list.channels = page.channels;
    list.loadedAt = Date.now();
    list.more = prefix !== "" || Boolean(page.next);
    list.problem = "";
    learn(page.channels);
  } catch (error) {
    list.problem = error.problem ? describe(error.problem) : "The gateway cannot be reached.";
  }
  renderChannels();
}

const filterText = () => $("selector").value.trim().replace(/\*$/, "");

/** Before anything is followed, the screen offers what there is. */
function renderSuggestions(names) {
  if (shown.following) return;
  say($("suggestions-text"), names.length > 0 ? "Pick a channel from the list, or follow all that share a prefix:" : "There are no channels yet. Publish the first event below, and it appears here.");
  const key = names.join();
  if (list.suggested === key) return;
  list.suggested = key;
  $("suggestions-list").replaceChildren(...names.map((name) => element("li", {}, element("a", { href: `#${encodeURI(name)}`, textContent: name }))));
}

function renderChannels() {
  const filter = filterText().toLowerCase();
  const exact = shown.following?.selector === $("selector").value.trim();
  const matching = list.channels.filter(({ channel }) => exact || channel.toLowerCase().includes(filter));
  const groups = new Map();
  for (const row of matching) {
    const slash = row.channel.indexOf("/");
    const group = slash < 0 ? "" : row.channel.slice(0, slash + 1);
    groups.set(group, [...(groups.get(group) ?? []), row]);
  }
  const entries = [];
  for (const [group, rows] of [...groups].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (group !== "" && rows.length > 1) entries.push({ name: `${group}*`, note: count(rows.length, "channel"), group: true });
    const since = (Date.now() - list.loadedAt) / 1000;
    for (const { channel, age_seconds: age } of rows) entries.push({ name: channel, note: age + since < 6 ? "live" : duration(age + since), group: false });
  }
  placeEntries(entries);
  const groupNames = entries.filter(({ group }) => group).map(({ name }) => name);
  if (list.problem === "") renderSuggestions((groupNames.length > 0 ? groupNames : entries.map(({ name }) => name)).slice(0, 8));
  const empty = $("channel-empty");
  empty.hidden = entries.length > 0 && list.problem === "" && !list.more;
  say(empty, list.problem
    || (entries.length === 0 ? (list.channels.length === 0 ? "No channels yet. Publish one below." : "No known channel matches. Enter follows the name all the same.")
      : `Showing the first ${WHOLE.format(CHANNELS_PAGE)}; type a prefix to see others.`));
  say($("rail-toggle"), `${$("rail").dataset.open === undefined ? "Show" : "Hide"} ${WHOLE.format(matching.length)} channels`);
  markCurrent();
}

function placeEntries(entries) {
  const container = $("channel-list");
  const keep = new Set(entries.map(({ name }) => name));
  for (const [name, { node }] of list.nodes) {
    if (keep.has(name)) continue;
    node.remove();
    list.nodes.delete(name);
  }
  entries.forEach(({ name, note, group }, index) => {
    let entry = list.nodes.get(name);
    if (!entry) {
      const cut = group ? 0 : name.indexOf("/") + 1;
      const label = element("span", { className: "name" }, element("span", { className: "prefix", textContent: name.slice(0, cut) }), name.slice(cut));
      const age = element("span", { className: "age" });
      const link = element("a", { href: `#${encodeURI(name)}` }, label, age);
      entry = { node: element("li", { className: group ? "group" : "" }, link), link, age };
      list.nodes.set(name, entry);
    }
    say(entry.age, note);
    if (container.children[index] !== entry.node) container.insertBefore(entry.node, container.children[index] ?? null);
  });
}

function markCurrent() {
  for (const [name, { link }] of list.nodes) {
    if (name === shown.following?.selector) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

/* ------------------------------------------------------------------------------------------ publish by hand */

async function publishByHand(form) {
  const fields = Object.fromEntries(new FormData(form));
  const button = form.querySelector("button[type=submit]");
  clearProblems();
  answer("", "");
  if (fields.channel.trim() === "") return showProblem({ errors: [{ field: "channel", rule: "must not be empty" }] });
  button.disabled = true;
  const began = performance.now();
  try {
    const url = address("publish", fields.channel.trim(), { type: fields.type, key: fields.key });
    const type = fields.format === "json" ? "application/json" : "text/plain; charset=utf-8";
    const response = await fetch(url, { method: "POST", headers: { "Content-Type": type }, body: fields.data });
    if (!response.ok) return showProblem(await problemOf(response));
    const { id } = await response.json();
    answer("stored", "Stored at ", element("span", { className: "mono", textContent: id }), ` in ${milliseconds(performance.now() - began)}.`);
    loadChannels();
  } catch {
    answer("refused", "The gateway cannot be reached: nothing is known of this event.");
  } finally {
    button.disabled = false;
  }
}

function answer(kind, ...content) {
  $("answer").dataset.kind = kind;
  $("answer").replaceChildren(...content);
}

const FORM_FIELDS = ["channel", "type", "key", "data"];

function clearProblems() {
  for (const name of FORM_FIELDS) {
    $(`wrong-${name}`).hidden = true;
    $(`publish-${name}`).removeAttribute("aria-invalid");
    $(`publish-${name}`).removeAttribute("aria-describedby");
  }
}

/** Shows what is wrong at the field that it is about, and the rest as the answer. */
function showProblem(problem) {
  const errors = problem.errors?.length ? problem.errors : problem.field ? [problem] : [];
  const placed = errors.filter(({ field }) => FORM_FIELDS.includes(field));
  for (const { field, rule, detail } of placed) {
    say($(`wrong-${field}`), rule ?? detail);
    $(`wrong-${field}`).hidden = false;
    $(`publish-${field}`).setAttribute("aria-invalid", "true");
    $(`publish-${field}`).setAttribute("aria-describedby", `wrong-${field}`);
  }
  const others = errors.filter((error) => !placed.includes(error)).map(({ field, rule, detail }) => `${field}: ${rule ?? detail}`);
  const rest = placed.length > 0 && others.length === 0 ? "Not stored." : [problem.status ? describe(problem) : "", ...others].filter(Boolean).join(" ");
  answer("refused", rest);
  if (placed.length > 0) $(`publish-${placed[0].field}`).focus();
}

/* ------------------------------------------------------------------------------------------- what one does */

function choosePlot(plot) {
  shown.plot = plot;
  shown.plotChosen = true;
  render();
}

function openChannel(selector) {
  if (decodeURI(location.hash.slice(1)) === selector) follow(selector);
  else location.hash = encodeURI(selector);
}

function followHash() {
  let selector;
  try { selector = decodeURI(location.hash.slice(1)); } catch { selector = location.hash.slice(1); }
  if (selector === "" || selector === shown.following?.selector) return;
  delete $("rail").dataset.open;
  $("rail-toggle").setAttribute("aria-expanded", "false");
  $("selector").value = "";
  follow(selector);
  renderChannels();
}

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  say($("theme"), `Theme: ${theme}`);
  try { localStorage.setItem("sse-gateway-theme", theme); } catch { /* Private windows forget it. */ }
}

function savedTheme() {
  try { return THEMES.find((theme) => theme === localStorage.getItem("sse-gateway-theme")) ?? "system"; } catch { return "system"; }
}

function listen() {
  $("follow").addEventListener("submit", (event) => {
    event.preventDefault();
    const selector = $("selector").value.trim();
    if (selector !== "") openChannel(selector);
  });
  $("selector").addEventListener("input", () => { renderChannels(); if (list.more) loadChannels(); });
  $("rail-toggle").addEventListener("click", () => {
    const open = $("rail").toggleAttribute("data-open");
    $("rail-toggle").setAttribute("aria-expanded", String(open));
    renderChannels();
  });
  $("skip").addEventListener("click", () => $("main").focus());
  $("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(savedTheme()) + 1) % THEMES.length]));
  $("reconnect").addEventListener("click", () => {
    if (shown.following.state === "stopped") follow(shown.following.selector);
    else shown.following.connectNow();
  });
  $("notice-close").addEventListener("click", () => { shown.following.notice = null; render(); });
  $("pause").addEventListener("click", () => setPaused(!shown.paused));
  $("field").addEventListener("change", ({ target }) => choosePlot(target.value === "" ? null : JSON.parse(target.value)));
  for (const button of document.querySelectorAll("[data-seconds]")) {
    button.addEventListener("click", () => { shown.seconds = Number(button.dataset.seconds); press("[data-seconds]", button); });
  }
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => { shown.view = button.dataset.view; press("[data-view]", button); });
  }
  $("publish").addEventListener("submit", (event) => { event.preventDefault(); publishByHand(event.target); });
  $("publish-data").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish").requestSubmit();
  });
  addEventListener("hashchange", followHash);
  addEventListener("pagehide", () => shown.following?.stop());
  addEventListener("pageshow", (event) => { if (event.persisted && shown.following) follow(shown.following.selector); });
}

function press(group, pressed) {
  for (const button of document.querySelectorAll(group)) button.setAttribute("aria-pressed", String(button === pressed));
  render();
}

async function main() {
  setTheme(savedTheme());
  listen();
  followHash();
  await loadChannels();
  setInterval(() => { if (!document.hidden) loadChannels(); }, 5_000);
  // Five pictures a second are enough for the eye; the time axis needs one even in silence.
  let pictures = 0;
  setInterval(() => { if (!document.hidden && (dirty || pictures++ % 2 === 0)) render(); }, 200);
}

main();
