/*
 * The console: follow a channel or a prefix, see its snapshot and its live tail, publish by hand.
 *
 * Hooks for tests and scripts, and nothing else is promised:
 *   document.documentElement.dataset  channel, state, lastId, reconnects, gaps, resets
 *   globalThis.sseConsole             { ids, reconnects, gaps, resets, state }: `ids` are of the
 *                                     events that the stream brought, in the order they came,
 *                                     repeats included, the last 10,000.
 * `state` is one of loading, connecting, live, waiting and stopped.
 */
import { $, say } from "./console.document.js";
import { choosePlot, shown } from "./console.view.js";
import { clearState, renderState } from "./console.state.js";
import { clearTail, renderTail, setPaused } from "./console.tail.js";
import { Following } from "./console.following.js";
import {
  filterChannels,
  loadChannels,
  markCurrent,
  refreshChannels,
  renderChannels,
} from "./console.channels.js";
import { publishByHand } from "./console.publish.js";
import { renderScreen, STATES } from "./console.screen.js";

let spokenState = "";

globalThis.sseConsole = {
  get ids() {
    return shown.following?.record.ids ?? [];
  },
  get reconnects() {
    return shown.following?.reconnects ?? 0;
  },
  get gaps() {
    return shown.following?.gaps ?? 0;
  },
  get resets() {
    return shown.following?.resets ?? 0;
  },
  get state() {
    return shown.following?.state ?? "idle";
  },
};

function follow(selector) {
  shown.following?.stop();
  Object.assign(shown, { plot: null, plotChosen: false });
  setPaused(false);
  clearTail();
  clearState();
  const following = new Following(selector, () => {
    shown.changed = true;
    publishHooks(following);
    speak(following);
  });
  shown.following = following;
  $("suggestions").hidden = true;
  $("instruments").hidden = false;
  document.documentElement.dataset.channel = selector;
  $("publish-channel").value = following.many ? selector.slice(0, -1) : selector;
  spokenState = "";
  markCurrent();
  render();
  following.start();
}

function publishHooks(following) {
  if (following !== shown.following) return;
  const { dataset } = document.documentElement;
  dataset.state = following.state;
  dataset.lastId = following.record.ids.at(-1) ?? "";
  dataset.reconnects = following.reconnects;
  dataset.gaps = following.gaps;
  dataset.resets = following.resets;
}

/** Speaks what changes rarely and matters, so that a screen reader is not talked over. */
function speak(following) {
  if (following !== shown.following || following.state === spokenState) return;
  if (["live", "waiting", "stopped"].includes(following.state)) {
    say($("spoken"), `${STATES[following.state]}: ${following.selector}. ${following.reason}`);
  }
  spokenState = following.state;
  renderChannels(); // Which say of each whether it is live.
}

function render() {
  shown.changed = false;
  const { following } = shown;
  if (!following) return;
  const now = Date.now();
  renderScreen(following, now);
  renderState(following, now);
  renderTail(following);
}

function openChannel(selector) {
  if (decodeURI(location.hash.slice(1)) === selector) follow(selector);
  else location.hash = encodeURI(selector);
}

function followHash() {
  let selector;
  try {
    selector = decodeURI(location.hash.slice(1));
  } catch {
    selector = location.hash.slice(1);
  }
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
  try {
    localStorage.setItem("sse-gateway-theme", theme);
  } catch {
    /* Private windows forget it. */
  }
}

function savedTheme() {
  try {
    return THEMES.find((theme) => theme === localStorage.getItem("sse-gateway-theme")) ?? "system";
  } catch {
    return "system";
  }
}

function listen() {
  $("follow").addEventListener("submit", (event) => {
    event.preventDefault();
    const selector = $("selector").value.trim();
    if (selector !== "") openChannel(selector);
  });
  $("selector").addEventListener("input", () => {
    filterChannels();
  });
  $("rail-toggle").addEventListener("click", () => {
    const open = $("rail").toggleAttribute("data-open");
    $("rail-toggle").setAttribute("aria-expanded", String(open));
    renderChannels();
  });
  $("skip").addEventListener("click", () => $("main").focus());
  $("theme").addEventListener("click", () =>
    setTheme(THEMES[(THEMES.indexOf(savedTheme()) + 1) % THEMES.length]),
  );
  $("reconnect").addEventListener("click", () => {
    if (shown.following.state === "stopped") follow(shown.following.selector);
    else shown.following.connectNow();
  });
  $("notice-close").addEventListener("click", () => {
    shown.following.notice = null;
    render();
  });
  $("pause").addEventListener("click", () => setPaused(!shown.paused));
  $("field").addEventListener("change", ({ target }) =>
    choosePlot(target.value === "" ? null : JSON.parse(target.value)),
  );
  for (const button of document.querySelectorAll("[data-seconds]")) {
    button.addEventListener("click", () => {
      shown.seconds = Number(button.dataset.seconds);
      press("[data-seconds]", button);
    });
  }
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      shown.view = button.dataset.view;
      press("[data-view]", button);
    });
  }
  $("publish").addEventListener("submit", (event) => {
    event.preventDefault();
    publishByHand(event.target, loadChannels);
  });
  $("publish-data").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish").requestSubmit();
  });
  addEventListener("hashchange", followHash);
  addEventListener("pagehide", () => shown.following?.stop());
  addEventListener("pageshow", (event) => {
    if (event.persisted && shown.following) follow(shown.following.selector);
  });
}

function press(group, pressed) {
  for (const button of document.querySelectorAll(group))
    button.setAttribute("aria-pressed", String(button === pressed));
  render();
}

async function main() {
  setTheme(savedTheme());
  listen();
  followHash();
  await loadChannels();
  setInterval(() => {
    if (!document.hidden) refreshChannels();
  }, 5_000);
  // Five pictures a second are enough for the eye; the time axis needs one even in silence.
  let pictures = 0;
  setInterval(() => {
    if (!document.hidden && (shown.changed || pictures++ % 2 === 0)) render();
  }, 200);
}

main();
