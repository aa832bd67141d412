// @ts-check
/**
 * Follows one channel of the gateway: every event once, in order, and the state that they add up
 * to, over whichever transport gets through. Draws nothing; keeps nothing unless it is asked to.
 *
 * @typedef {{id: string, type: string, key?: string, data: any}} ChannelEvent An event; `data` is
 *   its JSON value, or its text.
 * @typedef {{id: string, state: any}} ChannelState What the events up to `id` add up to; `state`
 *   is undefined when there is nothing yet, or the namespace keeps none.
 * @typedef {{reason: string, id: string, state: any}} ChannelGap Events up to `id` were not told:
 *   `state` stands for them.
 * @typedef {"events" | "slices" | "poll" | "snapshots"} Transport
 * @typedef {{transport: Transport, connected: boolean, stale: boolean, leads: boolean,
 *   error?: any}} ChannelStatus `stale`: an edge answered with something old. `leads`: this tab
 *   has the connection. `error`: the problem for which it gave up.
 * @typedef {{channel: string, id: string, epoch: string, reducer?: string, slice_seconds?: number,
 *   state?: any, exists?: boolean}} Snapshot
 * @typedef {object} Options
 * @property {Transport[]} [transports] Which ones to use, the best first.
 * @property {boolean} [state] Whether to fold the state.
 * @property {boolean} [persist] Whether to keep state and position in IndexedDB.
 * @property {boolean} [share] Whether the tabs of a browser share one connection.
 * @property {Snapshot} [snapshot] The document to begin with, when the page has it already.
 * @property {AbortSignal} [signal] Ends it, as `close()` does.
 * @property {number} [heartbeatSeconds] The gateway's setting of streams.heartbeat_seconds.
 * @property {number} [patienceSeconds] How long a stream may take to say its first word.
 * @property {number} [refreshSeconds] From one snapshot to the next, where nothing better works.
 * @property {number} [betterSeconds] After how long a better transport is tried again, at first.
 * @property {number} [connections] How many connections this page's channels hold, without HTTP/2.
 * @typedef {{event: ChannelEvent, state: ChannelState, gap: ChannelGap, status: ChannelStatus}} Told
 * @typedef {Omit<Channel, "addEventListener"> & {addEventListener<K extends keyof Told>(type: K,
 *   listener: (event: CustomEvent<Told[K]>) => void, options?: AddEventListenerOptions): void}} Followed
 * @typedef {{id: string | undefined, type: string, data: string | undefined}} Block
 */

/** @type {Transport[]} */
const TRANSPORTS = ["events", "slices", "poll", "snapshots"];
const TICK_MS = 500;
const WAIT_SECONDS = 25; // Below the idle limits of common proxies.
const SPREAD_MS = 200; // Readers of a slice do not ask for the next one in the same instant.
const HELD_MS = 3_000; // A slice in its last 2 s is held back.
const SHORTEST_PAUSE_MS = 100; // Whatever `retry` says.
const LONGEST_PAUSE_MS = 30_000;
const LONGEST_BETTER_MS = 600_000;
const STEADY_MS = 60_000; // A transport that lasted this long works.
const STALE_SECONDS = 60; // At the least, whatever the answer says of its life.
const TRIES = 3;
const DEFAULTS = {
  transports: TRANSPORTS,
  state: true,
  persist: false,
  share: false,
  heartbeatSeconds: 15,
  patienceSeconds: 5,
  refreshSeconds: 5,
  betterSeconds: 10,
  connections: 4, // Of the six that a browser has for a host: others are to get through.
};

/* What ends a connection */

/** Nothing came for too long; `heard` when something had come before. */
class Silent extends Error {
  /** @param {boolean} heard */
  constructor(heard) {
    super("nothing came");
    this.heard = heard;
  }
}

/** The device slept, or the network is another: nothing is wrong with the transport. */
class Woken extends Error {}

/** Events after the position are gone; `id` is where to go on. */
class Gap extends Error {
  /** @param {string} reason @param {string} id */
  constructor(reason, id) {
    super(reason);
    this.id = id;
  }
}

/** An answer that was none. */
class Refused extends Error {
  /** @param {number} status @param {any} [problem] @param {number} [retryMs] */
  constructor(status, problem, retryMs = 0) {
    super(`refused: ${status}`);
    this.status = status;
    this.problem = problem;
    this.retryMs = retryMs;
  }

  /** Whether asking again the same way is of no use. */
  get final() {
    return this.status >= 400 && this.status < 500 && ![408, 425, 429].includes(this.status);
  }
}

/** @param {Response} response */
async function refusal(response) {
  const problem = await response.json().catch(() => undefined);
  const retryMs = Number(response.headers.get("Retry-After")) * 1_000 || 0;
  return new Refused(response.status, problem, retryMs);
}

/* Positions and folding */

/**
 * Compares two positions as a sort does.
 * @param {string} a @param {string} b
 */
export function comparePositions(a, b) {
  const [aMs, aSequence] = a.split("-").map(Number);
  const [bMs, bSequence] = b.split("-").map(Number);
  return aMs - bMs || aSequence - bSequence;
}

/** @param {any} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Returns `target` with a merge patch applied; changes neither. Source: RFC 7396 section 2.
 * @param {any} target @param {any} patch
 * @returns {any}
 */
function mergePatch(target, patch) {
  if (!isObject(patch)) return patch;
  // A map, then fromEntries: a name may be `__proto__`.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, mergePatch(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** @param {string} text */
function parseData(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/* Connections */

/** How many the page's channels hold, by origin. @type {Map<string, number>} */
const held = new Map();

/**
 * Whether requests to an origin share one connection. Of another origin's answers a browser says so
 * only if they have `Timing-Allow-Origin`.
 * @param {string} origin
 */
function isMultiplexed(origin) {
  const entries = /** @type {PerformanceResourceTiming[]} */ (performance.getEntries());
  return entries.some((e) => /^h[23]/.test(e.nextHopProtocol) && e.name.startsWith(`${origin}/`));
}

/** @param {string} origin @param {number} change */
function hold(origin, change) {
  held.set(origin, (held.get(origin) ?? 0) + change);
}

/* Streams */

/**
 * Returns a function that takes a stream's text as it comes, and returns the blocks that it
 * completes. Source: WHATWG HTML 9.2.6.
 * @param {(ms: number) => void} retry
 */
function blockParser(retry) {
  let rest = "";
  let block = /** @type {Block} */ ({ id: undefined, type: "", data: undefined });
  let hasFields = false; // A `retry` alone shows that a stream has begun; a comment does not.
  return (/** @type {string} */ text) => {
    rest += text;
    const blocks = [];
    // A CR at the end may be the first half of a CRLF.
    const end = rest.endsWith("\r") ? rest.length - 1 : rest.length;
    const lines = rest.slice(0, end).split(/\r\n|\r|\n/);
    rest = lines.pop() + rest.slice(end);
    for (const line of lines) {
      if (line === "") {
        if (hasFields) blocks.push(block);
        block = { id: undefined, type: "", data: undefined };
        hasFields = false;
        continue;
      }
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      hasFields ||= name !== "";
      const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
      if (name === "id") block.id = value;
      else if (name === "event") block.type = value;
      else if (name === "data")
        block.data = block.data === undefined ? value : `${block.data}\n${value}`;
      else if (name === "retry" && /^[0-9]+$/.test(value)) retry(Number(value));
    }
    return blocks;
  };
}

/* Keeping */

/** @param {() => void} letGo @returns {Promise<IDBDatabase>} */
function openDatabase(letGo) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("sse-gateway", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("channels");
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      // Whoever deletes what is kept, or has a newer module, need not wait for this page.
      opening.result.onversionchange = letGo;
      resolve(opening.result);
    };
  });
}

/**
 * Returns what a request on the kept channels comes to.
 * @param {IDBDatabase} database @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} use
 * @returns {Promise<any>}
 */
function transact(database, mode, use) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("channels", mode);
    const request = use(transaction.objectStore("channels"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.commit(); // A page that goes away is not there to be asked.
  });
}

/**
 * One channel that is followed; `follow` makes it. Tells `event`, `state`, `gap` and `status`, each
 * a CustomEvent with what it tells in `detail`.
 */
class Channel extends EventTarget {
  #base;
  #channel;
  /** @type {typeof DEFAULTS & Options} */
  #options;
  /** @type {string | undefined} */
  #position;
  #epoch = "";
  #reducer = "";
  #sliceSeconds = 0;
  #exists = false;
  /** @type {any} */
  #state;
  #ownsState = false; // Nobody else holds the state: it may be changed in place.
  #stateIsNew = false;
  /** @type {Gap | undefined} */
  #gap;
  /** @type {ChannelStatus} */
  #status = { transport: "events", connected: false, stale: false, leads: false };

  #closed = new AbortController();
  /** From start to close, or to the page's going into bfcache. */
  #life = new AbortController();
  /** The one request or stream that is open. */
  #line = new AbortController();
  #heardAt = 0;
  #askedAt = 0;
  #silenceMs = 0;
  #progress = false;
  /** @type {(() => void) | undefined} */
  #endPause;

  #index = 0; // Of the transport.
  #betterAt = 0;
  #betterMs;
  #retryMs = 2_000;
  #waitSeconds = WAIT_SECONDS;
  #cursor = "";
  #wokeAt = 0;
  #crowded = false; // Too many other channels of the page hold a connection.
  #clockMs = 0; // How far the gateway's clock is ahead of this one.

  /** @type {BroadcastChannel | undefined} */
  #tabs;
  #unanswered = 0; // Questions to the tab that leads.
  #catchesUp = false;
  #toldId = "";
  /** @type {ChannelEvent[]} */
  #untold = [];
  /** @type {Promise<IDBDatabase> | undefined} Open, so that the last words of a page are kept. */
  #database;
  #savedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #saving;

  /** @param {string | URL} base @param {string} channel @param {Options} options */
  constructor(base, channel, options) {
    super();
    this.#base = new URL(base, globalThis.location?.href).href.replace(/\/*$/, "/");
    this.#channel = channel;
    this.#options = { ...DEFAULTS, ...options };
    this.#betterMs = this.#options.betterSeconds * 1_000;
    this.#status = this.#newStatus({});
    const { signal } = this.#closed;
    options.signal?.addEventListener("abort", () => this.close(), { signal });
    /** @param {EventTarget | undefined} target @param {string} type @param {() => void} listener */
    const on = (target, type, listener) => target?.addEventListener?.(type, listener, { signal });
    const stop = () => this.#stop();
    const start = () => this.#life.signal.aborted && this.#start();
    const { document } = globalThis;
    // A page with an open connection, or a lock, would not be kept for when the reader comes back.
    on(globalThis, "pagehide", stop);
    on(globalThis, "pageshow", start);
    // Nor can one that is frozen read, or tell other tabs.
    on(document, "freeze", stop);
    on(document, "resume", start);
    on(globalThis, "online", () => this.#wake(true));
    on(document, "visibilitychange", () => document.visibilityState === "visible" && this.#wake(false));
    if (options.signal?.aborted) this.close();
    else this.#start();
  }

  /** The position of the last event that was told, undefined before the first snapshot. */
  get position() {
    return this.#position;
  }

  /** What the events up to `position` add up to. */
  get state() {
    this.#ownsState = false;
    return this.#state;
  }

  get status() {
    return this.#status;
  }

  /** Ends it: nothing is told any more. */
  close() {
    this.#stop();
    this.#closed.abort();
  }

  #start() {
    const { signal } = (this.#life = new AbortController());
    const shares = this.#options.share && navigator.locks && globalThis.BroadcastChannel;
    // A listener that is added at once must miss nothing.
    const alone = () => this.#run(signal);
    // Where nothing may be shared, as in a frame without an origin, each has its own.
    queueMicrotask(() => (shares ? this.#join(signal).catch(alone) : alone()));
  }

  #stop() {
    if (this.#options.persist && this.#status.leads) this.#save();
    // Closes when all is written. An open one may keep the page out of bfcache.
    this.#forgetDatabase();
    this.#life.abort(new Woken());
    this.#tell({ connected: false, leads: false });
  }

  /** @param {boolean} anew Whether the connection is no good, however short it was silent. */
  #wake(anew) {
    this.#wokeAt = Date.now();
    const quietMs = this.#wokeAt - this.#heardAt;
    this.#endPause?.();
    if (anew || quietMs > this.#options.heartbeatSeconds * 1_200) this.#line.abort(new Woken());
  }

  /** @param {number} ms @param {AbortSignal} life @returns {Promise<void>} */
  #pause(ms, life) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        life.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      life.addEventListener("abort", end);
      if (life.aborted) end();
      this.#endPause = end;
    });
  }

  /* Telling */

  /** @param {string} type @param {any} detail */
  #emit(type, detail) {
    if (!this.#closed.signal.aborted) this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** @param {Partial<ChannelStatus>} changes */
  #newStatus(changes) {
    const transport = this.#crowded ? "poll" : this.#options.transports[this.#index];
    return { ...this.#status, ...changes, transport };
  }

  /** Tells the status, if it is another. @param {Partial<ChannelStatus>} changes */
  #tell(changes) {
    const status = this.#newStatus(changes);
    if (JSON.stringify(status) === JSON.stringify(this.#status)) return;
    this.#status = status;
    this.#emit("status", status);
    if (status.leads) this.#post({ kind: "status", status });
  }

  /** Takes an event, once. @param {ChannelEvent} event */
  #deliver(event) {
    if (this.#closed.signal.aborted) return; // By who was told the event before.
    if (comparePositions(event.id, /** @type {string} */ (this.#position)) <= 0) return;
    this.#position = event.id;
    this.#exists = this.#progress = this.#stateIsNew = true;
    this.#untold.push(event);
    if (this.#options.state) this.#fold(event);
    this.#emit("event", event);
  }

  /** @param {ChannelEvent} event */
  #fold({ key = "", data }) {
    if (this.#reducer === "last") this.#state = data;
    else if (this.#reducer === "merge") this.#state = mergePatch(this.#state, data);
    else if (this.#reducer === "keyed") {
      // Copied once for all events that come together: whoever was told the state may keep it.
      if (!this.#ownsState) this.#state = { ...this.#state };
      this.#ownsState = true;
      if (data === "") delete this.#state[key];
      else {
        const value = { value: data, writable: true, enumerable: true, configurable: true };
        Object.defineProperty(this.#state, key, value); // A key may be `__proto__`.
      }
    }
  }

  /** Tells the state, and the other tabs, of all events that came together. */
  #flush() {
    const id = /** @type {string} */ (this.#position);
    if (this.#status.leads && this.#toldId !== id) {
      this.#post({ kind: "events", previous: this.#toldId, events: this.#untold, id });
      this.#toldId = id;
    }
    this.#untold = [];
    if (!this.#stateIsNew) return;
    this.#stateIsNew = this.#ownsState = false;
    if (this.#options.state) this.#emit("state", { id, state: this.#state });
    if (this.#options.persist && this.#status.leads) this.#saveSoon();
  }

  /** Begins again from a snapshot. @param {Snapshot} snapshot @param {string} [reason] */
  #take(snapshot, reason) {
    const { id, state } = snapshot;
    this.#position = this.#toldId = id;
    this.#epoch = snapshot.epoch;
    this.#reducer = snapshot.reducer ?? this.#reducer;
    this.#sliceSeconds = snapshot.slice_seconds ?? this.#sliceSeconds;
    this.#exists = snapshot.exists ?? "state" in snapshot;
    this.#state = this.#options.state ? state : undefined;
    this.#ownsState = false;
    this.#stateIsNew = true;
    this.#untold = [];
    if (this.#status.leads) this.#post({ kind: "snapshot", snapshot: this.#snapshot(), reason });
    if (reason) this.#emit("gap", { reason, id, state: this.#state });
    this.#flush();
  }

  /** @returns {Snapshot} */
  #snapshot() {
    return {
      channel: this.#channel,
      id: /** @type {string} */ (this.#position),
      epoch: this.#epoch,
      reducer: this.#reducer,
      slice_seconds: this.#sliceSeconds,
      state: this.#state,
      exists: this.#exists,
    };
  }

  /* Keeping */

  /** Who folds no state has none to give to one that does. */
  get #name() {
    return `sse-gateway ${this.#options.state ? "" : "events "}${this.#base}${this.#channel}`;
  }

  /**
   * Without storage, or without room in it, the next visit begins with the snapshot.
   * @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} use
   * @returns {Promise<any>}
   */
  async #keep(mode, use) {
    try {
      this.#database ??= openDatabase(() => this.#forgetDatabase());
      return await transact(await this.#database, mode, use);
    } catch {
      this.#forgetDatabase();
    }
  }

  #forgetDatabase() {
    this.#database?.then((database) => database.close()).catch(() => {});
    this.#database = undefined;
  }

  #saveSoon() {
    this.#saving ??= setTimeout(() => this.#save(), Math.max(0, this.#savedAt + 1_000 - Date.now()));
  }

  #save() {
    clearTimeout(this.#saving);
    this.#saving = undefined;
    this.#savedAt = Date.now();
    // Another tab may lead by now, and have come further.
    if (this.#position === undefined || !this.#status.leads) return;
    const snapshot = this.#snapshot();
    this.#keep("readwrite", (store) => store.put(snapshot, this.#name));
  }

  /* Tabs */

  /** @param {any} message */
  #post(message) {
    this.#tabs?.postMessage(message);
  }

  /** Shares one connection with the other tabs. @param {AbortSignal} life */
  async #join(life) {
    const tabs = (this.#tabs = new BroadcastChannel(this.#name));
    tabs.onmessage = ({ data }) => life.aborted || this.#hear(data);
    let steal = false;
    let reign = new AbortController();
    // A tab that sleeps without a word keeps its lock, and tells nothing.
    const timer = setInterval(() => {
      if (this.#status.leads) return;
      steal = this.#unanswered++ > 1;
      if (steal) reign.abort();
      else this.#post({ kind: "ask" });
    }, this.#options.patienceSeconds * 1_000);
    const end = () => {
      clearInterval(timer);
      tabs.close();
      reign.abort(life.reason);
    };
    life.addEventListener("abort", end);
    if (life.aborted) end();
    while (!life.aborted) {
      this.#post({ kind: "hello" });
      reign = new AbortController();
      const { signal } = reign;
      let leads = false;
      const lead = () => {
        leads = true;
        return this.#run(signal);
      };
      const options = steal ? { steal } : { signal };
      steal = false;
      this.#unanswered = 0;
      // The lock is free when the tab that has it closes, whatever way.
      await navigator.locks.request(this.#name, options, lead).catch(() => {});
      if (life.aborted) return;
      if (!leads && !signal.aborted) return this.#run(life); // No locks.
      reign.abort(new Woken()); // Stolen, if it did lead.
      if (leads) this.#tell({ connected: false, leads: false });
    }
  }

  /** @param {any} message */
  #hear({ kind, previous, events, id, snapshot, reason, status }) {
    const at = this.#position;
    if (this.#status.leads) {
      if (kind !== "hello" && kind !== "ask") return;
      if (kind === "hello" && at !== undefined)
        this.#post({ kind: "snapshot", snapshot: this.#snapshot() });
      // By a timer: a frozen page hears what it is asked, but reads nothing and has no timers.
      setTimeout(() => this.#status.leads && this.#post({ kind: "status", status: this.#status }));
      return;
    }
    if (kind !== "hello" && kind !== "ask") this.#unanswered = 0;
    if (kind === "status") {
      const heard = { ...status, leads: false };
      if (JSON.stringify(heard) === JSON.stringify(this.#status)) return;
      this.#status = heard;
      this.#emit("status", heard);
    } else if (kind === "snapshot") {
      if (reason || at === undefined) this.#take(snapshot, reason);
      else if (comparePositions(snapshot.id, at) > 0) this.#catchUp(snapshot, this.#life.signal);
    } else if (kind === "events" && at !== undefined) {
      // Something was not heard: this tab slept.
      if (comparePositions(previous, at) > 0) {
        if (!this.#catchesUp) this.#post({ kind: "hello" });
        return;
      }
      for (const event of events) this.#deliver(event);
      if (comparePositions(id, at) > 0) this.#position = id;
      this.#flush();
    }
  }

  /**
   * Reads in history what was not heard of the tab that leads, up to a snapshot of it.
   * @param {Snapshot} snapshot @param {AbortSignal} life
   */
  async #catchUp(snapshot, life) {
    if (this.#catchesUp) return;
    this.#catchesUp = true;
    const since = Date.now();
    let failures = 0;
    // One that leads now has its own way to learn what it missed.
    const isBehind = () =>
      !life.aborted &&
      !this.#status.leads &&
      comparePositions(snapshot.id, /** @type {string} */ (this.#position)) > 0;
    while (isBehind()) {
      try {
        const more = await this.#page(life, 0);
        // An empty page may be cached for 2 s; a younger one says that nothing lies between.
        if (!more && this.#askedAt - since > 3_000 && isBehind()) this.#position = snapshot.id;
        else if (!more) await this.#pause(1_000, life);
      } catch (error) {
        failures += 1;
        const isOver = error instanceof Gap || (error instanceof Refused && error.final);
        if (!isOver && failures < TRIES) await this.#pause(1_000 * failures, life);
        else if (isBehind()) this.#take(snapshot, "lost");
      }
    }
    this.#catchesUp = false;
    if (!life.aborted && !this.#status.leads) this.#post({ kind: "hello" }); // And meanwhile?
  }

  /* Choosing a transport */

  /** @param {AbortSignal} life */
  async #run(life) {
    this.#toldId = this.#position ?? "";
    this.#tell({ connected: false, leads: true });
    await this.#begin(life);
    let failures = 0; // In a row, for the pauses.
    let gaps = 0;
    let gapAt = 0;
    let strikes = 0; // Of this transport.
    while (!life.aborted) {
      const since = Date.now();
      this.#progress = false;
      let error;
      try {
        if (this.#position === undefined || this.#gap) await this.#load(life);
        await this.#follow(life);
      } catch (thrown) {
        error = thrown;
      }
      if (life.aborted) return;
      this.#tell({ connected: false });
      if (this.#progress) failures = 0;
      if (Date.now() - since > STEADY_MS) {
        strikes = 0;
        if (this.#index === 0) this.#betterMs = this.#options.betterSeconds * 1_000;
      }
      if (error === undefined) {
        this.#index = strikes = 0; // Time to try something better.
        continue;
      }
      if (error instanceof Woken) continue;
      if (error instanceof Gap) {
        this.#gap = error;
        // A cache that does not heed `min` would lead from one gap to the next.
        gaps = since - gapAt < 10_000 ? gaps + 1 : 0;
        gapAt = Date.now();
        if (gaps < 2) continue;
        failures = gaps;
      } else if (error instanceof Refused && error.final && this.#position === undefined) {
        return this.#giveUp(error);
      } else if (this.#wokeAt >= since) {
        this.#wokeAt = 0; // What was lost in sleep says nothing of now.
        continue;
      } else {
        failures += 1;
        strikes += this.#progress ? 0 : 1;
        const buffered = error instanceof Silent && (!error.heard || ++strikes > 1);
        const refused = error instanceof Refused && error.final;
        if (buffered || refused || strikes >= TRIES) {
          strikes = 0;
          if (this.#fallBack() && buffered) continue;
        }
      }
      const firstMs = Math.max(this.#retryMs, SHORTEST_PAUSE_MS);
      const backoffMs = Math.min(firstMs * 2 ** Math.max(0, failures - 1), LONGEST_PAUSE_MS);
      // A timer of more than 24 days ends at once.
      const leastMs = error instanceof Refused ? Math.min(error.retryMs, LONGEST_BETTER_MS) : 0;
      await this.#pause(Math.max(leastMs, backoffMs) * (1 + Math.random()), life);
    }
  }

  /** @param {AbortSignal} life */
  async #begin(life) {
    const { snapshot, persist } = this.#options;
    if (this.#position !== undefined) return;
    if (snapshot) this.#take(snapshot);
    else if (persist) {
      const keeping = this.#keep("readonly", (store) => store.get(this.#name));
      // A database that another page holds may never open.
      const late = this.#pause(this.#options.patienceSeconds * 1_000, life);
      const kept = await Promise.race([keeping, late]);
      this.#endPause?.();
      if (kept && !life.aborted) this.#take(kept);
    }
  }

  /** @param {AbortSignal} life */
  async #follow(life) {
    const transport = this.#options.transports[this.#index];
    const holds = transport !== "snapshots";
    this.#crowded = holds && !this.#mayHold;
    this.#tell({});
    if (this.#crowded) return this.#glance(life);
    if (!holds) return this.#snapshots(life);
    const { origin } = new URL(this.#base);
    hold(origin, 1);
    try {
      if (transport === "events") await this.#events(life);
      else if (transport === "slices") await this.#slices(life);
      else await this.#poll(life);
    } finally {
      hold(origin, -1);
    }
  }

  /** Whether one more connection leaves some for the requests that are soon over. */
  get #mayHold() {
    const { origin } = new URL(this.#base);
    return (held.get(origin) ?? 0) < this.#options.connections || isMultiplexed(origin);
  }

  /** Goes on with the next transport, round and round; tells whether there is another one. */
  #fallBack() {
    const count = this.#options.transports.length;
    this.#index = (this.#index + 1) % count;
    this.#betterAt = Date.now() + this.#betterMs;
    this.#betterMs = Math.min(this.#betterMs * 2, LONGEST_BETTER_MS);
    return count > 1;
  }

  /** Whether it is time to try a better transport. */
  get #isTimeForBetter() {
    return this.#index > 0 && Date.now() >= this.#betterAt;
  }

  /** @param {Refused} error */
  #giveUp({ status, problem }) {
    this.#tell({ error: problem ?? { status } });
    this.close();
  }

  /* Asking */

  /**
   * Opens a path, and lets go of it when nothing comes for too long.
   * @template T
   * @param {string} path @param {AbortSignal} life @param {number} patienceMs
   * @param {(response: Response) => T | Promise<T>} use @param {HeadersInit} [headers]
   * @returns {Promise<T>}
   */
  async #open(path, life, patienceMs, use, headers) {
    const line = (this.#line = new AbortController());
    const end = () => line.abort(life.reason);
    life.addEventListener("abort", end);
    if (life.aborted) end();
    const askedAt = (this.#askedAt = this.#heardAt = Date.now());
    this.#silenceMs = patienceMs;
    let tickAt = askedAt;
    const timer = setInterval(() => {
      const now = Date.now();
      // A clock that stood still was a device asleep, or a tab in the background.
      const late = now - tickAt > 10 * TICK_MS;
      tickAt = now;
      if (now - this.#heardAt <= this.#silenceMs) return;
      line.abort(late ? new Woken() : new Silent(this.#heardAt > askedAt));
    }, TICK_MS);
    try {
      const response = await fetch(this.#base + path, { signal: line.signal, headers });
      return await use(response);
    } catch (error) {
      throw line.signal.aborted ? line.signal.reason : error;
    } finally {
      clearInterval(timer);
      life.removeEventListener("abort", end);
      line.abort(); // What is left of the body.
    }
  }

  /**
   * Reads a stream to its end, or until `take` returns true.
   * @param {string} path @param {AbortSignal} life @param {number} patienceMs
   * @param {(block: Block) => boolean | void} take
   */
  #stream(path, life, patienceMs, take) {
    /** @param {Response} response */
    const read = async (response) => {
      const type = response.headers.get("Content-Type") ?? "";
      if (!response.ok || !type.startsWith("text/event-stream")) throw await refusal(response);
      const decoder = /** @type {ReadableWritablePair<string, any>} */ (new TextDecoderStream());
      const body = /** @type {ReadableStream<Uint8Array>} */ (response.body);
      const reader = body.pipeThrough(decoder).getReader();
      const parse = blockParser((ms) => {
        this.#retryMs = ms;
      });
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        this.#heardAt = Date.now();
        this.#silenceMs = this.#options.heartbeatSeconds * 2_500;
        let ended = false;
        for (const block of parse(value)) {
          ended ||= life.aborted || Boolean(take(block));
          if (ended) break;
        }
        // The gateway stands behind whatever it sent, an apology excepted.
        if (!life.aborted) this.#flush();
        if (ended) return;
      }
    };
    return this.#open(path, life, patienceMs, read, { Accept: "text/event-stream" });
  }

  #isConnected(stale = false) {
    this.#progress = true;
    if (this.#status.leads) this.#tell({ connected: true, stale });
  }

  /** @param {Block} block @param {boolean} enveloped */
  #deliverBlock({ id, type, data }, enveloped) {
    const value = parseData(/** @type {string} */ (data));
    const event = enveloped ? { key: value.key, data: value.data } : { data: value };
    this.#deliver({ id: /** @type {string} */ (id), type: type || "message", ...event });
  }

  /* Snapshots */

  /** @param {AbortSignal} life @param {string} [min] @returns {Promise<Snapshot>} */
  #fetchSnapshot(life, min) {
    const query = min ? `?min=${min}` : "";
    const patienceMs = this.#options.patienceSeconds * 1_000 + LONGEST_PAUSE_MS;
    return this.#open(`snapshots/${this.#channel}${query}`, life, patienceMs, async (response) => {
      if (!response.ok && response.status !== 404) throw await refusal(response);
      const document = await response.json().catch(() => ({}));
      // "Nothing yet" is an answer, too: it says at which position that is true.
      if (typeof document.id !== "string") throw new Refused(response.status, document);
      this.#tell({ stale: isStale(response) });
      return { ...document, exists: response.ok };
    });
  }

  /** Begins, or begins again after a gap. @param {AbortSignal} life */
  async #load(life) {
    const gap = this.#gap;
    // With `min`, no cache answers with what it had before the gap.
    const snapshot = await this.#fetchSnapshot(life, gap?.id);
    if (life.aborted) return;
    const isOlder = (/** @type {string | undefined} */ id) =>
      id !== undefined && comparePositions(snapshot.id, id) < 0;
    if (isOlder(gap?.id) && isOlder(this.#position)) throw new Error("the snapshot is stale");
    this.#take(snapshot, gap?.message);
    this.#gap = undefined;
  }

  /** Asks for the snapshot again and again. @param {AbortSignal} life */
  async #snapshots(life) {
    let older = 0;
    while (!this.#isTimeForBetter) {
      const min = older >= TRIES ? this.#position : undefined;
      const snapshot = await this.#fetchSnapshot(life, min);
      if (life.aborted) return;
      const order = comparePositions(snapshot.id, /** @type {string} */ (this.#position));
      this.#isConnected(order < 0 || this.#status.stale);
      if (order > 0 || (order < 0 && min)) this.#takeLater(snapshot, order);
      // Never back in time; but an edge that stays behind is asked for what it must have.
      older = order < 0 && !min ? older + 1 : 0;
      await this.#pause(this.#options.refreshSeconds * 1_000 * (0.75 + Math.random() / 2), life);
      if (life.aborted) return;
    }
  }

  /** @param {Snapshot} snapshot @param {number} order */
  #takeLater(snapshot, order) {
    if (order < 0) this.#take(snapshot, "unknown");
    else if (snapshot.exists) this.#take(snapshot, "polled");
    else if (this.#exists) this.#take(snapshot, "deleted");
    else {
      this.#position = snapshot.id; // Still nothing.
      this.#flush();
    }
  }

  /* Events */

  /** @param {AbortSignal} life */
  async #events(life) {
    // Asked for by query, data says whether it is JSON or text.
    const path = `events?channel=${this.#channel}&last_event_id=${this.#position}`;
    const patienceMs = this.#options.patienceSeconds * 1_000;
    await this.#stream(path, life, patienceMs, (block) => {
      const { id, type, data } = block;
      if (type === "unavailable") {
        this.#progress = false;
        return true;
      }
      this.#isConnected();
      if (data === undefined) return;
      if (type === "gap") throw new Gap(JSON.parse(data).reason, /** @type {string} */ (id));
      if (type === "reset") {
        const { state } = JSON.parse(data);
        this.#take({ ...this.#snapshot(), id: /** @type {string} */ (id), state }, "conflated");
      } else this.#deliverBlock(block, true);
    });
    throw new Error("the stream ended");
  }

  /* Slices */

  /** The slice that lies at a time. @param {number} ms */
  #sliceAt(ms) {
    return Math.floor(ms / 1_000 / this.#sliceSeconds);
  }

  get #ownSlice() {
    return this.#sliceAt(Number(/** @type {string} */ (this.#position).split("-")[0]));
  }

  /** Walks the slices from the position's to the one that is running. @param {AbortSignal} life */
  async #slices(life) {
    if (!this.#sliceSeconds) throw new Refused(404);
    let number = this.#ownSlice;
    // A quiet channel's last event may be days ago: history says so in one answer.
    if (this.#sliceAt(Date.now() + this.#clockMs) - number > TRIES) number = await this.#jump(life);
    for (let ahead = 0; !this.#isTimeForBetter; ) {
      const since = Date.now();
      const outcome = await this.#slice(number, life);
      if (life.aborted) return;
      if (outcome === "end") {
        number += 1;
        ahead = 0;
        if (Date.now() - since > TICK_MS) await this.#pause(Math.random() * SPREAD_MS, life);
      } else if (outcome === "gone") {
        // The ring cannot vouch for it. History says whether anything is lost, exactly.
        await this.#poll(life, Date.now() + 2_000 * this.#sliceSeconds + 1_000);
        if (life.aborted || this.#isTimeForBetter) return;
        number = await this.#jump(life); // Two slices later.
      } else if (++ahead < 5) {
        await this.#pause(1_000, life); // Another worker's clock was ahead.
      } else throw new Error("the slice does not begin");
      if (life.aborted) return;
    }
  }

  /**
   * Reads one slice; only its `end` says that it is whole.
   * @param {number} number @param {AbortSignal} life
   * @returns {Promise<"end" | "gone" | "ahead">}
   */
  async #slice(number, life) {
    const path = `slices/${this.#epoch}/${number}/${this.#channel}`;
    const patienceMs = this.#options.patienceSeconds * 1_000 + HELD_MS;
    const enveloped = this.#reducer === "keyed";
    let ended = false;
    try {
      await this.#stream(path, life, patienceMs, (block) => {
        if (block.type === "unavailable" || block.type === "gap") return true;
        this.#tell({ connected: true });
        if (block.type === "end") {
          ended = this.#progress = true;
          const id = /** @type {string} */ (block.id);
          if (comparePositions(id, /** @type {string} */ (this.#position)) > 0) this.#position = id;
        } else if (block.data !== undefined) this.#deliverBlock(block, enveloped);
        return ended;
      });
    } catch (error) {
      if (error instanceof Refused && error.status === 410) return "gone";
      if (error instanceof Refused && error.problem?.current_slice >= 0) return "ahead";
      throw error;
    }
    if (!ended && !life.aborted) throw new Error("the slice was cut off");
    return "end";
  }

  /**
   * Reads history up to now, and returns the number of a slice that holds all that comes after.
   *
   * Let slice `present` have begun. The one before it began a slice's length ago or more. If the
   * last answer of history is younger, nothing lies between the two. No clock need be right.
   * @param {AbortSignal} life
   */
  async #jump(life) {
    const youngMs = this.#sliceSeconds * 1_000 - 3_000; // Such answers may be cached for 2 s.
    for (;;) {
      while (await this.#page(life, 0));
      const askedAt = this.#askedAt;
      const present = await this.#presentSlice(life);
      if (Date.now() - askedAt < youngMs) return Math.max(present - 1, this.#ownSlice);
    }
  }

  /** Returns the number of a slice that has begun, the current one if clocks agree. @param {AbortSignal} life */
  #presentSlice(life) {
    const number = this.#sliceAt(Date.now() + this.#clockMs);
    const path = `slices/${this.#epoch}/${number}/${this.#channel}`;
    const patienceMs = this.#options.patienceSeconds * 1_000 + HELD_MS;
    return this.#open(path, life, patienceMs, async (response) => {
      if (response.ok) return number;
      const error = await refusal(response);
      const current = error.problem?.current_slice; // The number is of one yet to come.
      if (typeof current !== "number") throw error;
      this.#clockMs += (current - number) * this.#sliceSeconds * 1_000;
      return current;
    });
  }

  /* Long-poll */

  /** @param {AbortSignal} life @param {number} [until] */
  async #poll(life, until = Infinity) {
    const mostSeconds = until === Infinity ? WAIT_SECONDS : this.#sliceSeconds;
    await this.#page(life, 0); // Shows at once that it works.
    while (!life.aborted && !this.#isTimeForBetter && Date.now() < until)
      await this.#await(life, mostSeconds);
  }

  /**
   * Waits for the next page, for as long as the gateway lets it.
   * @param {AbortSignal} life @param {number} mostSeconds
   */
  async #await(life, mostSeconds) {
    const waitSeconds = Math.min(mostSeconds, this.#waitSeconds);
    try {
      await this.#page(life, waitSeconds);
    } catch (error) {
      const problem = error instanceof Refused ? error.problem : undefined;
      // "must be a whole number from 1 to 20"
      const limit = problem?.field === "wait" ? Number(/\d+$/.exec(problem.rule)) : 0;
      if (!(limit > 0 && limit < waitSeconds)) throw error;
      this.#waitSeconds = limit;
    }
  }

  /** Reads history now and then, until a connection may be held. @param {AbortSignal} life */
  async #glance(life) {
    while (!life.aborted && !this.#mayHold) {
      while (await this.#page(life, 0));
      await this.#pause(this.#options.refreshSeconds * 1_000 * (0.75 + Math.random() / 2), life);
    }
  }

  /**
   * Takes the next page of history; tells whether there was anything on it.
   * @param {AbortSignal} life @param {number} waitSeconds
   */
  async #page(life, waitSeconds) {
    const after = /** @type {string} */ (this.#position);
    let query = `after=${after}`;
    if (waitSeconds) query += `&wait=${waitSeconds}${this.#cursor && `&cursor=${this.#cursor}`}`;
    const patienceMs = (this.#options.patienceSeconds + waitSeconds + 5) * 1_000;
    const path = `history/${this.#channel}?${query}`;
    const page = await this.#open(path, life, patienceMs, (response) => this.#readPage(response));
    if (life.aborted) return false;
    if (page.gap) throw new Gap("evicted", page.next);
    const last = page.events.at(-1);
    // A proxy or a cache that leaves the query out gives the same page for ever.
    if (last && comparePositions(last.id, after) <= 0) throw new Error("not the page asked for");
    for (const { id, type, key, data } of page.events)
      this.#deliver({ id, type: type ?? "message", key, data });
    this.#flush();
    if (waitSeconds) this.#cursor = page.cursor ?? "";
    this.#isConnected();
    const isEmpty = page.events.length === 0;
    // Somebody on the way does not wait, or says the same again: never hammer.
    if (waitSeconds && isEmpty && Date.now() - this.#askedAt < 1_000)
      await this.#pause(1_000 * (1 + Math.random()), life);
    return !isEmpty;
  }

  /** @param {Response} response */
  async #readPage(response) {
    if (!response.ok && response.status !== 404) throw await refusal(response);
    const page = await response.json().catch(() => ({}));
    if (response.ok && Array.isArray(page.events)) {
      // A full page never changes, an empty one does.
      if (page.events.length === 0 && isStale(response)) throw new Error("history is stale");
      return page;
    }
    if (typeof page.id !== "string") throw new Refused(response.status, page);
    if (this.#exists) throw new Gap("deleted", page.id);
    return { events: [] };
  }
}

/** Whether an answer is older than while all is well. @param {Response} response */
function isStale(response) {
  const lives = response.headers.get("Cache-Control")?.matchAll(/(?:max-?age|validate)=(\d+)/g);
  const lifeSeconds = [...(lives ?? [])].reduce((sum, [, seconds]) => sum + Number(seconds), 0);
  return Number(response.headers.get("Age")) > Math.max(STALE_SECONDS, lifeSeconds);
}

/**
 * Follows a channel, until `close()`.
 * @param {string | URL} base Where the gateway is, as "/" or "https://live.example/".
 * @param {string} channel @param {Options} [options]
 * @returns {Followed}
 */
export function follow(base, channel, options = {}) {
  return /** @type {Followed} */ (new Channel(base, channel, options));
}
