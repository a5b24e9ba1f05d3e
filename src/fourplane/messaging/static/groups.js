/* Groups (XEP-0045): joining, who is in, and the list of one's own rooms, kept in the account (XEP-0402) so that every
   client of the same person finds it. */

import { escape } from "./xmpp.js";

const BOOKMARKS = "urn:xmpp:bookmarks:1";
const PUBSUB = "http://jabber.org/protocol/pubsub";
const MUC = "http://jabber.org/protocol/muc";

export const isRoom = (jid, domain) => jid.endsWith(`@groups.${domain}`);
export const roomOf = (name, domain) => `${name.replace(/[^\p{L}\p{N}_.-]+/gu, "-")}@groups.${domain}`;

/** Enter a room under a name; `seenAt` (ms) leaves out what this browser has. */
export function join(xmpp, room, nick, seenAt) {
  const since = seenAt ? ` since="${new Date(seenAt + 1).toISOString()}"` : ' maxstanzas="50"';
  xmpp.send(`<presence xmlns="jabber:client" to="${escape(room)}/${escape(nick)}"><x xmlns="${MUC}"><history${since}/></x></presence>`);
}

/** A room that was just made keeps its members when everybody has left. */
export async function keep(xmpp, room, title) {
  const fields = Object.entries({ "muc#roomconfig_persistentroom": "1", "muc#roomconfig_roomname": title })
    .map(([name, value]) => `<field var="${name}"><value>${escape(value)}</value></field>`).join("");
  const form = '<field var="FORM_TYPE"><value>http://jabber.org/protocol/muc#roomconfig</value></field>';
  await xmpp.request("set", `<query xmlns="${MUC}#owner"><x xmlns="jabber:x:data" type="submit">${form}${fields}</x></query>`, room);
}

export async function remember(xmpp, room, nick, title) {
  const value = { "pubsub#persist_items": "true", "pubsub#max_items": "max", "pubsub#access_model": "whitelist" };
  const options = Object.entries(value).map(([name, text]) => `<field var="${name}"><value>${text}</value></field>`).join("");
  const item = `<conference xmlns="${BOOKMARKS}" autojoin="true" name="${escape(title)}"><nick>${escape(nick)}</nick></conference>`;
  await xmpp.request("set", `<pubsub xmlns="${PUBSUB}"><publish node="${BOOKMARKS}"><item id="${escape(room)}">${item}</item></publish>`
    + `<publish-options><x xmlns="jabber:x:data" type="submit">${options}</x></publish-options></pubsub>`);
}

/** The rooms this person is in: [{ room, nick, title }]. */
export async function remembered(xmpp) {
  try {
    const found = await xmpp.request("get", `<pubsub xmlns="${PUBSUB}"><items node="${BOOKMARKS}"/></pubsub>`);
    return [...found.getElementsByTagName("item")].map((item) => {
      const conference = item.getElementsByTagName("conference")[0];
      return {
        room: item.getAttribute("id"), title: conference?.getAttribute("name") ?? "",
        nick: conference?.getElementsByTagName("nick")[0]?.textContent ?? "",
      };
    });
  } catch { return []; } // nobody has joined a room yet
}
