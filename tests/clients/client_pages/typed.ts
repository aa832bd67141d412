// What the types of the module allow, and what they do not.
import { follow } from "../../../gateway/web/static/client.js";

const channel = follow("/", "stocks/acme", { transports: ["slices", "poll"], persist: true });
channel.addEventListener("event", ({ detail }) => {
  const id: string = detail.id;
  // @ts-expect-error: an id is text.
  const wrong: number = detail.id;
  return [id, wrong];
});
channel.addEventListener("gap", ({ detail }) => detail.reason.trim());
channel.addEventListener("status", ({ detail }) => detail.connected && detail.transport);
// @ts-expect-error: there is no such transport.
follow("/", "stocks/acme", { transports: ["websocket"] });
// @ts-expect-error: a state has no reason.
channel.addEventListener("state", ({ detail }) => detail.reason);
// @ts-expect-error: nor is there such an event.
channel.addEventListener("message", () => {});
channel.close();
