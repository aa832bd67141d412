/* The panel of the state: a channel's fields or JSON, or a prefix's channels one by one. */
import { $, drawing, element, say, svgPath } from "./console.document.js";
import { choosePlot, samePlot, shown } from "./console.view.js";
import { ago, cut, figure } from "./console.figures.js";
import { domainOf } from "./console.chart.js";
import { firstLeaves, isRaw, LEAVES_LIMIT, pathText, valueAt } from "./console.fold.js";
import { MEMBERS_LIMIT } from "./console.following.js";

const STATE_LIMIT_CHARS = 100_000; // Of a state shown as JSON.
const drawn = { kind: "", rows: new Map() };

export function clearState() {
  drawn.rows.clear();
  drawn.kind = "";
  $("state").replaceChildren();
}

export function renderState(following, now) {
  const { only } = following;
  $("state-view").hidden = following.many;
  say($("state-title"), following.many ? "Channels" : "State");
  say(
    $("state-note"),
    following.many || !only?.id || only.value === undefined ? "" : `at ${only.id}`,
  );
  if (following.many) return renderMembers(following, now);
  if (only?.value === undefined) return renderStateText("empty", absence(following, only));
  if (shown.view === "json")
    return renderStateText("json", cut(JSON.stringify(only.value, null, 2), STATE_LIMIT_CHARS));
  renderFields(only);
}

/** Returns why there is no state to show. */
function absence(following, only) {
  if (!only?.id && following.state === "stopped") return `No snapshot: ${following.reason}`;
  if (!only?.id && following.state === "waiting") return "The snapshot could not be loaded yet.";
  if (!only?.id) return "Loading…";
  return `No state yet${only.reason ? `: ${only.reason}` : ""}.`;
}

function renderStateText(kind, text) {
  if (drawn.kind !== kind) {
    clearState();
    drawn.kind = kind;
    $("state").append(
      kind === "json" ? element("pre", { tabIndex: 0 }) : element("p", { className: "empty" }),
    );
  }
  say($("state").firstChild, text);
}

/** Returns the table's body, and makes the table when another kind of picture was there. */
function stateTable(kind, caption) {
  if (drawn.kind !== kind) {
    clearState();
    drawn.kind = kind;
    $("state").append(
      element(
        "table",
        {},
        element("caption", { className: "sr", textContent: caption }),
        element("tbody"),
      ),
    );
  }
  return $("state").querySelector("tbody");
}

function plotButton(text, plot) {
  const button = element("button", {
    type: "button",
    className: "plot",
    textContent: text,
    title: "Plot this field",
  });
  button.addEventListener("click", () => choosePlot(plot));
  return button;
}

function renderFields(member) {
  const body = stateTable("fields", "Fields of the state");
  const { found, more } = firstLeaves(member.value);
  const keep = new Set();
  found.forEach(([path, value], index) => {
    const key = `${typeof value === "number"}:${JSON.stringify(path)}`;
    keep.add(key);
    const row = drawn.rows.get(key) ?? fieldRow(key, { channel: member.channel, path }, value);
    const [text, unit] = shownAs(value, path);
    say(row.text, text);
    say(row.unit, unit);
    row.text.title = row.plot ? String(value) : "";
    if (row.plot) row.name.setAttribute("aria-pressed", String(samePlot(shown.plot, row.plot)));
    place(body, row.node, index);
  });
  dropRows(keep);
  say($("state-note"), `at ${member.id}${more ? `, first ${LEAVES_LIMIT} fields` : ""}`);
}

/** Returns the text and unit of one value. */
function shownAs(value, path) {
  if (typeof value === "number") return figure(value, String(path.at(-1) ?? ""));
  if (isRaw(value)) return [value.rawJSON, ""];
  return [typeof value === "string" ? value : JSON.stringify(value), ""];
}

function fieldRow(key, plot, value) {
  const numeric = typeof value === "number";
  const label = pathText(plot.path);
  const name = numeric ? plotButton(label, plot) : element("span", { textContent: label });
  const text = element("span");
  const unit = element("span", { className: "unit" });
  const cell = element("td", { className: numeric ? "figure" : "figure text" }, text, unit);
  const node = element("tr", {}, element("th", { scope: "row", className: "path" }, name), cell);
  const row = { node, name, text, unit, plot: numeric ? plot : null };
  drawn.rows.set(key, row);
  return row;
}

function place(body, node, index) {
  if (body.children[index] !== node) body.insertBefore(node, body.children[index] ?? null);
}

function renderMembers(following, now) {
  if (following.members.size === 0) {
    const text = "No channel under this prefix yet. Each appears with its first event.";
    return renderStateText("empty", text);
  }
  const body = stateTable("members", "Channels under the prefix");
  const keep = new Set(following.members.keys());
  const members = [...following.members.values()];
  members.sort((a, b) => (a.channel < b.channel ? -1 : 1));
  members.forEach((member, index) => {
    const row = drawn.rows.get(member.channel) ?? memberRow(member, following.selector);
    renderMember(row, member, now);
    place(body, row.node, index);
  });
  dropRows(keep);
  say($("state-note"), following.membersLeftOut ? `the first ${MEMBERS_LIMIT}` : "");
}

/** A channel with a number shows it with its trace, any other the beginning of its state. */
function renderMember(row, member, now) {
  const { field } = member;
  const value = field ? valueAt(member.value, field) : undefined;
  const [text, unit] =
    typeof value === "number" ? shownAs(value, field) : [brief(member.value), ""];
  say(row.text, text);
  say(row.unit, unit);
  say(row.field, field ? pathText(field) : member.at ? ago((now - member.at) / 1000) : "");
  row.line.setAttribute("d", sparkPath(member.trace, String(field?.at(-1) ?? "")));
  row.spark.hidden = !field;
  row.cell.colSpan = field ? 1 : 2;
  row.cell.className = field ? "figure" : "figure text";
  row.name.disabled = !field;
  const plot = { channel: member.channel, path: field ?? [] };
  row.name.setAttribute("aria-pressed", String(field !== null && samePlot(shown.plot, plot)));
}

function memberRow(member, selector) {
  const name = element("button", {
    type: "button",
    className: "plot",
    textContent: member.channel.slice(selector.length - 1),
    title: `Plot ${member.channel}`,
  });
  name.addEventListener("click", () => {
    choosePlot({ channel: member.channel, path: member.field });
  });
  const line = drawing("path");
  const box = { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none" };
  const picture = drawing("svg", { ...box, "aria-hidden": "true" }, line);
  const spark = element("td", { className: "spark-cell" }, picture);
  const text = element("span");
  const unit = element("span", { className: "unit" });
  const field = element("span", { className: "field-name" });
  const cell = element("td", {}, text, unit);
  const head = element("th", { scope: "row", className: "path" }, name, field);
  const node = element("tr", {}, head, spark, cell);
  const row = { node, name, line, text, unit, field, spark, cell };
  drawn.rows.set(member.channel, row);
  return row;
}

function dropRows(keep) {
  for (const [key, { node }] of drawn.rows) {
    if (keep.has(key)) continue;
    node.remove();
    drawn.rows.delete(key);
  }
}

function sparkPath(values, name) {
  if (values.length < 2) return "";
  const [low, high] = domainOf(values, name);
  return svgPath(
    values.map((value, index) => [
      (index / (values.length - 1)) * 100,
      18.5 - ((value - low) / (high - low)) * 17,
    ]),
  );
}

function brief(value) {
  if (value === undefined) return "–";
  return cut(typeof value === "string" ? value : JSON.stringify(value), 60);
}
