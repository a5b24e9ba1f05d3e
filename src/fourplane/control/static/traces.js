// Traces in a list, and one as a waterfall over all processes; the address says which.
import { ago, ask, at, html, raw, text, took, tried, watching } from "/control/static/watch.js";

const COLOURS = ["--edge", "--service", "--state", "--control"];
let shown = "";

const asked = () => new URLSearchParams(location.hash.slice(1));

// Which plane a step belongs to: doors are edge, stores are state, calls are service.
function plane(step, root) {
  if (step.span === root.span || /^[A-Z]+ \//.test(step.name)) return "--edge";
  return /^(sql|records|log|cache|blobs|search)\./.test(step.name) ? "--state" : "--service";
}

// The steps in the order of a tree, each with its depth; a step whose caller is missing hangs on the root.
function ordered(root, steps) {
  const children = new Map(), known = new Set(steps.map((one) => one.span));
  for (const one of steps) {
    if (one.span === root.span) continue;
    const parent = known.has(one.parent) ? one.parent : root.span;
    children.set(parent, [...(children.get(parent) ?? []), one]);
  }
  const found = [];
  const walk = (step, depth) => {
    found.push([step, depth]);
    for (const child of (children.get(step.span) ?? []).sort((a, b) => a.start_us - b.start_us)) walk(child, depth + 1);
  };
  walk(root, 0);
  return found;
}

function waterfall(trace) {
  const { root } = trace;
  const begin = Math.min(...trace.spans.map((one) => one.start_us));
  const whole = Math.max(1, ...trace.spans.map((one) => one.start_us + one.took_us - begin));
  const lanes = ordered(root, trace.spans).map(([step, depth]) => {
    const left = ((step.start_us - begin) / whole) * 100, width = (step.took_us / whole) * 100;
    const label = left + width > 75 ? `right:${Math.max(0, 100 - left)}%` : `left:${left + width}%`;
    const inside = width > 30 ? `left:${left}%;color:#fff` : label;
    return `<div class="step ${step.failed ? "failed" : ""}" style="--plane:var(${plane(step, root)})" title="${text(step.process)} · ${took(step.took_us)}">
      <span class="name" style="padding-left:${depth * 14}px">${text(step.name)}</span>
      <span class="lane"><i style="left:${left}%;width:${width}%"></i><b style="${inside}">${took(step.took_us)}</b></span></div>`;
  }).join("");
  const processes = [...new Set(trace.spans.map((one) => one.process))];
  const why = { error: "it failed", slow: "it was among the slowest", asked: "its caller asked for it", lot: "by lot" }[trace.reason];
  return html`<div class="card"><div class="head"><div><h2>${root.name} <small class="muted">${took(root.took_us)}</small></h2>
      <p>${new Date(root.start_us / 1000).toLocaleString()} · kept because ${why} · ${trace.spans.length} steps in ${processes.join(", ")}${trace.complete ? "" : " · some steps were overwritten before they were collected"}</p></div>
      <button class="button quiet small" type="button" id="close">Close</button></div>
    <div class="processes">${raw(["edge", "service", "state"].map((one, n) => `<span><i style="background:var(${COLOURS[n]})"></i>${one}</span>`).join(""))}<code>${trace.trace}</code></div>
    <div class="waterfall">${raw(lanes)}</div></div>`;
}

async function one(id) {
  const holder = at("one");
  if (!id) { holder.hidden = true; holder.replaceChildren(); shown = ""; return; }
  if (id === shown) return;
  const trace = await tried(() => ask(`/control/api/traces/${encodeURIComponent(id)}`));
  if (!trace) return;
  shown = id;
  holder.hidden = false;
  holder.replaceChildren(waterfall(trace));
  at("close").addEventListener("click", () => go({ id: "" }));
}

function go(changes) {
  const now = asked();
  for (const [key, value] of Object.entries(changes)) if (value) now.set(key, value); else now.delete(key);
  location.hash = now.toString();
}

function line(trace) {
  const made = document.createElement("tr");
  made.className = "link";
  made.tabIndex = 0;
  made.append(html`<td><span class="chip ${trace.reason}">${trace.reason}</span></td><td><b>${trace.name}</b></td><td>${took(trace.took_us)}</td><td>${trace.spans}</td><td>${trace.processes}</td><td>${ago(trace.start_us / 1e6)}</td><td><code>${trace.trace.slice(-16)}</code></td>`);
  made.addEventListener("click", () => { go({ id: trace.trace }); scrollTo({ top: 0, behavior: "smooth" }); });
  made.addEventListener("keydown", (event) => { if (event.key === "Enter") go({ id: trace.trace }); });
  return made;
}

async function look() {
  const now = asked(), order = now.get("order") ?? "recent";
  for (const choice of document.querySelectorAll("[data-order]")) choice.setAttribute("aria-pressed", String(choice.dataset.order === order));
  const found = await ask(`/control/api/traces?${new URLSearchParams({ order, q: now.get("q") ?? "", least_ms: now.get("least") ?? "0", limit: "60" })}`);
  await one(now.get("id"));
  const holder = at("list");
  if (!found.length) { holder.replaceChildren(html`<p class="empty">No trace of this kind is kept yet.</p>`); return; }
  const made = document.createElement("table"), body = document.createElement("tbody");
  made.append(html`<thead><tr><th scope="col">Kept</th><th scope="col">Request</th><th scope="col">Took</th><th scope="col">Steps</th><th scope="col">Processes</th><th scope="col">When</th><th scope="col">Id</th></tr></thead>`);
  body.append(...found.map(line));
  made.append(body);
  holder.replaceChildren(made);
}

for (const choice of document.querySelectorAll("[data-order]")) choice.addEventListener("click", () => go({ order: choice.dataset.order }));
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ q: at("text").value, least: at("least").value, id: at("id").value.trim() });
});
addEventListener("hashchange", () => tried(look));
at("text").value = asked().get("q") ?? "";
at("least").value = asked().get("least") ?? "";
watching(look, 3000);
