/* One followed channel: its state, kept true by its snapshot and the events after it. */
import {
  comparePositions,
  foldEvent,
  millisecondsOf,
  numberIn,
  pickField,
} from "./console.fold.js";
import { push } from "./console.record.js";

const HELD_LIMIT = 5_000;
const TRACE_LIMIT = 90;
const REFRESH_MS = 1_000;

/** Channel → reducer, where the list of channels says it. */
export const reducers = new Map();

export function learnReducers(channels) {
  for (const { channel, reducer } of channels) if (reducer) reducers.set(channel, reducer);
}

export class Member {
  id = ""; // The position that the state is true at.
  loadedId = ""; // The position of the last snapshot.
  value = undefined; // Undefined when there is none; `reason` says why.
  reason = "";
  reducer = "";
  at = 0; // When the last event was published.
  field = null; // The path of the number that stands for this channel…
  trace = []; // …and its last values.
  #fetch;
  #changed;
  #latestWillDo;
  #held = null; // Events that wait for a snapshot.
  #heldTooMany = false;
  #loading = Promise.resolve();
  #refreshing = false;
  #refreshedAt = 0;

  /**
   * `fetchSnapshot(channel, tries)` gives a snapshot that holds at least what the stream has
   * brought so far. With `latestWillDo`, the latest event stands for the state of a channel
   * whose reducer is not known.
   */
  constructor(channel, { fetchSnapshot, changed, latestWillDo }) {
    this.channel = channel;
    this.#fetch = fetchSnapshot;
    this.#changed = changed;
    this.#latestWillDo = latestWillDo;
  }

  /** Holds events back from now on, until a snapshot is loaded. */
  hold() {
    this.#held ??= [];
  }

  /** Loads the snapshot, one load at a time; folds in what was held back. Returns its position. */
  load(tries = 1) {
    const load = async () => {
      this.hold();
      try {
        this.#take(await this.#fetch(this.channel, tries));
        return this.loadedId;
      } finally {
        this.#release();
        this.#changed();
      }
    };
    const loading = this.#loading.then(load);
    this.#loading = loading.catch(() => {});
    return loading;
  }

  /** Takes a state in place of the events that came faster than they were read. */
  reset({ id, state }) {
    // What is held back is in it.
    if (this.#held !== null) this.#held.length = 0;
    this.#heldTooMany = false;
    this.fold({ type: "reset", id, state });
  }

  fold(event) {
    if (this.#held !== null) {
      if (this.#held.length < HELD_LIMIT) this.#held.push(event);
      else this.#heldTooMany = true;
      return;
    }
    if (this.id !== "" && comparePositions(event.id, this.id) <= 0) return;
    if (event.type === "reset") {
      this.#take({ ...event, reducer: "keyed" }); // No other state says all that is missing.
      return;
    }
    this.#draw(event);
    if (this.reducer === "" && !this.#latestWillDo) {
      this.#refresh();
      return;
    }
    this.value = foldEvent(this.reducer || "last", this.value, event);
    this.id = event.id;
    this.at = event.at;
  }

  /** Puts the values of earlier events in front of the trace. */
  traceBefore(events) {
    if (this.field === null) return;
    const values = events.map((event) => numberIn(event, this.field));
    this.trace.unshift(...values.filter((value) => value !== undefined).slice(-TRACE_LIMIT));
  }

  #take({ id, state, reducer, reason = "" }) {
    if (this.reducer === "") this.reducer = reducer ?? reducers.get(this.channel) ?? "";
    this.id = this.loadedId = id;
    this.value = state;
    this.reason = reason;
    this.at = state === undefined ? 0 : millisecondsOf(id);
    this.field = pickField(state) ?? this.field;
  }

  #release() {
    const held = this.#held;
    this.#held = null;
    for (const event of held) this.fold(event);
    if (this.#heldTooMany) this.#refresh();
    this.#heldTooMany = false;
  }

  #draw(event) {
    this.field ??= pickField(this.reducer === "keyed" ? { [event.key]: event.data } : event.data);
    const value = this.field === null ? undefined : numberIn(event, this.field);
    if (value !== undefined) push(this.trace, value, TRACE_LIMIT);
  }

  /** Follows the state by its snapshots, at most one a second. */
  #refresh() {
    if (this.#refreshing) return;
    this.#refreshing = true;
    const load = async () => {
      this.#refreshing = false;
      this.#refreshedAt = Date.now();
      await this.load().catch(() => {}); // The next event asks again.
    };
    setTimeout(load, Math.max(0, this.#refreshedAt + REFRESH_MS - Date.now()));
  }
}
