/* Following a channel or a prefix, from the snapshot on. Nothing here draws. */
import { comparePositions, millisecondsOf } from "./console.fold.js";
import { learnReducers, Member } from "./console.member.js";
import { Record } from "./console.record.js";
import { address, describe, getJson, isPassing, parseJson } from "./console.request.js";
import { Stream } from "./console.stream.js";

export const MEMBERS_LIMIT = 100; // Channels that a prefix shows one by one.
const HISTORY_PAGES_LIMIT = 10;
const HISTORY_MS = 120_000;

const pause = (ms) => new Promise((resolve) => void setTimeout(resolve, ms));

export class Following {
  state = "loading";
  reason = "";
  broken = false; // From the end of a connection until the next one stands.
  resumesAt = 0;
  liveSince = 0;
  heardAt = 0;
  position = "";
  epoch = "";
  reconnects = 0;
  gaps = 0;
  lastGap = null;
  resets = 0;
  notice = null;
  record = new Record(Date.now());
  members = new Map(); // Channel → Member.
  membersLeftOut = false;
  #abort = new AbortController();
  #stream = null;
  #membersAsked = false;
  #resetting = new Set(); // Channels whose states came, of a reset that is not whole yet.
  #changed;

  /** `changed()` is called whenever there is something new to show. */
  constructor(selector, changed) {
    this.selector = selector;
    this.many = selector.endsWith("/*");
    this.#changed = changed;
  }

  /** The one channel's member; undefined for a prefix. */
  get only() {
    return this.members.get(this.selector);
  }

  async start() {
    // The stream of a prefix first: it brings all from its start on; snapshots bring the rest.
    if (this.many) return this.#connect("");
    // Opened where the snapshot ends, the stream misses nothing and brings nothing twice.
    const id = await this.#firstSnapshot();
    if (id === null) return;
    this.position = id;
    this.#connect(id);
    this.#showBefore(id).catch(() => {}); // Nothing depends on it.
  }

  stop() {
    this.#abort.abort();
    this.#stream?.close();
  }

  connectNow() {
    this.#stream?.connectNow();
  }

  #member(channel) {
    if (!this.members.has(channel)) {
      if (this.members.size >= MEMBERS_LIMIT) {
        this.membersLeftOut = true;
        return null;
      }
      const options = {
        fetchSnapshot: (name, tries) => this.#fetchSnapshot(name, tries),
        changed: this.#changed,
        latestWillDo: this.many,
      };
      this.members.set(channel, new Member(channel, options));
    }
    return this.members.get(channel);
  }

  #set(state, reason = "") {
    this.state = state;
    this.reason = reason;
    if (state === "waiting") this.broken = true;
    else if (state === "live" || state === "stopped") this.broken = false;
    this.#changed();
  }

  /* Snapshots */

  /** Loads the snapshot, however long it takes; returns its position, null if that is hopeless. */
  async #firstSnapshot() {
    const member = this.#member(this.selector);
    for (let failures = 0; !this.#abort.signal.aborted; failures += 1) {
      try {
        return await member.load();
      } catch (error) {
        if (this.#abort.signal.aborted) return null;
        const reason = error.problem ? describe(error.problem) : "the gateway cannot be reached";
        if (error.problem && !isPassing(error.problem.status)) {
          this.#set("stopped", reason);
          return null;
        }
        const waitMs = 1_000 * 2 ** Math.min(failures, 3);
        this.resumesAt = Date.now() + waitMs;
        this.#set("waiting", reason);
        await pause(waitMs);
      }
    }
    return null;
  }

  /** "Nothing yet" is an answer too: a 404 that says which position it is true at. */
  async #fetchSnapshot(channel, tries) {
    const { signal } = this.#abort;
    for (let failures = 1; ; failures += 1) {
      try {
        // With `min`, no cache and no worker that is behind answers with less than came already.
        const url = address("snapshots", channel, { min: this.position });
        const snapshot = await getJson(url, signal);
        this.epoch = snapshot.epoch ?? this.epoch;
        return snapshot;
      } catch (error) {
        const { problem } = error;
        if (problem?.status === 404 && typeof problem.id === "string") {
          this.epoch = problem.epoch ?? this.epoch;
          return { id: problem.id, state: undefined, reason: problem.detail };
        }
        const passing = problem === undefined || isPassing(problem.status);
        if (failures >= tries || !passing || signal.aborted) throw error;
        await pause(1_000);
      }
    }
  }

  /** Loads what the prefix's channels were when the stream began. */
  async #loadMembers() {
    this.#membersAsked = true;
    const query = { prefix: this.selector.slice(0, -1), limit: MEMBERS_LIMIT };
    const page = await getJson(address("channels", undefined, query), this.#abort.signal);
    this.membersLeftOut ||= Boolean(page.next);
    learnReducers(page.channels);
    await this.#loadAll(page.channels.map(({ channel }) => this.#member(channel)).filter(Boolean));
  }

  /** Loads the members' snapshots; returns how many failed. */
  async #loadAll(members) {
    for (const member of members) member.hold();
    const loaded = await Promise.allSettled(members.map((member) => member.load(5)));
    for (const member of members) {
      if (this.many && member.value === undefined) this.members.delete(member.channel);
    }
    return loaded.filter(({ status }) => status === "rejected").length;
  }

  /* What happened shortly before */

  async #showBefore(id) {
    const before = await this.#historyUntil(id);
    if (before.length === 0 || this.#abort.signal.aborted) return;
    this.record.addBefore(before, `Snapshot at ${id}. What stands below came before it.`);
    this.only.traceBefore(before);
    this.#changed();
  }

  /** Returns the last events up to `id`, with no hole between them; none if they are too many. */
  async #historyUntil(id) {
    const before = [];
    let after = `${Math.max(0, millisecondsOf(id) - HISTORY_MS)}-0`;
    for (let pages = 0; pages < HISTORY_PAGES_LIMIT; pages += 1) {
      const url = address("history", this.selector, { after });
      const page = await getJson(url, this.#abort.signal);
      if (page.gap) before.length = 0; // It starts with the oldest kept.
      for (const event of page.events) {
        if (comparePositions(event.id, id) > 0) return before;
        before.push({
          ...{ type: "message", key: "", ...event, before: true },
          size: JSON.stringify(event.data).length,
          at: millisecondsOf(event.id),
        });
      }
      if (page.events.length === 0) return before;
      after = page.next;
    }
    return [];
  }

  /* The stream */

  #connect(id) {
    const url = address("events", undefined, { channel: this.selector, last_event_id: id });
    const stream = new Stream(url, {
      state: (name, detail) => this.#streamState(stream, name, detail),
      block: (block) => this.#block(block),
      bytes: () => {
        this.heardAt = Date.now();
      },
    });
    this.#stream = stream;
    stream.run();
  }

  #streamState(stream, name, { reason = "", waitMs = 0 }) {
    const now = Date.now();
    if (name === "live") {
      this.liveSince = this.heardAt = now;
      if (stream.opened > 1) this.#reconnected(stream);
    }
    // The reason that the gateway gave beats the bare fact that the stream ended.
    if (name === "waiting" && this.notice?.kind === "unavailable") reason = this.notice.short;
    this.resumesAt = now + waitMs;
    if (name === "stopped") this.record.note("gap", `Stopped: ${reason}.`);
    this.#set(name, reason);
  }

  #reconnected(stream) {
    this.reconnects += 1;
    this.#resetting.clear();
    this.record.mark("reconnect");
    const from = stream.lastEventId || this.position || "its start";
    this.record.note("reconnect", `Reconnected; the stream resumes after ${from}.`);
    if (this.notice?.kind === "unavailable") this.notice = null;
  }

  #block({ id, type, data }) {
    const moved = id !== "" && id !== this.position;
    if (moved) this.position = id;
    // Without the list the tail goes on: each channel appears with its first event.
    if (this.many && !this.#membersAsked) this.#loadMembers().catch(() => {});
    if (data === null) return this.#changed();
    // All data of a stream asked for by query is JSON: the gateway's own words, or an envelope.
    const body = parseJson(data);
    if (type === "gap") return this.#gap(body);
    if (type === "unavailable") return this.#unavailable(body);
    if (type === "reset") return this.#reset(body, moved);
    this.#event({ key: "", ...body, id, type, size: data.length, at: Date.now() });
  }

  #event(event) {
    this.record.add(event);
    this.#member(event.channel)?.fold(event);
    this.#changed();
  }

  /** States in place of events; of several channels only the last one moves the position. */
  #reset(snapshot, last) {
    const member = this.#member(snapshot.channel);
    member?.reset(snapshot);
    // A channel that was deleted looks like one without keys; its snapshot tells.
    if (member && Object.keys(snapshot.state).length === 0) this.#loadAll([member]);
    this.#resetting.add(snapshot.channel);
    if (last) {
      this.resets += 1;
      this.record.mark("reset");
      const text =
        this.#resetting.size === 1
          ? `its state at ${snapshot.id} came`
          : `the states of ${this.#resetting.size} channels came`;
      this.record.note(
        "reset",
        `Reset: events came faster than this page took them; ${text} instead.`,
      );
      this.#resetting.clear();
    }
    this.#changed();
  }

  #gap(gap) {
    this.gaps += 1;
    this.lastGap = { reason: gap.reason, at: Date.now() };
    this.record.mark("gap");
    const text =
      gap.reason === "deleted"
        ? `Gap (deleted): the channel was deleted at ${gap.newest}, and its history with it.`
        : `Gap (${gap.reason}): events after ${gap.requested} are gone; ` +
          `the oldest kept is ${gap.oldest}.`;
    this.record.note("gap", text);
    this.notice = { kind: "gap", text: `${text} Loading the snapshot…` };
    this.#changed();
    this.#recover(text, gap);
  }

  /** Starts again from the snapshots: what was missed is in them, and the stream goes on. */
  async #recover(text, { reason, snapshots = [] }) {
    const channels = snapshots.map((url) => decodeURI(url.split("/snapshots/")[1] ?? ""));
    const members = this.many ? [...this.members.values()] : [this.only];
    const isNamed = ({ channel }) => channels.includes(channel);
    let failed = await this.#loadAll(members.filter(isNamed));
    // A channel that ends while it is followed is named alone. Any other gap of a prefix may
    // also be about channels that it cannot name, because they are gone.
    const ended = reason === "deleted" && channels.length === 1 && !this.members.has(channels[0]);
    if (!ended) failed += await this.#loadAll(members.filter((member) => !isNamed(member)));
    if (this.#abort.signal.aborted) return;
    let outcome = "Each channel starts again from its snapshot.";
    if (failed > 0) outcome = "A snapshot could not be loaded: what is shown may miss events.";
    else if (!this.many && this.only.value === undefined) outcome = "There is no state now.";
    else if (!this.many)
      outcome = `The state starts again from the snapshot at ${this.only.loadedId}.`;
    this.record.note("snapshot", outcome);
    if (this.notice?.kind === "gap") this.notice.text = `${text} ${outcome}`;
    this.#changed();
  }

  #unavailable({ reason = "no reason given" }) {
    const short = `the gateway is unavailable (${reason})`;
    this.record.note(
      "unavailable",
      `Unavailable (${reason}): the gateway asks to come back later.`,
    );
    const from = this.position || "its start";
    const text = `The gateway is unavailable (${reason}). The stream will resume after ${from}.`;
    this.notice = { kind: "unavailable", text, short };
    this.#changed();
  }
}
