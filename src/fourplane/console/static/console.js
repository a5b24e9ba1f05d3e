// The console's shell: connects, routes by hash, draws overview, diagram and panel from one frame a second.
import { strip } from "./drill_strip.js";
import { Drawing, duration, rate, sparkline } from "./diagram.js";

const $ = (id) => document.getElementById(id);
const SYSTEMS = {
  streaming: { name: "Streaming", study: "the Netflix study", page: "/streaming/", heads: [["STREAM_SVC", "plays/s"], ["EDGE1", "segments/s"], ["ENCODING", "jobs"]] },
  dispatch: { name: "Dispatch", study: "the Uber study", page: "/dispatch/", heads: [["LOCATION_SVC", "positions/s"], ["MATCHING_SVC", "requests/s"], ["TRIP_SVC", "trip events/s"]] },
  commerce: { name: "Commerce", study: "the Amazon study", page: "/commerce/", heads: [["CATALOG", "views/s"], ["CART", "cart changes/s"], ["ORDER", "orders/s"]] },
  messaging: { name: "Messaging", study: "the WhatsApp study", page: "/messaging/", heads: [["CONN_MGR", "connections open", "connections"], ["MSG_ROUTER", "messages/s"], ["PRESENCE", "presence/s"]] },
};
const COLOUR = { edge: "#0066CC", service: "#00AA00", state: "#FF8800", control: "#CC0000", outside: "#66707d" };
const HISTORY = 60;
const SMOOTH = 5; // seconds over which a headline is averaged, so that small rates can be read
const state = { opening: null, frame: null, history: {}, drawing: null, chosen: null, operator: false };

function html(strings, ...values) {
  const escape = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const holder = document.createElement("template");
  holder.innerHTML = strings.reduce((text, part, at) => text + part + (at < values.length ? (values[at]?.raw ?? escape(values[at])) : ""), "");
  return holder.content;
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/console/live`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.kind === "opening") {
      state.opening = message;
      state.history = message.history;
      if (Object.keys(message.figures).length) state.frame = { nodes: message.figures };
      $("feed").replaceChildren();
      tell(message.events);
      status(message.process);
      route();
    } else {
      state.frame = message;
      remember(message.nodes);
      tell(message.events);
      status(message.process);
      paint();
    }
  };
  socket.onclose = () => {
    $("status").classList.add("lost");
    document.body.classList.add("lost"); // what is drawn is how it was
    $("status").replaceChildren(html`<span><span class="dot"></span> away, asking again …</span>`);
    setTimeout(connect, 1500);
  };
}

function remember(nodes) {
  for (const [system, figures] of Object.entries(nodes)) {
    const past = (state.history[system] ??= {});
    for (const [node, now] of Object.entries(figures)) {
      const values = (past[node] ??= []);
      values.push(now[0]);
      if (values.length > HISTORY) values.shift();
    }
  }
}

function tell(events) {
  const feed = $("feed");
  for (const event of events) {
    const when = new Date(event.at_us / 1000).toLocaleTimeString([], { hourCycle: "h23" });
    const fields = Object.entries(event.fields ?? {}).map(([key, value]) => `${key} ${value}`).join(", ");
    const line = document.createElement("li");
    line.className = event.level;
    line.append(html`<time>${when}</time><span class="source">${event.source}</span><span class="text">${event.text} <span class="fields">${fields}</span></span>`);
    feed.prepend(line);
  }
  while (feed.children.length > 200) feed.lastChild.remove();
  if (!feed.children.length) feed.append(html`<li class="muted">Nothing has happened yet.</li>`);
  else feed.querySelector("li.muted")?.remove();
}

function status(process) {
  const up = process.up_s > 3600 ? `${(process.up_s / 3600).toFixed(1)} h` : process.up_s > 60 ? `${Math.floor(process.up_s / 60)} min` : `${Math.round(process.up_s)} s`;
  $("status").classList.remove("lost");
  document.body.classList.remove("lost");
  $("status").replaceChildren(html`<span><span class="dot"></span> up ${up}</span><span class="wide roomy">CPU ${Math.round(process.cpu_share * 100)} %</span><span class="wide roomy">${Math.round(process.memory_mb)} MB</span><span class="wide roomy">lag ${process.loop_lag_ms.toFixed(0)} ms</span><span class="wide" id="held" title="${process.loop_held ? `callbacks of more than 20 ms, most in ${process.held_most}` : "no callback took more than 20 ms"}">held ${process.loop_held}×</span>`);
  const demo = $("demo");
  demo.hidden = false;
  demo.textContent = process.demo ? "Stop demo" : "Start demo";
  demo.classList.toggle("quiet", process.demo);
  demo.dataset.running = process.demo;
}

async function order(path, body, method = "PUT") {
  const answer = await fetch(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  if (answer.ok) return answer.status === 204 ? true : (await answer.json()) ?? true;
  const problem = await answer.json().catch(() => ({}));
  toast(answer.status === 401 || answer.status === 403
    ? "Only an operator may do this: open the link that `./fourplane up` printed once (or `./fourplane operator`)."
    : problem.error?.message ?? `That did not work (${answer.status}).`);
  return false;
}

let toastTimer = 0;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 6000);
}

function where() {
  const [system = "", diagram = ""] = location.hash.replace(/^#\/?/, "").split("/");
  return { system, diagram };
}

function route() {
  if (!state.opening) return;
  const { system, diagram } = where();
  $("waiting")?.remove();
  tabs(system);
  closePanel();
  if (state.opening.studies[system]) study(system, diagram); else overview();
  paint();
}

function tabs(current) {
  const links = [["", "Overview"], ...Object.entries(SYSTEMS).map(([id, one]) => [id, one.name]), ["patterns", "Evolution"]];
  $("tabs").replaceChildren(...links.map(([id, name]) => {
    const link = document.createElement("a");
    link.href = `#/${id}`;
    link.textContent = name;
    if (id === current || (!id && !state.opening.studies[current])) link.setAttribute("aria-current", "page");
    return link;
  }), html`<a href="/control/objectives">Objectives</a><a href="/control/alerts">Alerts</a><a href="/control/drills">Drills</a><a href="/control/traces">Traces</a><a href="/control/plan">Plan</a>`);
}

function overview() {
  state.drawing = null;
  const main = $("main");
  main.replaceChildren(html`<h1>Four architectures, running</h1>
    <p class="lead">Every box of the case studies is a piece of what runs here. Open a system to see its diagram with the traffic in it, stop a box and watch what depends on it.</p>
    <div class="cards" id="cards"></div>
    <div class="planes">${{ raw: Object.entries(COLOUR).slice(0, 4).map(([plane, colour]) => `<span><i style="background:${colour}"></i>${plane} plane</span>`).join("") }}<span><i style="border:1.5px dashed var(--muted)"></i>not built yet</span></div>`);
  for (const [id, system] of Object.entries(SYSTEMS)) {
    const known = state.opening.nodes[id];
    const card = document.createElement("article");
    card.className = "card system";
    card.dataset.system = id;
    const built = known ? known.filter((node) => node.built).length : 0;
    card.append(html`<h2>${system.name} <small>${system.study} · ${built} of ${known?.length ?? 0} boxes live</small></h2>
      <p>${state.opening.studies[id].claim}</p><div class="headlines"></div>
      <footer>${{ raw: known ? `<a class="button" href="${system.page}">Open ${system.name.toLowerCase()}</a>` : "" }}<a class="button quiet" href="#/${id}">Diagrams</a></footer>`);
    $("cards").append(card);
  }
}

function study(system, diagramId) {
  const text = state.opening.studies[system];
  const diagram = text.diagrams.find((one) => one.id === diagramId) ?? text.diagrams[0];
  const main = $("main");
  const link = SYSTEMS[system] && state.opening.nodes[system] ? `<a class="button" href="${SYSTEMS[system].page}">Open ${SYSTEMS[system].name.toLowerCase()}</a>` : "";
  main.replaceChildren(html`<div class="study-head"><div><h1>${text.title}</h1><p>${text.claim}</p></div>${{ raw: link }}</div>
    <div class="diagram-tabs" role="navigation" aria-label="Diagrams"></div><div class="drills" id="drills"></div><div class="drill-strip" id="drill-strip" hidden></div><div class="diagram" id="diagram"></div>
    <div class="legend"><span>requests per second and p99 over ten seconds</span><span>bar: how full</span><span>dashed: not built yet</span><span>click a box: what it is here</span></div>`);
  main.querySelector(".diagram-tabs").append(...text.diagrams.map((one) => {
    const tab = document.createElement("a");
    tab.href = `#/${system}/${one.id}`;
    tab.textContent = one.title;
    if (one === diagram) tab.setAttribute("aria-current", "page");
    return tab;
  }));
  if (SYSTEMS[system] && state.opening.nodes[system]) drills(system);
  const views = new Map((state.opening.nodes[system] ?? []).map((view) => [view.id, view]));
  const describe = (box) => {
    for (const key of [`${diagram.id}.${box.id}`, box.id]) if (views.has(key)) return { key, view: views.get(key) };
    return undefined;
  };
  state.system = system;
  state.drawing = new Drawing(diagram, describe, (box, known) => openPanel(system, box, known));
  redraw();
}

const DRILLS = [
  ["kill", "Kill it", "The process dies and is away for three seconds"],
  ["slow", "Slow it", "Requests wait 300 to 500 ms more, for ten seconds"],
  ["errors", "Fail a tenth", "One caller in ten gets errors, for ten seconds"],
];

const WHOLE = [ // drills with clients of their own, runbooks and a report
  ["zone-down", "Zone down", "Everything that stands in one zone or region is gone for a while"],
  ["10x", "10× load", "Nine times as many clients come on top for fifteen seconds"],
];

function drills(system) {
  const holder = $("drills");
  holder.append(html`<span class="muted">Try it:</span>`);
  const follow = strip($("drill-strip"), system);
  for (const [kind, name, what] of DRILLS) {
    const button = document.createElement("button");
    button.className = "button quiet";
    button.dataset.drill = kind;
    button.textContent = name;
    button.title = what;
    button.addEventListener("click", async () => {
      if (await order(`/console/api/drills/${system}`, { kind })) toast(`${what}. It ends by itself; watch the figures and the events.`);
    });
    holder.append(button);
  }
  for (const [kind, name, what] of WHOLE) {
    const button = document.createElement("button");
    button.className = "button quiet";
    button.dataset.drill = kind;
    button.textContent = name;
    button.title = what;
    button.addEventListener("click", async () => {
      const begun = await order("/control/api/drills", { system, kind }, "POST");
      if (!begun) return;
      toast(`${what}. Its own clients say what they feel; the line above the diagram tells what happens, and leaves a report.`);
      follow(begun.id);
    });
    holder.append(button);
  }
  holder.append(html`<a class="button quiet" href="/control/plan?system=${system}">Price it</a>`);
}

function redraw() {
  const holder = $("diagram");
  if (!holder || !state.drawing) return;
  const width = Math.max(330, Math.min(1680, holder.clientWidth - 18));
  holder.replaceChildren(state.drawing.draw(width));
  if (state.chosen) document.querySelector(`.node[data-node="${CSS.escape(state.chosen.box.id)}"]`)?.classList.add("chosen");
  if (state.frame && state.system) state.drawing.paint(state.frame.nodes[state.system] ?? {});
}

function openPanel(system, box, known) {
  state.chosen = { system, box, known };
  document.querySelectorAll(".node.chosen").forEach((one) => one.classList.remove("chosen"));
  document.querySelector(`.node[data-node="${CSS.escape(box.id)}"]`)?.classList.add("chosen");
  const view = known?.view;
  const plane = view?.plane ?? "outside";
  const panel = $("panel");
  const body = view?.built
    ? `<dl id="figures"></dl><div id="curve"></div>`
    : `<p class="muted">This box of the study is not built yet.</p>`;
  panel.replaceChildren(html`<h2>${box.label}<button class="close" aria-label="Close">×</button></h2>
    <span class="plane" style="background:${box.colour || COLOUR[plane]}">${view ? `${plane} plane` : "in the study"}</span>
    <p>${view?.what ?? ""}</p>${{ raw: body }}
    <p class="muted">${{ raw: view?.source ? `Source <code>src/fourplane/${view.source}</code>` : "" }}${{ raw: view?.journey ? `<br>Journey <code>docs/${view.journey}</code>` : "" }}</p>
    <div id="actions"></div>`);
  if (view?.page) panel.querySelector("#actions").append(html`<a class="button" href="${view.page}">Use it</a> `);
  if (view?.stoppable) {
    const button = document.createElement("button");
    button.className = "button danger";
    button.id = "switch";
    button.disabled = true; // until the first figures say whether it stops or starts
    button.textContent = "Stop this box";
    button.addEventListener("click", () => order(`/console/api/nodes/${system}/${encodeURIComponent(known.key)}`, { running: button.dataset.running !== "true" }));
    panel.querySelector("#actions").append(button);
  }
  panel.querySelector(".close").addEventListener("click", closePanel);
  if (panel.hidden) { panel.hidden = false; document.body.classList.add("panel-open"); redraw(); }
  paintPanel();
}

function closePanel() {
  if ($("panel").hidden) return;
  $("panel").hidden = true;
  state.chosen = null;
  document.body.classList.remove("panel-open");
  redraw();
  document.querySelectorAll(".node.chosen").forEach((one) => one.classList.remove("chosen"));
}

function paint() {
  if (!state.frame) return;
  if (state.drawing && state.system) state.drawing.paint(state.frame.nodes[state.system] ?? {});
  for (const card of document.querySelectorAll(".system")) paintCard(card);
  paintPanel();
}

function paintCard(card) {
  const id = card.dataset.system, figures = state.frame.nodes[id];
  if (!figures) return;
  const heads = SYSTEMS[id].heads.filter(([node]) => figures[node]);
  card.querySelector(".headlines").replaceChildren(...heads.map(([node, unit, fact]) => {
    const made = document.createElement("div");
    made.className = "headline";
    const past = state.history[id]?.[node] ?? [], recent = past.slice(-SMOOTH);
    const shown = fact ? figures[node][6][fact] ?? 0 : recent.reduce((sum, one) => sum + one, 0) / (recent.length || 1);
    made.append(html`<b>${rate(shown)}</b><span>${unit}</span>`, sparkline(past));
    return made;
  }));
}

function paintPanel() {
  const chosen = state.chosen;
  const now = chosen?.known && state.frame?.nodes[chosen.system]?.[chosen.known.key];
  if (!now || $("panel").hidden || !$("figures")) return;
  const [rps, eps, p50, p99, saturation, running, facts, total] = now;
  const rows = [["requests", `${rate(rps)}/s`], ["errors", `${rate(eps)}/s`], ["p50", duration(p50)], ["p99", duration(p99)], ["full", `${Math.round(saturation * 100)} %`], ["since start", total.toLocaleString()],
    ...Object.entries(facts).map(([key, value]) => [key, typeof value === "number" ? value.toLocaleString() : value])];
  $("figures").replaceChildren(...rows.map(([key, value]) => html`<dt>${key}</dt><dd>${value}</dd>`));
  $("curve").replaceChildren(sparkline(state.history[chosen.system]?.[chosen.known.key] ?? []));
  const button = $("switch");
  if (button) {
    button.disabled = false;
    button.dataset.running = running;
    button.textContent = running ? "Stop this box" : "Start it again";
    button.classList.toggle("danger", running);
  }
}

$("demo").addEventListener("click", async () => {
  const running = $("demo").dataset.running === "true";
  $("demo").disabled = true;
  await order("/console/api/demo", { running: !running });
  $("demo").disabled = false;
});
addEventListener("hashchange", route);
addEventListener("keydown", (event) => { if (event.key === "Escape") closePanel(); });
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw, 150); });
connect();
