// The public API as the pages use it; nothing here that any other client could not do.

const BASE = "/dispatch/api";

export class Refused extends Error {
  constructor(status, code, message) { super(message); this.status = status; this.code = code; }
}

// What may be asked twice (all but what makes a new driver; a request for a ride carries a key) is asked again when no answer
// came, or when a 502 or 503 says when to come back: within 5 s, after 0.2, 0.4, 0.8, 1.6 s, each drawn from its upper half.
const PATIENCE_MS = 5000;
const ONCE = new Set(["POST /drivers"]);

async function ask(path, options) {
  let began = 0;
  for (let tries = 0; ; tries++) {
    const answer = await fetch(BASE + path, options).catch(() => null);
    const least = answer ? answer.headers.get("retry-after") ?? "" : "0";
    if (answer && !((answer.status === 502 || answer.status === 503) && /^[0-9]+$/.test(least))) return answer;
    const now = performance.now();
    began ||= now;
    const wait = Math.max(1000 * Number(least), Math.min(1600, 200 * 2 ** tries) * (0.5 + Math.random() / 2));
    if (ONCE.has(`${options.method} ${path}`) || now + wait - began > PATIENCE_MS) return answer;
    await new Promise((done) => setTimeout(done, wait));
  }
}

export async function call(method, path, body, headers = {}) {
  const sent = body === undefined ? headers : { "content-type": "application/json", ...headers };
  const answer = await ask(path, { method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body) });
  if (!answer) throw new Refused(0, "offline", "The city cannot be reached just now.");
  const text = await answer.text();
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { /* an answer of somebody in between */ }
  if (!answer.ok) {
    const error = content?.error ?? {};
    throw new Refused(answer.status, error.code ?? `http_${answer.status}`, error.message ?? `The city answered ${answer.status}.`);
  }
  return content;
}

export async function binary(path) {
  const answer = await fetch(BASE + path);
  if (!answer.ok) throw new Refused(answer.status, "http", `The city answered ${answer.status}.`);
  return answer.arrayBuffer();
}

export function keep(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private window */ } }
export function kept(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } }

// A WebSocket that comes back by itself, slower each time it fails.
export class Line {
  constructor(path, { open = () => {}, text = () => {}, bytes = () => {}, state = () => {} }) {
    this.url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${BASE}${path}`;
    Object.assign(this, { open, text, bytes, state, wait: 500, closed: false });
    this.connect();
  }
  connect() {
    const socket = (this.socket = new WebSocket(this.url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { this.wait = 500; this.state(true); this.open(this); };
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.text(JSON.parse(data)) : this.bytes(data));
    socket.onclose = () => {
      this.state(false);
      if (!this.closed) setTimeout(() => this.connect(), (this.wait = Math.min(this.wait * 1.7, 15000)));
    };
  }
  send(message) { if (this.socket.readyState === 1) this.socket.send(JSON.stringify(message)); }
  close() { this.closed = true; this.socket.close(); }
}

export const minutes = (seconds) => (seconds == null ? "–" : seconds < 45 ? "now" : `${Math.max(1, Math.round(seconds / 60))} min`);

// Elements from plain data: el("p", {class: "x"}, "text", child, ...). Text is never parsed as HTML.
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}
