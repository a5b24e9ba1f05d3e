/* The messenger: contacts, one-to-one conversations and groups, files, presence, delivery and read marks, what came while away.

   Marks: … on its way, one tick: the server has it on disk or delivered it, two: their device has it (XEP-0184), two in
   colour: read (XEP-0333). History stays in this browser and in the account's archive, which fills a new browser. */

import * as archive from "./archive.js";
import * as groups from "./groups.js";
import * as media from "./media.js";
import { Xmpp, bare, escape } from "./xmpp.js";

const $ = (id) => document.getElementById(id);
const HISTORY_MAX = 300;
const TYPING_S = 4;
const settings = await (await fetch("/messaging/api/configuration")).json();
let xmpp = null;
let open = "";
const contacts = new Map(); // jid -> {jid, name, subscription, ask, resources: Map, unread, typing}
const logs = new Map(); // jid -> [{id, mine, text, at, mark, late}]
const requests = new Set();

function face(element, jid) {
  let hue = 0;
  for (const c of jid) hue = (hue * 31 + c.codePointAt(0)) % 360;
  element.style.setProperty("--hue", hue);
  element.textContent = [...jid][0];
  element.className = `face ${presenceOf(jid)}`;
}
function presenceOf(jid) {
  const shows = [...(contacts.get(jid)?.resources.values() ?? [])];
  return shows.some((show) => !show || show === "chat") ? "online" : shows.length ? "away" : "";
}
const inRoom = (jid) => groups.isRoom(jid, settings.domain);
const me = () => bare(xmpp.jid).split("@")[0];
const titleOf = (jid) => inRoom(jid) ? `# ${contacts.get(jid)?.name || jid.split("@")[0]}` : contacts.get(jid)?.name || (jid.endsWith(`@${settings.domain}`) ? jid.split("@")[0] : jid);
const storeKey = () => `messages:${bare(xmpp.jid)}`;
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

function contact(jid) {
  if (!contacts.has(jid)) contacts.set(jid, { jid, name: "", subscription: "none", ask: false, resources: new Map(), unread: 0, typing: 0 });
  return contacts.get(jid);
}
function log(jid) {
  if (!logs.has(jid)) logs.set(jid, []);
  return logs.get(jid);
}
function save() {
  const kept = Object.fromEntries([...logs].map(([jid, entries]) => [jid, entries.slice(-HISTORY_MAX)]));
  try { localStorage.setItem(storeKey(), JSON.stringify(kept)); } catch { /* a full or forbidden store only loses history */ }
}
function restore() {
  logs.clear();
  try {
    for (const [jid, entries] of Object.entries(JSON.parse(localStorage.getItem(storeKey()) ?? "{}"))) logs.set(jid, entries);
  } catch { localStorage.removeItem(storeKey()); }
}

function say(text) { $("state").textContent = text; $("state").hidden = !text; }

function login(name, password) {
  $("login-error").hidden = true;
  const local = name.trim().toLowerCase().split("@")[0];
  xmpp = new Xmpp(settings.socket, settings.domain, local, password);
  xmpp.addEventListener("open", began);
  xmpp.addEventListener("resumed", () => say(""));
  xmpp.addEventListener("closed", ({ detail }) => { if (xmpp?.jid && detail.retry) say("Offline, trying again. What you write is sent then."); });
  xmpp.addEventListener("failed", ({ detail }) => failed(detail));
  xmpp.addEventListener("acked", ({ detail }) => mark(/^<message[^>]* id="([^"]+)"/.exec(detail)?.[1], 1));
  xmpp.addEventListener("stanza", ({ detail }) => arrived(detail));
  xmpp.connect();
}
function failed(text) {
  const reason = text === "conflict" ? "You logged in elsewhere." : text;
  $("login-error").textContent = reason;
  $("login-error").hidden = false;
  if (!$("chat-view").hidden) leave();
}
function leave() {
  xmpp?.close();
  xmpp = null; open = ""; contacts.clear(); requests.clear(); logs.clear();
  $("chat-view").hidden = $("me").hidden = $("logout").hidden = true;
  $("login-view").hidden = false;
  $("conversation").hidden = true; $("hint").hidden = false;
  $("chat-view").classList.remove("open");
  say("");
}
async function began() {
  say("");
  restore();
  $("login-view").hidden = true;
  $("chat-view").hidden = $("me").hidden = $("logout").hidden = false;
  $("me").textContent = bare(xmpp.jid).split("@")[0];
  for (const known of contacts.values()) known.resources.clear();
  await xmpp.request("set", '<enable xmlns="urn:xmpp:carbons:2"/>').catch(() => {});
  const roster = await xmpp.request("get", '<query xmlns="jabber:iq:roster"/>');
  for (const item of roster.getElementsByTagName("item")) rosterItem(item);
  xmpp.send('<presence xmlns="jabber:client"/>');
  for (const { room, nick, title } of await groups.remembered(xmpp)) enter(room, nick || me(), title);
  draw();
  await archive.page(xmpp, { most: 100 }).catch(() => {});
  for (const entries of logs.values()) entries.sort((a, b) => a.at - b.at);
  save(); draw();
}
function enter(room, nick, title) {
  Object.assign(contact(room), { room: true, name: title, nick });
  groups.join(xmpp, room, nick, log(room).at(-1)?.at);
}
async function openRoom(name) {
  const room = groups.roomOf(name, settings.domain);
  if (!contacts.get(room)?.room) {
    enter(room, me(), name);
    groups.remember(xmpp, room, me(), name).catch(() => {});
  }
  choose(room);
}
function rosterItem(item) {
  const jid = item.getAttribute("jid");
  if (item.getAttribute("subscription") === "remove") { contacts.delete(jid); return; }
  Object.assign(contact(jid), {
    name: item.getAttribute("name") ?? "", subscription: item.getAttribute("subscription"), ask: item.hasAttribute("ask"),
  });
}

function arrived(stanza) {
  const from = stanza.getAttribute("from") ?? bare(xmpp.jid);
  if (stanza.localName === "presence") presence(stanza, from);
  else if (stanza.localName === "message") message(stanza, from);
  else if (stanza.localName === "iq") answer(stanza);
}
function answer(stanza) {
  const id = escape(stanza.getAttribute("id") ?? "");
  const from = stanza.getAttribute("from");
  const to = from ? ` to="${escape(from)}"` : "";
  const item = stanza.querySelector("query > item");
  if (item && (!from || bare(from) === bare(xmpp.jid))) {
    rosterItem(item);
    xmpp.send(`<iq xmlns="jabber:client" type="result" id="${id}"${to}/>`);
    draw();
  } else if (stanza.firstElementChild?.localName === "ping") xmpp.send(`<iq xmlns="jabber:client" type="result" id="${id}"${to}/>`);
  else {
    const error = '<error type="cancel"><service-unavailable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error>';
    xmpp.send(`<iq xmlns="jabber:client" type="error" id="${id}"${to}>${error}</iq>`);
  }
}
function presence(stanza, from) {
  const type = stanza.getAttribute("type");
  const jid = bare(from);
  if (jid === bare(xmpp.jid)) return;
  if (inRoom(jid)) {
    const room = contact(jid);
    if (type === "error") { room.refused = stanza.getElementsByTagName("text")[0]?.textContent || "The group lets you not in."; }
    else if (type === "unavailable") room.resources.delete(from);
    else {
      room.refused = "";
      room.resources.set(from, "");
      if ([...stanza.getElementsByTagName("status")].some((status) => status.getAttribute("code") === "201")) {
        groups.keep(xmpp, jid, room.name || jid.split("@")[0]).catch(() => {});
      }
    }
    draw();
    return;
  }
  if (type === "subscribe") {
    if (contacts.get(jid)?.subscription === "to" || contacts.get(jid)?.ask) subscription(jid, "subscribed");
    else requests.add(jid);
  } else if (type === "unavailable") contacts.get(jid)?.resources.delete(from);
  else if (!type) contact(jid).resources.set(from, stanza.getElementsByTagName("show")[0]?.textContent ?? "");
  draw();
}
function subscription(jid, type) { xmpp.send(`<presence xmlns="jabber:client" to="${escape(jid)}" type="${type}"/>`); }

const child = (element, name, namespace) => [...element.children].find((c) => c.localName === name && (!namespace || c.namespaceURI === namespace));

function message(stanza, from, mine = false, saidAt = 0) {
  const old = saidAt ? null : archive.found(stanza);
  if (old) {
    if (bare(from) !== bare(xmpp.jid)) return;
    const sender = old.inner.getAttribute("from") ?? "";
    if (old.inner.getAttribute("type") !== "groupchat") message(old.inner, sender, bare(sender) === bare(xmpp.jid), old.at);
    return;
  }
  const carbon = child(stanza, "received", "urn:xmpp:carbons:2") ?? child(stanza, "sent", "urn:xmpp:carbons:2");
  if (carbon && !mine && bare(from) === bare(xmpp.jid)) {
    const inner = carbon.getElementsByTagName("message")[0];
    if (inner) message(inner, inner.getAttribute("from"), carbon.localName === "sent");
    return;
  }
  const spoken = stanza.getAttribute("type") === "groupchat";
  const nick = spoken ? from.slice(bare(from).length + 1) : "";
  if (spoken && !nick) return; // the room itself, about its subject or configuration
  if (spoken && nick === contacts.get(bare(from))?.nick) {
    const id = stanza.getAttribute("id");
    if (log(bare(from)).some((entry) => entry.mine && entry.id === id)) { mark(id, 2); return; }
    mine = true;
  }
  const jid = bare(mine && !spoken ? stanza.getAttribute("to") : from);
  const id = stanza.getAttribute("id");
  if (stanza.getAttribute("type") === "error") { mark(id, -1); return; }
  const receipt = child(stanza, "received", "urn:xmpp:receipts");
  const displayed = child(stanza, "displayed", "urn:xmpp:chat-markers:0");
  if (receipt) mark(receipt.getAttribute("id"), 2);
  if (displayed) markRead(jid, displayed.getAttribute("id"));
  const body = child(stanza, "body")?.textContent;
  const typing = Boolean(child(stanza, "composing"));
  if (!mine && contacts.has(jid)) { contacts.get(jid).typing = typing ? Date.now() : 0; }
  if (body !== undefined) {
    const delay = child(stanza, "delay", "urn:xmpp:delay");
    const at = saidAt || (delay ? Date.parse(delay.getAttribute("stamp")) : Date.now());
    const entries = log(jid);
    if (id && entries.some((entry) => entry.id === id && entry.mine === mine)) return;
    entries.push({ id, mine, text: body, at, mark: mine ? 1 : 0, late: Boolean(delay) && !mine && !spoken, who: mine ? "" : nick });
    if (saidAt) { contact(jid); return; } // from the archive: shown when the page is complete
    const known = contact(jid);
    const seen = jid === open && document.visibilityState === "visible";
    if (spoken) { if (!mine && !seen && !delay) known.unread++; }
    else if (!mine && child(stanza, "request", "urn:xmpp:receipts")) reply(jid, `<received xmlns="urn:xmpp:receipts" id="${escape(id)}"/>`);
    if (spoken) { /* groups have no marks for each reader */ }
    else if (!mine && seen) reply(jid, `<displayed xmlns="urn:xmpp:chat-markers:0" id="${escape(id)}"/>`);
    else if (!mine) known.unread++;
    save();
  }
  draw();
}
function reply(to, payload) {
  xmpp.send(`<message xmlns="jabber:client" type="chat" to="${escape(to)}">${payload}<store xmlns="urn:xmpp:hints"/></message>`);
}
function mark(id, value) {
  if (!id) return;
  for (const entries of logs.values()) {
    for (const entry of entries) if (entry.mine && entry.id === id && (value < 0 || entry.mark < value)) entry.mark = value;
  }
  save(); draw();
}
function markRead(jid, id) {
  const entries = log(jid);
  const last = entries.findIndex((entry) => entry.mine && entry.id === id);
  for (const entry of entries.slice(0, last + 1)) if (entry.mine && entry.mark >= 0) entry.mark = 3;
  save(); draw();
}
function send(text) {
  const id = crypto.randomUUID();
  log(open).push({ id, mine: true, text, at: Date.now(), mark: 0, late: false });
  if (inRoom(open)) {
    xmpp.send(`<message xmlns="jabber:client" id="${id}" type="groupchat" to="${escape(open)}"><body>${escape(text)}</body></message>`);
    save(); draw();
    return;
  }
  xmpp.send(`<message xmlns="jabber:client" id="${id}" type="chat" to="${escape(open)}"><body>${escape(text)}</body>`
    + '<request xmlns="urn:xmpp:receipts"/><markable xmlns="urn:xmpp:chat-markers:0"/><active xmlns="http://jabber.org/protocol/chatstates"/></message>');
  save(); draw();
}

function choose(jid) {
  open = jid;
  contact(jid);
  $("hint").hidden = true; $("conversation").hidden = false;
  $("chat-view").classList.add("open");
  read();
  draw(); $("text").focus();
}
function read() {
  const known = contacts.get(open);
  if (!known || document.visibilityState !== "visible") return;
  const last = log(open).findLast((entry) => !entry.mine);
  if (known.unread && last?.id && !inRoom(open)) reply(open, `<displayed xmlns="urn:xmpp:chat-markers:0" id="${escape(last.id)}"/>`);
  known.unread = 0;
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}
function draw() {
  if (!xmpp) return;
  drawRequests();
  const shown = [...new Set([...contacts.keys(), ...logs.keys()])]
    .map((jid) => ({ jid, last: logs.get(jid)?.at(-1) }))
    .sort((a, b) => (b.last?.at ?? 0) - (a.last?.at ?? 0) || a.jid.localeCompare(b.jid));
  $("nobody").hidden = shown.length > 0 || requests.size > 0;
  $("contacts").replaceChildren(...shown.map(({ jid, last }) => {
    const known = contacts.get(jid);
    const picture = make("span", { ariaHidden: "true" });
    face(picture, jid);
    const text = Date.now() - (known?.typing ?? 0) < TYPING_S * 1000 ? "typing…" : last ? `${last.mine ? "You: " : last.who ? `${last.who}: ` : ""}${media.nameOf(last.text)}` : known?.ask ? "request sent" : "";
    const button = make("button", { type: "button" }, picture, make("span", { className: "title", textContent: titleOf(jid) }), make("span", { className: "last", textContent: text }));
    if (known?.unread) button.append(make("span", { className: "unread", textContent: known.unread, ariaLabel: `${known.unread} unread` }));
    button.setAttribute("aria-current", String(jid === open));
    button.onclick = () => choose(jid);
    return make("li", {}, button);
  }));
  if (open) drawConversation();
}
function drawRequests() {
  $("requests").replaceChildren(...[...requests].map((jid) => {
    const accept = make("button", { className: "button small", textContent: "Accept", onclick: () => decide(jid, true) });
    const refuse = make("button", { className: "button quiet small", textContent: "Decline", onclick: () => decide(jid, false) });
    return make("div", { className: "request" }, make("span", {}, make("strong", { textContent: titleOf(jid) }), " would like to see when you are here."), make("div", { className: "row" }, accept, refuse));
  }));
}
function decide(jid, yes) {
  requests.delete(jid);
  subscription(jid, yes ? "subscribed" : "unsubscribed");
  if (yes && !["to", "both"].includes(contacts.get(jid)?.subscription)) subscription(jid, "subscribe");
  draw();
}
const drawn = new WeakSet(); // entries that were shown, so that only a new one moves in
const MARKS = { "-1": ["not delivered", "!"], 0: ["on its way", "…"], 1: ["kept by the server", "✓"], 2: ["on their device", "✓✓"], 3: ["read", "✓✓"] };
function drawConversation() {
  const known = contacts.get(open);
  face($("with-face"), open);
  $("with-name").textContent = titleOf(open);
  const state = presenceOf(open);
  const typing = Date.now() - (known?.typing ?? 0) < TYPING_S * 1000;
  const people = [...(known?.resources.keys() ?? [])].map((full) => full.slice(open.length + 1)).sort();
  $("with-state").textContent = known?.refused ? known.refused : inRoom(open) ? people.join(", ") : typing ? "typing…" : state === "online" ? "online" : state === "away" ? "away"
    : ["both", "to"].includes(known?.subscription) ? "offline: messages wait on the server" : known?.ask ? "has not answered your request yet" : open;
  let day = "";
  let before = null;
  const items = [];
  for (const entry of log(open)) {
    const today = new Date(entry.at).toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
    if (today !== day) items.push(make("li", { className: "day", textContent: (day = today) }));
    const foot = make("footer", {});
    if (entry.late) foot.append(make("span", { className: "late", textContent: "sent while you were away" }));
    foot.append(clock(entry.at));
    if (entry.mine) foot.append(make("span", { className: `marks ${entry.mark === 3 ? "read" : ""}`, textContent: MARKS[entry.mark][1], title: MARKS[entry.mark][0], ariaLabel: MARKS[entry.mark][0] }));
    const same = before && before.mine === entry.mine && before.who === entry.who && entry.at - before.at < 60000;
    const fresh = entry === log(open).at(-1) && Date.now() - entry.at < 400 && !drawn.has(entry);
    drawn.add(entry);
    items.push(make("li", { className: `bubble${fresh ? " fresh" : ""}${entry.mine ? " mine" : ""}${same ? " same" : ""}${entry.mark < 0 ? " failed" : ""}` },
      ...(entry.who && !same ? [make("span", { className: "who", textContent: entry.who })] : []), media.shown(entry.text) ?? entry.text, foot));
    before = entry;
  }
  const list = $("log");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80 || list.childElementCount === 0;
  list.replaceChildren(...items);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

$("login").onsubmit = (event) => { event.preventDefault(); login($("name").value, $("password").value); };
$("register").hidden = !settings.registration;
$("register").onclick = async () => {
  if (!$("login").reportValidity()) return;
  const made = await fetch("/messaging/api/accounts", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ name: $("name").value, password: $("password").value }),
  });
  if (made.ok) login($("name").value, $("password").value);
  else failed((await made.json()).error?.message ?? "The account could not be made.");
};
$("logout").onclick = leave;
$("back").onclick = () => { open = ""; $("chat-view").classList.remove("open"); $("conversation").hidden = true; $("hint").hidden = false; draw(); };
$("add").onsubmit = (event) => {
  event.preventDefault();
  const typed = $("add-name").value.trim().toLowerCase();
  if (!typed) return;
  if (typed.startsWith("#")) {
    $("add-name").value = "";
    if (typed.length > 1) openRoom(typed.slice(1).trim());
    return;
  }
  const jid = typed.includes("@") ? typed : `${typed}@${settings.domain}`;
  if (!["to", "both"].includes(contacts.get(jid)?.subscription)) {
    xmpp.request("set", `<query xmlns="jabber:iq:roster"><item jid="${escape(jid)}"/></query>`).catch(() => {});
    subscription(jid, "subscribe");
  }
  $("add-name").value = "";
  choose(jid);
};
const textarea = $("text");
let composing = 0;
textarea.oninput = () => {
  textarea.style.height = "auto"; textarea.style.height = `${textarea.scrollHeight}px`;
  if (open && !inRoom(open) && xmpp?.ready && Date.now() - composing > 3000) {
    composing = Date.now();
    xmpp.send(`<message xmlns="jabber:client" type="chat" to="${escape(open)}"><composing xmlns="http://jabber.org/protocol/chatstates"/><no-store xmlns="urn:xmpp:hints"/></message>`);
  }
};
textarea.onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("write").requestSubmit(); } };
$("write").onsubmit = (event) => {
  event.preventDefault();
  const text = textarea.value.trim();
  if (text && open) { send(text); textarea.value = ""; textarea.style.height = "auto"; composing = 0; $("log").scrollTop = $("log").scrollHeight; }
};
$("attach").onclick = () => $("file").click();
$("file").onchange = async () => {
  const file = $("file").files[0];
  $("file").value = "";
  if (!file || !open) return;
  const to = open;
  say(`Sending ${file.name}…`);
  try {
    const url = await media.upload(xmpp, settings.domain, file);
    say("");
    if (open === to) send(url);
  } catch (problem) { say(problem.message); }
};
document.addEventListener("visibilitychange", () => { if (open) { read(); draw(); } });
setInterval(() => { if ([...contacts.values()].some((known) => known.typing && Date.now() - known.typing > TYPING_S * 1000)) { for (const known of contacts.values()) if (Date.now() - known.typing > TYPING_S * 1000) known.typing = 0; draw(); } }, 1000);
