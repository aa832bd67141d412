/* The chart: one line over time, with marks where the stream broke. */
import { byteScale, clockTime, figure, isBytes } from "./console.figures.js";
import { drawing, svgPath } from "./console.document.js";

const PLOT = { left: 0, right: 72, top: 8, bottom: 22 };

/** Returns round values that divide [low, high] into about four. */
function ticksOf(low, high) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10]
    .map((factor) => factor * power)
    .find((candidate) => candidate >= rough);
  const ticks = [];
  for (let tick = Math.floor(low / step) * step; tick < high + step * 0.999; tick += step)
    ticks.push(Math.round(tick / step) * step);
  return ticks;
}

/** Returns the lowest and highest value to show. */
export function domainOf(values, name) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  // From zero, unless that would flatten the line: what happens near the top matters more then.
  if (low >= 0 && high > 0 && (low < high * 0.6 || /(^|_)percent$/.test(name))) return [0, high];
  if (low < high) return [low, high];
  return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.05, high + Math.abs(high) * 0.05];
}

/** Returns the values to draw, the round ones beside the grid, and where a value stands. */
function scaleOf(shown, name, bottom) {
  const values = shown.map(([, value]) => value);
  const [low, high] = domainOf(values, name);
  const unit = isBytes(name) ? byteScale(high) : 1;
  const ticks = ticksOf(low / unit, high / unit).map((tick) => tick * unit);
  const y = (value) =>
    bottom - ((value - ticks[0]) / (ticks.at(-1) - ticks[0])) * (bottom - PLOT.top);
  return { values, ticks, y };
}

/** Draws `points` ([time in ms, value]) over the last `seconds`, to the right edge at `now`. */
export class Chart {
  #svg;
  #crossAt = null;
  #last = null;

  constructor(svg) {
    this.#svg = svg;
    svg.addEventListener("pointermove", (event) => {
      this.#crossAt = event.clientX - svg.getBoundingClientRect().left;
      this.redraw();
    });
    svg.addEventListener("pointerleave", () => {
      this.#crossAt = null;
      this.redraw();
    });
    new ResizeObserver(() => this.redraw()).observe(svg);
  }

  redraw() {
    if (this.#last) this.draw(this.#last);
  }

  draw(picture) {
    this.#last = picture;
    const { points, marks, seconds, now, name, empty } = picture;
    const { width, height } = this.#svg.getBoundingClientRect();
    if (width === 0) return;
    const right = width - PLOT.right;
    const bottom = height - PLOT.bottom;
    const x = (at) => right - ((now - at) / (seconds * 1000)) * (right - PLOT.left);
    const parts = this.#timeAxis(seconds, x, now, bottom);
    const shown = points.filter(([at]) => at >= now - seconds * 1000);
    if (shown.length === 0) {
      parts.push(drawing("path", { class: "grid", d: `M0 ${bottom}H${right}` }));
      parts.push(drawing("text", { class: "nothing", x: 0, y: height / 2 - 8 }, empty));
      this.#svg.setAttribute("aria-label", empty);
    } else {
      const scale = scaleOf(shown, name, bottom);
      parts.push(
        ...this.#plot(shown, x, scale, right, bottom, name),
        ...this.#cross(shown, x, scale, right, bottom, name),
      );
    }
    for (const { at, kind } of marks) {
      if (at < now - seconds * 1000) continue;
      const mark = drawing("path", {
        class: `mark ${kind}`,
        d: `M${x(at).toFixed(1)} ${PLOT.top}V${bottom}`,
      });
      mark.append(drawing("title", {}, `${kind} at ${clockTime(at)}`));
      parts.push(mark);
    }
    this.#svg.replaceChildren(...parts);
  }

  #timeAxis(seconds, x, now, bottom) {
    const step = seconds / 4;
    const label = (ago) =>
      ago === 0
        ? "now"
        : ago >= 60
          ? `−${ago / 60} min`
          : `−${ago} s`;
    const parts = x(now) < 420 ? [4, 2, 0] : [4, 3, 2, 1, 0];
    return parts.map((part) => {
      const at = x(now - part * step * 1000);
      return drawing(
        "text",
        {
          x: at.toFixed(1),
          y: bottom + 16,
          "text-anchor": part === 4 ? "start" : part === 0 ? "end" : "middle",
        },
        label(part * step),
      );
    });
  }

  #plot(shown, x, { values, ticks, y }, right, bottom, name) {
    const parts = ticks.flatMap((tick) => {
      const at = Math.round(y(tick)) + 0.5;
      return [
        drawing("path", { class: "grid", d: `M0 ${at}H${right}` }),
        drawing(
          "text",
          { x: right + 8, y: at + 4 },
          figure(tick, name, ticks.at(-1)).join(" ").trim(),
        ),
      ];
    });
    const line = thin(shown.map(([at, value]) => [x(at), y(value)]));
    const spoken = (value) => figure(value, name).join(" ").trim();
    const [headX, headY] = line.at(-1);
    if (line.length > 1) {
      parts.push(
        drawing("path", {
          class: "under",
          d: `${svgPath(line)}L${headX.toFixed(1)} ${bottom}L${line[0][0].toFixed(1)} ${bottom}Z`,
        }),
      );
      parts.push(drawing("path", { class: "trace", d: svgPath(line) }));
    }
    parts.push(
      drawing("circle", { class: "head", cx: headX.toFixed(1), cy: headY.toFixed(1), r: 3 }),
    );
    this.#svg.setAttribute(
      "aria-label",
      `${name || "value"}: latest ${spoken(values.at(-1))}, ` +
        `lowest ${spoken(Math.min(...values))}, highest ${spoken(Math.max(...values))}`,
    );
    return parts;
  }

  #cross(shown, x, { y }, right, bottom, name) {
    if (this.#crossAt === null || this.#crossAt > right) return [];
    const distance = ([at]) => Math.abs(x(at) - this.#crossAt);
    const nearest = shown.reduce((best, point) =>
      distance(point) < distance(best) ? point : best,
    );
    const at = x(nearest[0]);
    const toLeft = at > right / 2;
    return [
      drawing("path", { class: "cross", d: `M${at.toFixed(1)} ${PLOT.top}V${bottom}` }),
      drawing("circle", {
        class: "head",
        cx: at.toFixed(1),
        cy: y(nearest[1]).toFixed(1),
        r: 3.5,
      }),
      drawing(
        "text",
        {
          class: "cross-label",
          x: (at + (toLeft ? -8 : 8)).toFixed(1),
          y: PLOT.top + 10,
          "text-anchor": toLeft ? "end" : "start",
        },
        `${figure(nearest[1], name).join(" ").trim()} at ${clockTime(nearest[0]).slice(0, 8)}`,
      ),
    ];
  }
}

/** Thins a line to the first, lowest, highest and last point of each pixel column. */
function thin(points) {
  if (points.length < 1_500) return points;
  const columns = new Map();
  for (const point of points) {
    const column = Math.round(point[0]);
    const kept = columns.get(column);
    if (!kept) columns.set(column, { first: point, low: point, high: point, last: point });
    else {
      if (point[1] < kept.low[1]) kept.low = point;
      if (point[1] > kept.high[1]) kept.high = point;
      kept.last = point;
    }
  }
  return [...columns.values()].flatMap(({ first, low, high, last }) =>
    [...new Set([first, low, high, last])].sort((a, b) => a[0] - b[0]),
  );
}
