/* XMPP over WebSocket (RFC 7395): SCRAM-SHA-256 (RFC 7677), stream management with resumption (XEP-0198).

   A connection that breaks is resumed without loss: what the server has not acknowledged waits in `unacked` and goes
   again; what it has counts by `handled`. Events: open, resumed, closed, failed, stanza, acked. */

const NS = {
  framing: "urn:ietf:params:xml:ns:xmpp-framing", sasl: "urn:ietf:params:xml:ns:xmpp-sasl",
  bind: "urn:ietf:params:xml:ns:xmpp-bind", sm: "urn:xmpp:sm:3",
};
const RETRY_MS = [500, 1000, 2000, 5000, 10000];

export const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[\x00-\x08\x0b\x0c\x0e-\x1f]/g, "");
export const bare = (jid) => jid.split("/")[0];

export class Xmpp extends EventTarget {
  constructor(socketPath, domain, name, password) {
    super();
    Object.assign(this, { socketPath, domain, name, password });
    this.jid = ""; this.smId = ""; this.handled = 0; this.unacked = []; this.acked = 0;
    this.waiting = new Map(); this.serial = 0; this.tries = 0; this.wanted = true; this.ready = false;
  }

  connect() {
    const url = new URL(this.socketPath, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url, "xmpp");
    this.authenticated = false; this.managed = false;
    this.socket.onopen = () => this.open();
    this.socket.onmessage = (event) => this.take(event.data);
    this.socket.onclose = () => this.lost();
  }

  close() {
    this.wanted = false;
    if (this.socket.readyState === WebSocket.OPEN) this.raw(`<close xmlns="${NS.framing}"/>`);
    this.socket.close();
  }

  send(text) {
    if (this.managed || this.smId) {
      this.unacked.push(text);
      if (!this.ready) return;
      this.raw(text);
      this.raw(`<r xmlns="${NS.sm}"/>`);
    } else this.raw(text);
  }

  request(type, payload, to = "") {
    const id = `q${++this.serial}`;
    this.send(`<iq xmlns="jabber:client" type="${type}" id="${id}"${to ? ` to="${escape(to)}"` : ""}>${payload}</iq>`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  raw(text) { if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text); }
  open() { this.raw(`<open xmlns="${NS.framing}" to="${escape(this.domain)}" version="1.0"/>`); }
  tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  take(data) {
    const element = new DOMParser().parseFromString(data, "text/xml").documentElement;
    const name = element.localName;
    if (element.namespaceURI === NS.sasl) return this.sasl(name, element);
    if (element.namespaceURI === NS.sm) return this.manage(name, element);
    if (name === "features") return this.features(element);
    if (name === "open") return undefined;
    if (name === "close") return this.socket.close();
    if (name === "error") return this.streamError(element);
    if (this.managed) this.handled++;
    const waiting = name === "iq" && this.waiting.get(element.getAttribute("id"));
    const type = element.getAttribute("type");
    if (waiting && (type === "result" || type === "error")) {
      this.waiting.delete(element.getAttribute("id"));
      if (type === "result") waiting.resolve(element); else waiting.reject(element);
      return undefined;
    }
    return this.tell("stanza", element);
  }

  async features(element) {
    if (!this.authenticated) return this.begin([...element.getElementsByTagName("mechanism")].map((m) => m.textContent));
    if (this.smId) return this.raw(`<resume xmlns="${NS.sm}" previd="${this.smId}" h="${this.handled}"/>`);
    return this.bind();
  }

  async bind() {
    this.managed = false; this.smId = ""; this.handled = 0; this.acked = 0;
    const lost = this.unacked; this.unacked = [];
    const resource = `web-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    const result = await this.request("set", `<bind xmlns="${NS.bind}"><resource>${resource}</resource></bind>`);
    this.jid = result.getElementsByTagName("jid")[0].textContent;
    this.raw(`<enable xmlns="${NS.sm}" resume="true"/>`);
    this.again = lost;
  }

  manage(name, element) {
    if (name === "enabled") {
      this.smId = element.getAttribute("id") || ""; this.managed = true; this.handled = 0;
      this.becomeReady(); this.tell("open");
      for (const text of this.again.splice(0)) if (text.startsWith("<message")) this.send(text);
    } else if (name === "resumed") {
      this.managed = true; this.count(element); this.becomeReady(); this.tell("resumed");
      for (const text of this.unacked) this.raw(text);
      this.raw(`<r xmlns="${NS.sm}"/>`);
    } else if (name === "failed") { this.smId = ""; this.bind(); }
    else if (name === "r") this.raw(`<a xmlns="${NS.sm}" h="${this.handled}"/>`);
    else if (name === "a") this.count(element);
  }

  becomeReady() { this.ready = true; this.tries = 0; }

  count(element) {
    const h = Number(element.getAttribute("h"));
    const done = this.unacked.splice(0, Math.max(0, h - this.acked));
    this.acked = h;
    for (const text of done) this.tell("acked", text);
  }

  streamError(element) {
    const condition = element.firstElementChild ? element.firstElementChild.localName : "unknown";
    if (condition === "conflict" || condition === "not-authorized" || condition === "policy-violation") {
      this.wanted = false; this.tell("failed", condition);
    }
  }

  lost() {
    const was = this.ready;
    this.ready = false;
    for (const waiting of this.waiting.values()) waiting.reject(new Error("disconnected"));
    this.waiting.clear();
    if (!this.wanted) return this.tell("closed", { retry: false });
    const delay = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
    this.tell("closed", { retry: true, was });
    return setTimeout(() => this.wanted && this.connect(), delay);
  }

  begin(mechanisms) {
    if (!crypto.subtle) return this.refuse("This browser only computes passwords safely on https:// or on localhost.");
    if (!mechanisms.includes("SCRAM-SHA-256")) return this.refuse("The server does not offer SCRAM-SHA-256 here.");
    const nonce = base64(crypto.getRandomValues(new Uint8Array(18)));
    this.firstBare = `n=${this.name.replace(/=/g, "=3D").replace(/,/g, "=2C")},r=${nonce}`;
    return this.raw(`<auth xmlns="${NS.sasl}" mechanism="SCRAM-SHA-256">${base64(utf8(`n,,${this.firstBare}`))}</auth>`);
  }

  refuse(text) { this.wanted = false; this.tell("failed", text); this.socket.close(); }

  async sasl(name, element) {
    if (name === "challenge") {
      const serverFirst = new TextDecoder().decode(fromBase64(element.textContent));
      const fields = Object.fromEntries(serverFirst.split(",").map((part) => [part[0], part.slice(2)]));
      if (!fields.r.startsWith(this.firstBare.split(",r=")[1])) return this.refuse("The server's answer does not fit.");
      const material = await crypto.subtle.importKey("raw", utf8(this.password.normalize("NFKC")), "PBKDF2", false, ["deriveBits"]);
      const salted = new Uint8Array(await crypto.subtle.deriveBits(
        { name: "PBKDF2", hash: "SHA-256", salt: fromBase64(fields.s), iterations: Number(fields.i) }, material, 256));
      const clientKey = await hmac(salted, utf8("Client Key"));
      const stored = new Uint8Array(await crypto.subtle.digest("SHA-256", clientKey));
      const last = `c=biws,r=${fields.r}`;
      const signed = utf8(`${this.firstBare},${serverFirst},${last}`);
      const signature = await hmac(stored, signed);
      this.serverSignature = base64(await hmac(await hmac(salted, utf8("Server Key")), signed));
      const proof = base64(clientKey.map((byte, at) => byte ^ signature[at]));
      return this.raw(`<response xmlns="${NS.sasl}">${base64(utf8(`${last},p=${proof}`))}</response>`);
    }
    if (name === "success") {
      if (new TextDecoder().decode(fromBase64(element.textContent)) !== `v=${this.serverSignature}`) return this.refuse("The server could not prove that it knows you.");
      this.authenticated = true;
      return this.open();
    }
    const reason = element.firstElementChild ? element.firstElementChild.localName : "";
    const slow = reason === "temporary-auth-failure" ? "Too many attempts, wait a moment." : "The name or the password is wrong.";
    return this.refuse(slow);
  }
}

const utf8 = (text) => new TextEncoder().encode(text);
const base64 = (bytes) => btoa(String.fromCharCode(...bytes));
const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
async function hmac(key, data) {
  const imported = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, data));
}
