/* Positions, what events add up to, and the numbers in it: no document, no network. */

export const LEAVES_LIMIT = 200; // Fields of one state that are looked at.

/** Tells whether `value` is a number that only its digits hold; see parseJson. */
export const isRaw = (value) => JSON.isRawJSON?.(value) ?? false;

export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !isRaw(value);

/** Compares two positions `<milliseconds>-<sequence>`: below 0, 0 or above 0, as a sort does. */
export function comparePositions(a, b) {
  const [aMs, aSequence] = a.split("-").map(Number);
  const [bMs, bSequence] = b.split("-").map(Number);
  return aMs - bMs || aSequence - bSequence;
}

export const millisecondsOf = (id) => Number(id.split("-")[0]);

/** Returns `target` with a merge patch applied. Source: RFC 7396 section 2. */
export function mergePatch(target, patch) {
  if (!isObject(patch)) return patch;
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, mergePatch(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** Returns the state after one more event, by the channel's reducer; may change `state` itself. */
export function foldEvent(reducer, state, event) {
  if (reducer === "last") return event.data;
  if (reducer === "merge") return mergePatch(state, event.data);
  if (reducer !== "keyed") return state;
  const values = isObject(state) ? state : {};
  if (event.data === "") delete values[event.key];
  // Defined, not assigned: a key may be `__proto__`.
  else
    Object.defineProperty(values, event.key, {
      value: event.data,
      writable: true,
      enumerable: true,
      configurable: true,
    });
  return values;
}

/** Yields [path, value] for what is not an object or a list inside `value`, in its order. */
function* leaves(value, path = []) {
  if (typeof value !== "object" || value === null || isRaw(value)) yield [path, value];
  else for (const [name, member] of Object.entries(value)) yield* leaves(member, [...path, name]);
}

export function firstLeaves(value) {
  const found = [];
  for (const leaf of leaves(value)) {
    if (found.length === LEAVES_LIMIT) return { found, more: true };
    found.push(leaf);
  }
  return { found, more: false };
}

export function valueAt(value, path) {
  for (const name of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, name))
      return undefined;
    value = value[name];
  }
  return value;
}

/** Returns the number that an event gives a field of the state, if it gives one. */
export function numberIn(event, path) {
  const inKey = event.key !== "" && path[0] === event.key;
  const value = valueAt(event.data, inKey ? path.slice(1) : path);
  return typeof value === "number" ? value : undefined;
}

/** Picks the field that an operator would most likely want to see. */
export function pickField(state) {
  const numeric = firstLeaves(state)
    .found.filter(([, value]) => typeof value === "number")
    .map(([path]) => path);
  const likely = /(^|_)(percent|value|price|rate|load|temperature|latency|per_second)(_|$)/;
  return numeric.find((path) => likely.test(path.at(-1) ?? "")) ?? numeric[0] ?? null;
}

export const pathText = (path) => (path.length === 0 ? "(value)" : path.join(" › "));
