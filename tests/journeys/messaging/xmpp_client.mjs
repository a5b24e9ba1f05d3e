// Two @xmpp/client sessions talk: one over TCP with STARTTLS, one over a WebSocket (RFC 7395). Prints one JSON line.
//   node --experimental-websocket xmpp_client.mjs XMPP_PORT WS_URL PASSWORD
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [tcpPort, socketUrl, password, root] = process.argv.slice(2);
const found = createRequire(join(root, "package.json")).resolve("@xmpp/client");
const { client, xml } = await import(pathToFileURL(found));

function person(name, service) {
  const made = client({ service, domain: "localhost", username: name, password, resource: "js" });
  made.on("error", (error) => { console.error(name, error); });
  made.inbox = [];
  made.waiting = [];
  made.on("stanza", (stanza) => {
    if (!stanza.is("message") || !stanza.getChildText("body")) return;
    const next = made.waiting.shift();
    if (next) next(stanza); else made.inbox.push(stanza);
  });
  made.nextMessage = () => made.inbox.length ? Promise.resolve(made.inbox.shift()) : new Promise((resolve) => made.waiting.push(resolve));
  return made;
}

setTimeout(() => { console.error("too slow"); process.exit(2); }, 20_000).unref();
const alice = person("alice", `xmpp://localhost:${tcpPort}`);
const bob = person("bob", socketUrl);
const online = [];
for (const one of [alice, bob]) {
  online.push(String(await one.start()));
  await one.send(xml("presence"));
}
await alice.send(xml("message", { to: "bob@localhost", type: "chat", id: "one" }, xml("body", {}, "from TCP")));
const first = await bob.nextMessage();
await bob.send(xml("message", { to: first.attrs.from, type: "chat", id: "two" }, xml("body", {}, "from a WebSocket <&>")));
const second = await alice.nextMessage();
const roster = await bob.iqCaller.get(xml("query", { xmlns: "jabber:iq:roster" }));
console.log(JSON.stringify({
  online, first: first.getChildText("body"), second: second.getChildText("body"), roster: roster.attrs.xmlns,
}));
await Promise.all([alice.stop(), bob.stop()]);
process.exit(0);
