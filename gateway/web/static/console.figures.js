/* Numbers, times and sizes as people read them. */

const decimals = (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits });
export const [WHOLE, ONE, TWO, FOUR] = [0, 1, 2, 4].map(decimals);
const PERCENT = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Returns what bytes of about `value` are best counted in: 1, 1024, 1024²… */
export const byteScale = (value) => {
  const power = Math.floor(Math.log(Math.max(Math.abs(value), 1)) / Math.log(1024));
  return 1024 ** Math.min(power, BYTE_UNITS.length - 1);
};

export const isBytes = (name) => /(^|_)bytes(_per_second)?$/.test(name);

/**
 * Returns [text, unit] for a number whose field name ends in its unit. Bytes are counted in the
 * unit that suits `like`.
 */
export function figure(value, name = "", like = value) {
  if (isBytes(name)) {
    const scale = byteScale(like);
    const scaled = value / scale;
    const format = scaled < 10 && scale > 1 ? TWO : scaled < 100 ? ONE : WHOLE;
    const unit = BYTE_UNITS[Math.round(Math.log(scale) / Math.log(1024))];
    return [format.format(scaled), name.endsWith("_per_second") ? `${unit}/s` : unit];
  }
  if (/(^|_)percent$/.test(name)) return [PERCENT.format(value), "%"];
  if (/_per_second$/.test(name)) return [TWO.format(value), "/s"];
  if (/_(seconds|s)$/.test(name)) return [FOUR.format(value), "s"];
  if (/_(milliseconds|ms)$/.test(name)) return [TWO.format(value), "ms"];
  const small = value !== 0 && Math.abs(value) < 0.001;
  return [small ? value.toPrecision(3) : FOUR.format(value), ""];
}

const CLOCK = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});
export const clockTime = (ms) => CLOCK.format(new Date(ms));

export function duration(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400)
    return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** The same, as short as a list needs it. */
export const roughly = (seconds) => duration(seconds).split(" ").slice(0, 2).join(" ");

export const ago = (seconds) => (seconds < 1 ? "now" : `${duration(seconds)} ago`);

export const milliseconds = (ms) =>
  Math.abs(ms) < 1_000 ? `${WHOLE.format(ms)} ms` : `${ONE.format(ms / 1000)} s`;
export const count = (number, noun) => `${WHOLE.format(number)} ${noun}${number === 1 ? "" : "s"}`;

export function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** Returns `text`, cut when it is longer than `limit`. */
export const cut = (text, limit) => (text.length > limit ? `${text.slice(0, limit)}…` : text);
