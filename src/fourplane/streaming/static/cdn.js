// The delivery tree, live: who fills from whom, how full, how many hits; and quality against the goals.
const get = (id) => document.getElementById(id), SVG = "http://www.w3.org/2000/svg";
const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.round(n / 1e3)} kB`);
const NAMES = { us: "US East", eu: "EU West", asia: "Asia Pacific" };
let before = null, at = 0;

function draw(name, attributes, text) { const made = document.createElementNS(SVG, name); for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v); if (text !== undefined) made.textContent = text; return made; }

function box(x, y, w, title, line, more, share, off, kind) {
  const g = draw("g", { class: `${off ? "off" : ""} ${kind}` });
  g.append(draw("rect", { x, y, width: w, height: 78, rx: 10 }), draw("rect", { x: x + 1, y: y + 1, width: Math.max(0, (w - 2) * share), height: 76, rx: 9, class: "fill" }));
  g.append(Object.assign(draw("text", { x: x + 12, y: y + 24, "font-weight": 700 }, title)), draw("text", { x: x + 12, y: y + 45 }, line), draw("text", { x: x + 12, y: y + 64, class: "small" }, more));
  return g;
}

function tree(data, rates) {
  const edges = data.nodes.filter((n) => !n.parent), place = new Map(), parts = [], width = 1000 / Math.max(edges.length, 1);
  const link = (x1, y1, x2, y2, busy) => draw("path", { d: `M${x1} ${y1} C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`, class: busy ? "flow" : "" });
  const filling = (n) => data.fill.running && data.fill.node === n.id;
  const line = (n) => [filling(n) ? `filling ahead: ${data.fill.node_done} of ${data.fill.node_planned}` : `${(100 * n.hit_ratio).toFixed(1)} % hits · ${rates.get(n.id)?.toFixed(0) ?? 0}/s`, `${bytes(n.bytes_stored)} of ${bytes(n.bytes_max)} · out ${bytes(n.bytes_out)}`];
  edges.forEach((n, i) => {
    const x = i * width + width / 2; place.set(n.id, x);
    parts.push(link(500, 96, x, 168, rates.get(`${n.id} fill`) > 0));
    const below = data.nodes.filter((c) => c.parent === n.id), step = Math.min(200, width / Math.max(below.length, 1));
    below.forEach((c, j) => { const cx = x + (j - (below.length - 1) / 2) * step; place.set(c.id, cx); parts.push(link(x, 246, cx, 326, rates.get(`${c.id} fill`) > 0)); });
  });
  parts.push(box(390, 18, 220, "Origin", `${data.origin_requests} requests`, `sent ${bytes(data.origin_bytes)}`, 0, false, "origin"));
  for (const n of data.nodes) {
    const x = place.get(n.id); if (x === undefined) continue;
    const w = n.parent ? 154 : 214, [one, two] = n.on ? line(n) : ["stopped", ""], left = Math.min(1000 - w - 2, Math.max(2, x - w / 2));
    parts.push(box(left, n.parent ? 326 : 168, w, n.parent ? `${n.id} · ISP cache` : `${n.id} · ${NAMES[n.region] || n.region}`, one, n.parent ? `${bytes(n.bytes_stored)} of ${bytes(n.bytes_max)}` : two, filling(n) ? data.fill.node_done / Math.max(1, data.fill.node_planned) : n.bytes_stored / n.bytes_max, !n.on, filling(n) ? "filling" : ""));
  }
  const card = get("tree").parentNode, first = !get("tree").childNodes.length;
  get("tree").replaceChildren(...parts);
  if (first) card.scrollLeft = (card.scrollWidth - card.clientWidth) / 2;  // a phone begins in the middle, at the origin
}

function goals(data) {
  const q = data.quality, cards = [
    ["Start, p99", q.starts ? `${q.start_p99_ms.toFixed(0)} ms` : "–", "goal < 100 ms", q.starts && q.start_p99_ms < 100, q.starts ? `median ${q.start_p50_ms.toFixed(0)} ms of ${q.starts} starts` : "nobody has started yet"],
    ["Rebuffering", q.played_s ? `${(100 * q.rebuffer_ratio).toFixed(2)} %` : "–", "goal < 0.5 %", q.rebuffer_ratio < 0.005, `${q.stalls} stalls in ${(q.played_s / 60).toFixed(1)} min watched${data.cmcd.requests ? `; CMCD: ${data.cmcd.starved} of ${data.cmcd.requests} requests starved` : ""}`],
    ["Picture", Object.keys(q.heights).at(-1) || "–", "goal 25 % in 4K", q.tall_share >= 0.25, Object.entries(q.heights).map(([h, s]) => `${h} ${(100 * s).toFixed(0)} %`).join(", ") || "no time watched yet"],
    ["Delivered", bytes(data.nodes.reduce((sum, n) => sum + n.bytes_out, 0)), `$${data.cost.toFixed(4)}`, true, `${q.sessions} watching now: ${Object.entries(q.by_region).map(([r, n]) => `${r} ${n}`).join(", ") || "nobody"}`],
  ];
  get("goals").replaceChildren(...cards.map(([name, value, goal, good, more]) => { const made = document.createElement("div"); made.className = "card goal"; made.innerHTML = `<span class="muted"></span><b></b><span></span><br><span class="muted"></span>`; const [a, b, c, , d] = made.children; a.textContent = name; b.textContent = value; c.textContent = goal; c.className = good ? "good" : "muted"; d.textContent = more; return made; }));
}

function table(data) {
  const head = ["Node", "Region", "Fills from", "Port", "Requests", "Hit ratio", "Out", "Filled", "Stored", "Objects", "Open"];
  const rows = data.nodes.map((n) => [n.id, NAMES[n.region] || n.region, n.parent || "origin", n.port, n.requests, `${(100 * n.hit_ratio).toFixed(1)} %`, bytes(n.bytes_out), bytes(n.bytes_filled), bytes(n.bytes_stored), n.entries, n.on ? n.connections : "stopped"]);
  const cells = (kind, row) => { const tr = document.createElement("tr"); row.forEach((value, i) => { const cell = document.createElement(kind); cell.textContent = value; if (i > 2) cell.className = "number"; tr.append(cell); }); return tr; };
  get("nodes").replaceChildren(cells("th", head), ...rows.map((row) => cells("td", row)));
}

// One card a region: who watches from it, what its nodes give, and the button that empties it while plays go on.
async function evacuate(region, evacuated) {
  const answer = await fetch(`/streaming/api/regions/${region}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ evacuated }) }), told = await answer.json().catch(() => null);
  get("said").textContent = answer.ok ? (evacuated ? `${NAMES[region] || region} is being emptied: players move at their next steering call.` : `${NAMES[region] || region} takes viewers again.`)
    : answer.status === 401 || answer.status === 403 ? "Only an operator may do this: open the operator link that the start of the deployment printed." : told?.error?.message || `HTTP ${answer.status}`;
  refresh();
}

async function fillNow() {
  const answer = await fetch("/streaming/api/fill", { method: "POST" });
  get("said").textContent = answer.ok ? "The nodes are being filled with what was watched." : "Only an operator may do this: open the operator link that the start of the deployment printed.";
}

const cards = new Map();
function regions(data, rates) {
  const known = [...new Set(data.nodes.map((n) => n.region))];
  for (const region of known) {
    const nodes = data.nodes.filter((n) => n.region === region), gone = nodes.some((n) => n.evacuated), total = nodes.reduce((sum, n) => sum + (rates.get(n.id) || 0), 0);
    if (!cards.has(region)) {
      const made = document.createElement("div"), button = document.createElement("button"); made.className = "card region"; made.innerHTML = "<b></b><span></span><span class='muted'></span>"; button.className = "button quiet"; made.append(button);
      cards.set(region, { made, button }); get("regions").append(made);
    }
    const { made, button } = cards.get(region), [name, state, more] = made.children;
    name.textContent = NAMES[region] || region; state.className = `pill ${gone ? "failed" : "done"}`; state.textContent = gone ? (nodes.some((n) => n.on) ? "emptying" : "evacuated") : "serving";
    more.textContent = `${data.quality.by_region[region] || 0} watching from here, ${total.toFixed(0)} requests/s`;
    button.textContent = gone ? "Let viewers back" : "Evacuate"; button.onclick = () => evacuate(region, !gone);
  }
  if (!cards.has("fill")) {
    const made = document.createElement("div"), button = document.createElement("button"); made.className = "card region"; made.innerHTML = "<b>Fill</b><span class='pill done'></span><span class='muted'></span>"; button.className = "button quiet"; button.textContent = "Fill now"; button.onclick = fillNow; made.append(button);
    cards.set("fill", { made, button }); get("regions").append(made);
  }
  const [, state, more] = cards.get("fill").made.children, f = data.fill;
  const { button } = cards.get("fill"); button.disabled = f.running; button.textContent = f.running ? "Filling" : "Fill now";
  state.textContent = f.running ? `${f.node} ${f.node_done} of ${f.node_planned}` : f.nights ? "done" : "at night"; more.textContent = `Ahead of the evening: ${f.objects} objects, ${bytes(f.bytes)}${f.failed ? `, ${f.failed} failed` : ""}`;
}

async function refresh() {
  const data = await fetch("/streaming/api/delivery").then((a) => a.ok ? a.json() : null).catch(() => null);
  if (!data) return;
  const now = performance.now(), rates = new Map();
  if (before) for (const n of data.nodes) { const old = before.nodes.find((o) => o.id === n.id); if (old) { rates.set(n.id, (n.requests - old.requests) / ((now - at) / 1000)); rates.set(`${n.id} fill`, n.bytes_filled - old.bytes_filled); } }
  before = data; at = now; tree(data, rates); goals(data); regions(data, rates); table(data);
}
refresh(); setInterval(refresh, 1000);
