// better-sse as its README shows it: one channel object per channel, a session per stream, and
// `broadcast` for each event. Bodies are sent as they came: the serializer leaves them alone.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";

const channels = new Map();
const options = { serializer: (data) => data };
let number = 0;

function channelOf(name) {
  let channel = channels.get(name);
  if (!channel) channels.set(name, (channel = createChannel()));
  return channel;
}

const server = createServer(async (request, response) => {
  const [, kind, ...rest] = request.url.split("/");
  const channel = channelOf(rest.join("/"));
  if (kind === "streams" && request.method === "GET") {
    channel.register(await createSession(request, response, options));
  } else if (kind === "publish" && request.method === "POST") {
    request.setEncoding("utf8");
    let body = "";
    for await (const part of request) body += part;
    channel.broadcast(body, "message", { eventId: String(++number) });
    response.writeHead(204).end();
  } else {
    response.writeHead(404).end();
  }
});

server.keepAliveTimeout = 3_600_000;
server.requestTimeout = 0;
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 65535 });
