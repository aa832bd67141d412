/* What the view is set to: shared by its parts, which each draw one place of the page. */

export const shown = {
  following: null,
  plot: null, // The plotted field { channel, path }; null is the rate.
  plotChosen: false,
  seconds: 120,
  view: "fields",
  paused: false,
  pausedAt: 0,
  changed: true, // Something is to be drawn.
};

/** Returns the plotted field: the one chosen, else the first that there is, else null: the rate. */
export function plotOf(following) {
  if (shown.plotChosen) return shown.plot;
  if (shown.plot === null) {
    const member = [...following.members.values()]
      .sort((a, b) => (a.channel < b.channel ? -1 : 1))
      .find(({ field }) => field);
    if (member) shown.plot = { channel: member.channel, path: member.field };
  }
  return shown.plot;
}

export const samePlot = (a, b) =>
  a !== null && a.channel === b.channel && a.path.join("\n") === b.path.join("\n");

export function choosePlot(plot) {
  shown.plot = plot;
  shown.plotChosen = true;
  shown.changed = true;
}
