// Lays a study's diagram out as SVG and paints live figures into it: layout once, figures every second.

const SVG = "http://www.w3.org/2000/svg";
const PLANE = /^(edge|service|state|control) plane/i;
const TINT = { edge: "#0066CC", service: "#00AA00", state: "#FF8800", control: "#CC0000", outside: "#66707d" };

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function rate(number) {
  if (number >= 1e6) return `${(number / 1e6).toFixed(number >= 1e7 ? 0 : 1)}M`;
  if (number >= 1e4) return `${Math.round(number / 1e3)}k`;
  if (number >= 1e3) return `${(number / 1e3).toFixed(1)}k`;
  if (number >= 100 || Number.isInteger(number)) return String(Math.round(number));
  return number.toFixed(1);
}

export function duration(ms) {
  if (!ms) return "–";
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return ms >= 10 ? `${Math.round(ms)} ms` : ms >= 1 ? `${ms.toFixed(1)} ms` : `${Math.round(ms * 1000)} µs`;
}

export function sparkline(values, className = "spark") {
  const svg = element("svg", { class: className, viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (values.length > 1) {
    const top = Math.max(...values, 1e-9);
    const points = values.map((value, at) => `${(at * 100 / (values.length - 1)).toFixed(1)},${(28 - value / top * 25).toFixed(1)}`);
    svg.append(element("path", { class: "area", d: `M0,30 L${points.join(" L")} L100,30 Z` }), element("path", { d: `M${points.join(" L")}` }));
  }
  return svg;
}

function split(label) {
  const cut = label.split(/ - |: /);
  return cut.length > 1 ? [cut[0], cut.slice(1).join(" · ")] : [label, ""];
}

// A name longer than its box goes on in the second line where nothing else stands there.
function lines(label, fits) {
  const [name, sub] = split(label);
  const cut = sub || name.length <= fits ? -1 : name.lastIndexOf(" ", fits);
  return cut > 0 ? { name: name.slice(0, cut), second: name.slice(cut + 1), cls: "name" } : { name, second: sub, cls: "sub" };
}

// Groups become bands (TB) or columns (LR); boxes wrap inside their group. Returns positions in SVG units.
function place(diagram, width) {
  const narrow = width < 760;
  const columns = diagram.direction === "LR" && !narrow;
  const size = { w: 176, h: 74, gapX: 30, gapY: 34, pad: 16, head: 26 };
  const groups = [...diagram.groups];
  const loose = diagram.boxes.filter((box) => !box.group);
  const inside = new Map(groups.map((group) => [group.id, diagram.boxes.filter((box) => box.group === group.id)]));
  const boxes = new Map(), frames = new Map();
  let y = 8;
  if (loose.length) {
    loose.forEach((box, at) => boxes.set(box.id, { x: width / 2 - size.w / 2 + (at - (loose.length - 1) / 2) * (size.w + size.gapX), y, w: size.w, h: size.h }));
    y += size.h + size.gapY;
  }
  if (columns) {
    const columnWidth = (width - 16 - (groups.length - 1) * 46) / groups.length;
    let tallest = 0;
    groups.forEach((group, at) => {
      const x = 8 + at * (columnWidth + 46);
      inside.get(group.id).forEach((box, row) => boxes.set(box.id, {
        x: x + (columnWidth - Math.min(size.w + 30, columnWidth - 24)) / 2, y: y + size.head + size.pad + row * (size.h + size.gapY),
        w: Math.min(size.w + 30, columnWidth - 24), h: size.h }));
      tallest = Math.max(tallest, inside.get(group.id).length);
      frames.set(group.id, { x, y, w: columnWidth });
    });
    const height = size.head + size.pad * 2 + tallest * (size.h + size.gapY) - size.gapY;
    for (const frame of frames.values()) frame.h = height;
    return { boxes, frames, height: y + height + 10 };
  }
  for (const group of groups) {
    const members = inside.get(group.id);
    const gapX = members.length > 5 ? 20 : size.gapX;
    const fit = Math.max(1, Math.floor((width - 16 - size.pad * 2 + gapX) / (148 + gapX)));
    const rows = Math.max(1, Math.ceil(members.length / fit));
    const perRow = Math.ceil(members.length / rows);
    const w = Math.min(230, (width - 16 - size.pad * 2 - (perRow - 1) * gapX) / perRow);
    members.forEach((box, at) => {
      const row = Math.floor(at / perRow), inRow = Math.min(perRow, members.length - row * perRow);
      const left = 8 + (width - 16 - inRow * w - (inRow - 1) * gapX) / 2;
      boxes.set(box.id, { x: left + (at % perRow) * (w + gapX), y: y + size.head + 6 + row * (size.h + 24), w, h: size.h });
    });
    const h = size.head + 6 + rows * (size.h + 24) - 24 + size.pad;
    frames.set(group.id, { x: 8, y, w: width - 16, h });
    y += h + size.gapY;
  }
  return { boxes, frames, height: y - size.gapY + 10 };
}

function curve(from, to) {
  const a = { x: from.x + from.w / 2, y: from.y + from.h / 2 }, b = { x: to.x + to.w / 2, y: to.y + to.h / 2 };
  if (Math.abs(a.y - b.y) < from.h / 2) {
    const right = b.x > a.x;
    const x1 = right ? from.x + from.w : from.x, x2 = right ? to.x : to.x + to.w;
    if (Math.abs(x2 - x1) < 60) return { d: `M${x1},${a.y} L${x2},${b.y}`, x: (x1 + x2) / 2, y: a.y - 6 };
    if (Math.abs(x2 - x1) < 260 && from.h < 90 && Math.abs(a.y - b.y) < 2 && Math.abs(x2 - x1) < from.w) {
      return { d: `M${x1},${a.y} L${x2},${b.y}`, x: (x1 + x2) / 2, y: a.y - 6 };
    }
    const dip = from.y + from.h + 20;
    return { d: `M${a.x},${from.y + from.h} C${a.x},${dip} ${b.x},${dip} ${b.x},${to.y + to.h}`, x: (a.x + b.x) / 2, y: dip - 4 };
  }
  const down = b.y > a.y, sideways = Math.abs(b.x - a.x) > from.w && Math.abs(b.y - a.y) < from.h * 1.2;
  if (sideways) {
    const right = b.x > a.x, x1 = right ? from.x + from.w : from.x, x2 = right ? to.x : to.x + to.w, mid = (x1 + x2) / 2;
    return { d: `M${x1},${a.y} C${mid},${a.y} ${mid},${b.y} ${x2},${b.y}`, x: mid, y: (a.y + b.y) / 2 };
  }
  const y1 = down ? from.y + from.h : from.y, y2 = down ? to.y : to.y + to.h, mid = (y1 + y2) / 2;
  return { d: `M${a.x},${y1} C${a.x},${mid} ${b.x},${mid} ${b.x},${y2}`, x: (a.x + b.x) / 2, y: mid };
}

export class Drawing {
  constructor(diagram, describe, choose) {
    this.diagram = diagram;
    this.describe = describe; // box -> {key, view} of the node that stands behind it, or undefined
    this.choose = choose;
    this.nodes = new Map();
    this.arrows = [];
  }

  draw(width) {
    this.nodes.clear();
    this.arrows = [];
    const { boxes, frames, height } = place(this.diagram, width);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": this.diagram.title });
    svg.append(element("defs", {}, element("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" },
      element("path", { d: "M0,0 L8,4 L0,8 z", fill: "context-stroke" }))));
    for (const group of this.diagram.groups) svg.append(this.frame(group, frames.get(group.id)));
    const ends = new Map([...frames, ...boxes]);
    const labels = [];
    for (const arrow of this.diagram.arrows) {
      const from = ends.get(arrow.source), to = ends.get(arrow.target);
      if (!from || !to) continue;
      const shape = curve(from, to);
      const path = element("path", { class: `arrow${arrow.dashed ? " dashed" : ""}`, d: shape.d, "marker-end": "url(#tip)" });
      svg.append(path);
      this.arrows.push({ path, arrow });
      if (arrow.label) { const text = element("text", { class: "arrow-label", x: shape.x, y: shape.y, "text-anchor": "middle" }); text.textContent = arrow.label; labels.push(text); }
    }
    for (const box of this.diagram.boxes) svg.append(this.box(box, boxes.get(box.id)));
    svg.append(...labels);
    return svg;
  }

  frame(group, at) {
    const plane = PLANE.exec(group.label);
    const made = element("g", { class: "group" }, element("rect", { x: at.x, y: at.y, width: at.w, height: at.h, rx: 12 }));
    if (plane) made.style.setProperty("--tint", TINT[plane[1].toLowerCase()]);
    const title = element("text", { x: at.x + 14, y: at.y + 19 });
    title.textContent = group.label;
    made.append(title);
    return made;
  }

  box(box, at) {
    const known = this.describe(box);
    const view = known?.view;
    const hollow = !view || !view.built;
    const colour = box.colour || (view ? TINT[view.plane] : "#66707d");
    const made = element("g", { class: `node${hollow ? " hollow" : ""}`, tabindex: 0, role: "button", "data-node": box.id });
    made.style.setProperty("--paint", colour);
    made.style.setProperty("--ink", /^#ff/i.test(colour) ? "#1c1000" : "#fff");
    const fits = Math.floor((at.w - 40) / 7.7); // the lamp stands beside the name
    const { name, second, cls } = lines(box.label, fits);
    const text = (cls, dy, content, room = fits) => {
      const line = element("text", { class: cls, x: at.x + 12, y: at.y + dy });
      line.textContent = content.length > room ? `${content.slice(0, room - 1)}…` : content;
      return line;
    };
    const full = element("title"); full.textContent = `${box.label}${view ? `\n${view.what}` : "\nNot built yet."}`;
    const rates = text("rate", 55, hollow ? "not built yet" : "", 40);
    const level = element("rect", { class: "level", x: at.x + 12, y: at.y + at.h - 9, width: 0, height: 3, rx: 1.5 });
    made.append(full, element("rect", { class: "body", x: at.x, y: at.y, width: at.w, height: at.h, rx: box.store ? 20 : 9 }),
      text("name", 21, name), text(cls, 37, second, cls === "sub" ? Math.floor((at.w - 20) / 5.7) : fits), rates,
      element("circle", { class: "lamp", cx: at.x + at.w - 13, cy: at.y + 14, r: 4 }));
    if (!hollow) made.append(element("rect", { class: "bar", x: at.x + 12, y: at.y + at.h - 9, width: at.w - 24, height: 3, rx: 1.5 }), level);
    const chosen = () => this.choose(box, known);
    made.addEventListener("click", chosen);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); chosen(); } });
    this.nodes.set(box.id, { made, rates, level, room: at.w - 24, key: known?.key, hollow });
    return made;
  }

  // figures: Map of node key -> [rps, eps, p50, p99, saturation, running, facts, total]
  paint(figures) {
    for (const node of this.nodes.values()) {
      const now = node.key && figures[node.key];
      if (!now || node.hollow) continue;
      const [rps, eps, , p99, saturation, running, facts] = now;
      const first = Object.entries(facts)[0];
      const counted = rps > 0 || p99 > 0 || !first;
      const dark = facts.dark !== undefined; // a drill took the place it stands in
      const said = !running ? "stopped" : dark ? `dark: ${facts.dark}` : counted ? `${rate(rps)}/s${p99 ? ` · p99 ${duration(p99)}` : ""}` : `${first[0]} ${typeof first[1] === "number" ? rate(first[1]) : first[1]}`;
      node.rates.textContent = said.slice(0, Math.floor(node.room / 7.2));
      node.level.setAttribute("width", (node.room * saturation).toFixed(1));
      node.made.classList.toggle("busy", rps > 0);
      node.made.classList.toggle("failing", eps > 0);
      node.made.classList.toggle("stopped", !running || dark);
    }
    for (const { path, arrow } of this.arrows) {
      const target = this.nodes.get(arrow.target);
      const now = target?.key && figures[target.key];
      path.classList.toggle("busy", Boolean(now && now[0] > 0 && now[5]));
    }
  }
}
