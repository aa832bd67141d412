/* The dark screen: connection, title, chart and readouts; and the notice below it. */
import { $, element, say } from "./console.document.js";
import { Chart } from "./console.chart.js";
import {
  ago,
  clockTime,
  count,
  duration,
  figure,
  milliseconds,
  ONE,
  quantile,
  WHOLE,
} from "./console.figures.js";
import {
  firstLeaves,
  LEAVES_LIMIT,
  millisecondsOf,
  numberIn,
  pathText,
  valueAt,
} from "./console.fold.js";
import { plotOf, shown } from "./console.view.js";
import { reducers } from "./console.member.js";

export const STATES = {
  idle: "No channel",
  loading: "Loading the snapshot",
  connecting: "Connecting",
  live: "Live",
  waiting: "Reconnecting",
  stopped: "Stopped",
};

const chart = new Chart($("chart"));
let drawnChoices = "";

export function renderScreen(following, now) {
  renderLink(following, now);
  renderTitle(following);
  renderPlot(following, now);
  renderReadouts(following, now);
  renderNotice(following);
}

function renderLink(following, now) {
  const { state } = following;
  $("link").dataset.state = state;
  say($("link-text"), STATES[state]);
  const silent = (now - following.heardAt) / 1000;
  const seconds = ONE.format(Math.max(0, following.resumesAt - now) / 1000);
  const notes = {
    live: silent > 3 ? `last byte ${ago(silent)}` : "",
    waiting: `${following.reason}, next try in ${seconds} s`,
    stopped: following.reason,
  };
  say($("link-note"), notes[state] ?? "");
  $("link-note").title = notes[state] ?? "";
  $("reconnect").hidden = !(
    state === "stopped" ||
    (state === "waiting" && following.resumesAt - now > 1_500)
  );
  document.title = `${state === "live" ? "" : "! "}${following.selector} · sse-gateway`;
}

function renderTitle(following) {
  say($("title"), following.selector);
  const { only } = following;
  const reducer = only?.reducer || reducers.get(following.selector);
  say(
    $("title-note"),
    following.many
      ? `${count(following.members.size, "channel")}${following.membersLeftOut ? ", and more" : ""}`
      : reducer
        ? `reducer ${reducer}`
        : "",
  );
}

function pointsOf(following, plot, now) {
  const { record } = following;
  const points = [];
  if (plot === null) {
    const end = Math.floor(now / 1000);
    const counted = new Map(record.seconds);
    const first = Math.max(end - shown.seconds, Math.floor(record.startedAt / 1000) + 1);
    for (let second = first; second < end; second += 1)
      points.push([(second + 1) * 1000, counted.get(second) ?? 0]);
    return points;
  }
  // Drawn when they were published: what came late, after an outage, stands where it belongs.
  const skew = record.clockSkew();
  for (const event of record.events) {
    if (event.channel !== plot.channel) continue;
    const value = numberIn(event, plot.path);
    if (value !== undefined) points.push([millisecondsOf(event.id) + skew, value]);
  }
  return points;
}

function renderPlot(following, now) {
  const plot = plotOf(following);
  renderFieldChoice(following, plot);
  const name = plot ? String(plot.path.at(-1) ?? "") : "events_per_second";
  const points = pointsOf(following, plot, now);
  const current = plot
    ? valueAt(following.members.get(plot.channel)?.value, plot.path)
    : following.record.rate(5, now);
  const known = plot !== null || following.liveSince > 0;
  const latest = typeof current === "number" && known ? current : points.at(-1)?.[1];
  const [text, unit] = latest === undefined ? ["–", ""] : figure(latest, name);
  say($("value"), text);
  say($("unit"), unit);
  const empty =
    following.state === "stopped"
      ? "Nothing to plot."
      : plot
        ? "No value in this time."
        : "Counting starts with the next second.";
  chart.draw({ points, marks: following.record.marks, seconds: shown.seconds, now, name, empty });
}

/** Returns what can be plotted: the rate, and the numbers in every state. */
function choicesOf(following, plot) {
  const choices = [{ value: "", text: "events per second", group: "" }];
  for (const member of following.members.values()) {
    if (choices.length > LEAVES_LIMIT) break;
    for (const [path, value] of firstLeaves(member.value).found) {
      if (typeof value !== "number") continue;
      choices.push({
        value: valueOf({ channel: member.channel, path }),
        text: pathText(path),
        group: following.many ? member.channel : "",
      });
    }
  }
  const selected = valueOf(plot);
  if (!choices.some(({ value }) => value === selected)) {
    const group = following.many ? plot.channel : "";
    choices.push({ value: selected, text: pathText(plot.path), group });
  }
  return choices;
}

const valueOf = (plot) =>
  plot === null ? "" : JSON.stringify({ channel: plot.channel, path: plot.path });

function renderFieldChoice(following, plot) {
  const choices = choicesOf(following, plot);
  const select = $("field");
  const signature = JSON.stringify(choices);
  // An open list must not change under the pointer: it is rebuilt only when it differs.
  if (signature !== drawnChoices) {
    drawnChoices = signature;
    const nodes = [];
    for (const { value, text, group } of choices) {
      if (group !== "" && nodes.at(-1)?.label !== group) {
        nodes.push(element("optgroup", { label: group }));
      }
      const label = group === "" ? text : `${group} › ${text}`;
      const option = element("option", { value, textContent: label });
      if (group === "") nodes.push(option);
      else nodes.at(-1).append(option);
    }
    select.replaceChildren(...nodes);
  }
  const selected = valueOf(plot);
  if (select.value !== selected) select.value = selected;
}

function renderReadouts(following, now) {
  const { position, record, reconnects, gaps, lastGap, resets } = following;
  const { count: received, latencies } = record;
  say($("position"), position || "–");
  $("position").title = position;
  say(
    $("position-sub"),
    position ? `${clockTime(millisecondsOf(position))}, gateway's clock` : "nothing received",
  );
  say($("epoch"), following.epoch || "–");
  $("epoch").title = following.epoch;
  say($("rate"), following.liveSince ? `${ONE.format(record.rate(10, now))} /s` : "–");
  say($("rate-sub"), received ? `${WHOLE.format(received)} received` : "none yet");
  const sorted = [...latencies].sort((a, b) => a - b);
  say($("latency"), sorted.length ? milliseconds(latencies.at(-1)) : "–");
  say(
    $("latency-sub"),
    sorted.length
      ? `p50 ${milliseconds(quantile(sorted, 0.5))}, p95 ${milliseconds(quantile(sorted, 0.95))}`
      : "publish to here",
  );
  $("latency").title =
    "From the position's milliseconds to this browser's clock: " +
    "a difference between the two clocks is part of it.";
  say($("reconnects"), WHOLE.format(reconnects));
  $("reconnects").className = reconnects ? "watch" : "";
  say(
    $("reconnects-sub"),
    following.state === "live"
      ? `up ${duration((now - following.liveSince) / 1000)}`
      : "not connected",
  );
  say($("gaps"), WHOLE.format(gaps));
  $("gaps").className = gaps ? "alarm" : "";
  const last = lastGap ? `${lastGap.reason}, ${ago((now - lastGap.at) / 1000)}` : "none";
  say($("gaps-sub"), resets ? `${last}; ${count(resets, "reset")}` : last);
}

function renderNotice(following) {
  const { notice } = following;
  $("notice").hidden = notice === null;
  if (notice === null) return;
  $("notice").dataset.kind = notice.kind;
  say($("notice-text"), notice.text);
}
