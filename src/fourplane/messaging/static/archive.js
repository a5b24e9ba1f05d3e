/* The archive (XEP-0313): what was said on other devices, or before this browser was used, in pages from the newest back. */

import { escape } from "./xmpp.js";

const MAM = "urn:xmpp:mam:2";
const RSM = "http://jabber.org/protocol/rsm";

/** Ask for one page of what was said with `jid` ("" for everybody) before `before`; results come as messages. The next `before`, or "". */
export async function page(xmpp, { jid = "", before = "", most = 50 } = {}) {
  const fields = jid ? '<field var="FORM_TYPE"><value>urn:xmpp:mam:2</value></field>'
    + `<field var="with"><value>${escape(jid)}</value></field>` : "";
  const form = fields ? `<x xmlns="jabber:x:data" type="submit">${fields}</x>` : "";
  const result = await xmpp.request("set", `<query xmlns="${MAM}">${form}<set xmlns="${RSM}"><max>${most}</max>`
    + `<before>${escape(before)}</before></set></query>`);
  const complete = result.getElementsByTagName("fin")[0]?.getAttribute("complete") === "true";
  return complete ? "" : result.getElementsByTagName("first")[0]?.textContent ?? "";
}

/** The message inside an archive's result, and when it was said; null for any other stanza. */
export function found(stanza) {
  const result = [...stanza.children].find((c) => c.localName === "result" && c.namespaceURI === MAM);
  const inner = result?.getElementsByTagName("message")[0];
  const stamp = result?.getElementsByTagName("delay")[0]?.getAttribute("stamp");
  return inner ? { inner, at: Date.parse(stamp) } : null;
}
