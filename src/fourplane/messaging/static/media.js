/* Files (XEP-0363): a slot for each, the file by PUT, and how a message that is one file is shown (XEP-0066). */

import { escape } from "./xmpp.js";

const UPLOAD = "urn:xmpp:http:upload:0";
const PICTURE = /\.(avif|gif|jpe?g|png|webp)$/i;

/** Put `file` where others can fetch it; its address. Throws an Error that can be shown. */
export async function upload(xmpp, domain, file) {
  const type = file.type ? ` content-type="${escape(file.type)}"` : "";
  let slot;
  try {
    slot = await xmpp.request("get", `<request xmlns="${UPLOAD}" filename="${escape(file.name)}" size="${file.size}"${type}/>`, `upload.${domain}`);
  } catch (refused) {
    throw new Error(refused.getElementsByTagName?.("text")[0]?.textContent ?? "The file was not taken.");
  }
  const put = here(slot.getElementsByTagName("put")[0].getAttribute("url"));
  const done = await fetch(put, { method: "PUT", body: file, headers: file.type ? { "content-type": file.type } : {} });
  if (!done.ok) throw new Error("The file could not be sent.");
  return slot.getElementsByTagName("get")[0].getAttribute("url");
}

/** The same file through the address this page came from. */
function here(url) {
  const { pathname, search } = new URL(url);
  return pathname.startsWith("/messaging/media/") ? pathname + search : url;
}

/** An element for a message that is one of our files, or null. */
export function shown(text) {
  if (!/^https?:\/\/\S+$/.test(text) || !new URL(text).pathname.startsWith("/messaging/media/")) return null;
  const name = decodeURIComponent(new URL(text).pathname.split("/").at(-1));
  const link = Object.assign(document.createElement("a"), { href: here(text), target: "_blank", rel: "noopener", className: "file" });
  if (PICTURE.test(name)) {
    link.append(Object.assign(document.createElement("img"), { src: here(text), alt: name, loading: "lazy" }));
  } else link.textContent = `📄 ${name}`;
  return link;
}

export const nameOf = (text) => (shown(text) ? decodeURIComponent(new URL(text).pathname.split("/").at(-1)) : text);
