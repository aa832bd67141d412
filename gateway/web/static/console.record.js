/* What a stream has brought: bounded, for the tail, the chart and the figures. */
import { millisecondsOf } from "./console.fold.js";

export const TAIL_LIMIT = 200;
const IDS_LIMIT = 10_000;
const CHART_LIMIT = 6_000; // Events kept to draw the chart of any field…
const CHART_LIMIT_CHARS = 4_000_000; // …and their size, as one may have 256 KiB.
const RATE_SECONDS = 660; // A little more than the longest chart.
const LATENCIES_LIMIT = 200;
const MARKS_LIMIT = 100;

export class Record {
  ids = []; // Of the events that the stream brought, in the order they came.
  count = 0;
  rows = []; // The tail, oldest first: events, and notes on what happened to the stream.
  events = []; // The same events for the chart.
  marks = []; // { at, kind }: reconnects and gaps.
  latencies = []; // Milliseconds.
  seconds = []; // [second, events].
  #chars = 0;

  constructor(startedAt) {
    this.startedAt = startedAt;
  }

  add(event) {
    this.count += 1;
    push(this.ids, event.id, IDS_LIMIT);
    push(this.rows, event, TAIL_LIMIT);
    const latency = event.at - millisecondsOf(event.id);
    // What was published before the page came says nothing of the way here.
    if (event.at - latency >= this.startedAt) push(this.latencies, latency, LATENCIES_LIMIT);
    const second = Math.floor(event.at / 1000);
    if (this.seconds.at(-1)?.[0] === second) this.seconds.at(-1)[1] += 1;
    else push(this.seconds, [second, 1], RATE_SECONDS);
    this.events.push(event);
    this.#chars += event.size;
    while (this.events.length > CHART_LIMIT || this.#chars > CHART_LIMIT_CHARS) {
      this.#chars -= this.events.shift().size;
    }
  }

  note(kind, text) {
    push(this.rows, { note: kind, text, at: Date.now() }, TAIL_LIMIT);
  }

  mark(kind) {
    push(this.marks, { at: Date.now(), kind }, MARKS_LIMIT);
  }

  /** Puts events that came before the stream in front of what it brought. */
  addBefore(events, text) {
    const note = { note: "snapshot", text, at: this.startedAt };
    this.rows.unshift(...events.slice(-50), note);
    this.events.unshift(...events);
    this.#chars += events.reduce((sum, { size }) => sum + size, 0);
  }

  /** Returns how far this browser's clock seems ahead of the gateway's; 0 when they agree. */
  clockSkew() {
    const least = Math.min(...this.latencies);
    return Number.isFinite(least) && (least < 0 || least > 2_000) ? least : 0;
  }

  /** Returns the events a second over the last whole `seconds`. */
  rate(seconds, now) {
    const end = Math.floor(now / 1000);
    const lived = Math.max(1, Math.min(seconds, end - Math.floor(this.startedAt / 1000)));
    const counted = this.seconds.slice(-lived - 1);
    const within = counted.filter(([second]) => second >= end - lived && second < end);
    return within.reduce((sum, [, events]) => sum + events, 0) / lived;
  }
}

/** Appends, and forgets the oldest beyond `limit`. */
export function push(items, item, limit) {
  items.push(item);
  if (items.length > limit) items.shift();
}
