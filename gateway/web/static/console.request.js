/* Requests to the gateway, and what it says when it refuses one. */

/** The gateway's base address: this file is one step below it, whatever the base path. */
const BASE = new URL("../", import.meta.url);

/** Returns an address of the gateway; `channel`, if given, is the last part of the path. */
export function address(resource, channel, query = {}) {
  const path =
    channel === undefined
      ? resource
      : `${resource}/${encodeURI(channel).replace(/[?#]/g, encodeURIComponent)}`;
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query))
    if (value !== "") url.searchParams.set(name, value);
  return url;
}

/** Returns a refusal's problem document (RFC 9457), or one made from what there is. */
export async function problemOf(response) {
  const plain = {
    status: response.status,
    title: response.statusText || `status ${response.status}`,
  };
  try {
    const problem = await response.json();
    return typeof problem === "object" && problem !== null ? { ...plain, ...problem } : plain;
  } catch {
    return plain;
  }
}

export function describe({ status, title, detail, rule = "" }) {
  const text = detail || title;
  return `${status}: ${text}${text.includes(rule) ? "" : ` (${rule})`}`;
}

/** Tells whether a refusal may be over in a moment: RFC 9110 15.5.9 and 15.6, RFC 6585 4. */
export const isPassing = (status) => status >= 500 || status === 408 || status === 429;

/** Returns the value of a JSON text; integers that a double cannot hold keep their digits. */
export function parseJson(text) {
  if (!/[0-9]{16}/.test(text) || !JSON.rawJSON) return JSON.parse(text);
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" &&
    Number.isInteger(value) &&
    !Number.isSafeInteger(value) &&
    /^-?[0-9]+$/.test(context?.source ?? "")
      ? JSON.rawJSON(context.source)
      : value,
  );
}

/** Returns an address's JSON; a refusal is thrown as an Error with its `problem`. */
export async function getJson(url, signal, cache = "no-cache") {
  const response = await fetch(url, { signal, cache });
  if (!response.ok)
    throw Object.assign(new Error("refused"), { problem: await problemOf(response) });
  return parseJson(await response.text());
}
