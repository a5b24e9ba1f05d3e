// What the pages of objectives, alerts and traces share: elements, numbers, orders, and a look every few seconds.
export const at = (id) => document.getElementById(id);

export function html(strings, ...values) {
  const escape = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const holder = document.createElement("template");
  holder.innerHTML = strings.reduce((text, part, n) => text + part + (n < values.length ? (values[n]?.raw ?? escape(values[n])) : ""), "");
  return holder.content;
}

export const raw = (text) => ({ raw: text });
export const text = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

export function span(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${+(seconds / size).toPrecision(3)} ${unit}`;
  return `${+seconds.toPrecision(3)} s`;
}

export function took(us) {
  return us >= 1e6 ? `${(us / 1e6).toFixed(2)} s` : us >= 1e3 ? `${(us / 1e3).toFixed(us >= 1e5 ? 0 : 1)} ms` : `${us} µs`;
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
export const ago = (seconds) => `${span(Math.max(1, Math.round(Date.now() / 1000 - seconds)))} ago`;

export async function ask(path, method = "GET", body) {
  const options = { method };
  if (body !== undefined) Object.assign(options, { headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const answer = await fetch(path, options);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(answer.status === 401 || answer.status === 403
    ? "Only an operator may do this: open the link that `./fourplane up` printed once (or `./fourplane operator`)."
    : problem.error?.message ?? `That did not work (${answer.status}).`), { status: answer.status });
}

let timer = 0;
export function toast(message) {
  const holder = at("toast");
  holder.textContent = message;
  holder.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { holder.hidden = true; }, 6000);
}

export async function tried(work) {
  try { return await work(); } catch (error) { toast(error.message); return undefined; }
}

// Calls `look` now and every `ms` while the page is seen; says once when the deployment does not answer.
export function watching(look, ms) {
  let lost = false;
  const turn = async () => {
    if (!document.hidden) {
      try { await look(); lost = false; } catch (error) { if (!lost) toast(`The deployment does not answer: ${error.message}`); lost = true; }
    }
    setTimeout(turn, ms);
  };
  turn();
}
