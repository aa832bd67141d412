/* The tail: the last events, newest first, and what happened to the stream between them. */
import { $, element, say } from "./console.document.js";
import { clockTime, cut, milliseconds, WHOLE } from "./console.figures.js";
import { millisecondsOf } from "./console.fold.js";
import { shown } from "./console.view.js";

const EMPTY = "Events appear here as they are published, newest first.";
const drawn = new Map(); // Row → its element.

export function clearTail() {
  drawn.clear();
  $("rows").replaceChildren();
}

export function setPaused(paused) {
  shown.paused = paused;
  shown.pausedAt = shown.following?.record.count ?? 0;
  $("pause").setAttribute("aria-pressed", String(paused));
  say($("pause"), paused ? "Resume" : "Pause");
  shown.changed = true;
}

export function renderTail(following) {
  const { rows, count } = following.record;
  const typed = rows.some(({ type }) => type !== undefined && type !== "message");
  $("rows").classList.toggle("many", following.many);
  $("rows").classList.toggle("typed", typed);
  $("tail-empty").hidden = rows.length > 0;
  say($("tail-empty"), following.state === "stopped" ? "Nothing is followed." : EMPTY);
  const newer = WHOLE.format(count - shown.pausedAt);
  say($("tail-note"), shown.paused ? `paused, ${newer} newer` : "");
  if (!shown.paused) placeRows(rows.toReversed(), following.many ? following.selector : "");
}

function placeRows(rows, prefix) {
  const keep = new Set(rows);
  for (const [row, node] of drawn) {
    if (keep.has(row)) continue;
    node.remove();
    drawn.delete(row);
  }
  // New ones go before the first that is already there; earlier ones follow at the end.
  let next = $("rows").firstChild;
  for (const row of rows) {
    if (drawn.has(row)) next = drawn.get(row).nextSibling;
    else {
      const node = row.note ? noteRow(row) : eventRow(row, prefix);
      drawn.set(row, node);
      $("rows").insertBefore(node, next);
    }
  }
}

function noteRow({ note, text, at }) {
  return element(
    "li",
    {},
    element("p", {
      className: `note ${note}`,
      textContent: `${clockTime(at).slice(0, 8)}  ${text}`,
    }),
  );
}

function eventRow(event, prefix) {
  const text = typeof event.data === "string" ? event.data : JSON.stringify(event.data);
  const data = element("span", { className: "data" });
  if (event.key) data.append(element("span", { className: "key", textContent: `${event.key} ` }));
  data.append(text === "" ? "(empty)" : cut(text, 300));
  const cells = [element("span", { className: "id", textContent: event.id })];
  if (prefix !== "")
    cells.push(
      element("span", {
        className: "channel",
        textContent: event.channel.slice(prefix.length - 1),
        title: event.channel,
      }),
    );
  cells.push(
    element("span", {
      className: event.type === "message" ? "type" : "type named",
      textContent: event.type,
      title: event.type,
    }),
    data,
  );
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
  return element(
    "div",
    { className: "detail" },
    element("p", { textContent: facts.join(" · ") }),
    element("pre", { textContent: text, tabIndex: 0 }),
  );
}
