/* The list of known channels, and the field that filters it. */
import { $, element, say } from "./console.document.js";
import { address, describe, getJson } from "./console.request.js";
import { count, roughly, WHOLE } from "./console.figures.js";
import { learnReducers } from "./console.member.js";
import { shown } from "./console.view.js";

const CHANNELS_PAGE = 500;
const FILTER_PAUSE_MS = 150; // Between two keys of somebody who types.
const list = {
  channels: [],
  loadedAt: 0,
  more: false,
  problem: "",
  nodes: new Map(),
  request: null,
  timer: 0,
};

/** Asks for the channels anew; an answer that was waited for till now is not wanted any more. */
export async function loadChannels() {
  const filter = filterText();
  clearTimeout(list.timer);
  list.request?.abort();
  const request = new AbortController();
  list.request = request;
  try {
    // With more channels than one page holds, the gateway filters, by prefix.
    const prefix = list.more && /^[\w.~/-]+$/.test(filter) ? filter : "";
    const page = await getJson(
      address("channels", undefined, { prefix, limit: CHANNELS_PAGE }),
      request.signal,
      "no-store",
    );
    if (request.signal.aborted) return;
    list.channels = page.channels;
    list.loadedAt = Date.now();
    list.more = prefix !== "" || Boolean(page.next);
    list.problem = "";
    learnReducers(page.channels);
  } catch (error) {
    if (request.signal.aborted) return;
    list.problem = error.problem ? describe(error.problem) : "The gateway cannot be reached.";
  }
  list.request = null;
  renderChannels();
}

/** Asks again, unless an answer is still on its way. */
export function refreshChannels() {
  if (list.request === null) loadChannels();
}

export function filterChannels() {
  renderChannels();
  clearTimeout(list.timer);
  if (list.more) list.timer = setTimeout(loadChannels, FILTER_PAUSE_MS);
}

const filterText = () => $("selector").value.trim().replace(/\*$/, "");

/** Before anything is followed, the screen offers what there is. */
function renderSuggestions(names) {
  if (shown.following) return;
  say(
    $("suggestions-text"),
    names.length > 0
      ? "Pick a channel from the list, or follow all that share a prefix:"
      : "There are no channels yet. Publish the first event below, and it appears here.",
  );
  const key = names.join();
  if (list.suggested === key) return;
  list.suggested = key;
  $("suggestions-list").replaceChildren(
    ...names.map((name) =>
      element("li", {}, element("a", { href: `#${encodeURI(name)}`, textContent: name })),
    ),
  );
}

export function renderChannels() {
  const filter = filterText().toLowerCase();
  const exact = shown.following?.selector === $("selector").value.trim();
  const matching = list.channels.filter(
    ({ channel }) => exact || channel.toLowerCase().includes(filter),
  );
  const groups = new Map();
  for (const row of matching) {
    const slash = row.channel.indexOf("/");
    const group = slash < 0 ? "" : row.channel.slice(0, slash + 1);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(row);
  }
  // Without a connection nobody knows what goes on: only how long ago something did.
  const connected = list.problem === "" && !shown.following?.broken;
  const entries = [];
  for (const [group, rows] of [...groups].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (group !== "" && rows.length > 1)
      entries.push({ name: `${group}*`, note: count(rows.length, "channel"), group: true });
    const since = (Date.now() - list.loadedAt) / 1000;
    for (const { channel, age_seconds: age } of rows)
      entries.push({
        name: channel,
        note: connected && age + since < 6 ? "live" : roughly(age + since),
        group: false,
      });
  }
  placeEntries(entries);
  const groupNames = entries.filter(({ group }) => group).map(({ name }) => name);
  if (list.problem === "")
    renderSuggestions(
      (groupNames.length > 0 ? groupNames : entries.map(({ name }) => name)).slice(0, 8),
    );
  const empty = $("channel-empty");
  empty.hidden = entries.length > 0 && list.problem === "" && !list.more;
  say(
    empty,
    list.problem ||
      (entries.length === 0
        ? list.channels.length === 0
          ? "No channels yet. Publish one below."
          : "No known channel matches. Enter follows the name all the same."
        : `Showing the first ${WHOLE.format(CHANNELS_PAGE)}; type a prefix to see others.`),
  );
  const verb = $("rail").dataset.open === undefined ? "Show" : "Hide";
  say($("rail-toggle"), `${verb} ${count(matching.length, "channel")}`);
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
      const label = element(
        "span",
        { className: "name" },
        element("span", { className: "prefix", textContent: name.slice(0, cut) }),
        name.slice(cut),
      );
      const age = element("span", { className: "age" });
      const link = element("a", { href: `#${encodeURI(name)}` }, label, age);
      entry = { node: element("li", { className: group ? "group" : "" }, link), link, age };
      list.nodes.set(name, entry);
    }
    say(entry.age, note);
    if (container.children[index] !== entry.node)
      container.insertBefore(entry.node, container.children[index] ?? null);
  });
}

export function markCurrent() {
  for (const [name, { link }] of list.nodes) {
    if (name === shown.following?.selector) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
