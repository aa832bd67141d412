// Follows a stream with npm's EventSource; prints each event as a line of JSON.
// Usage: node follow.mjs URL
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
const print = ({ type, lastEventId, data }) =>
  process.stdout.write(`${JSON.stringify([lastEventId, type === "message" ? data : `${type}: ${data}`])}\n`);
for (const type of ["message", "gap"]) source.addEventListener(type, print);
