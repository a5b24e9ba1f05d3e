// A map on one canvas: roads drawn once per view into a picture of their own, everything that moves on top, each frame.
// Flat projection (degrees, longitude shrunk by the city's latitude): within a city nobody sees the difference.

const WIDTHS = [9, 8, 7, 6, 5, 3.6, 3.2, 2.4]; // metres-like weight by road class, motorway first
const SHOWN_FROM = [0, 0, 0, 0, 2200, 5200, 6400, 9000]; // pixels per degree from which a class is drawn
const STATES = { 1: "--free", 2: "--busy", 3: "--riding", 4: "--soft" };
const GLIDE_MS = 620;

export class CityView {
  constructor(canvas, info) {
    this.canvas = canvas;
    this.info = info;
    this.squeeze = Math.cos((((info.south + info.north) / 2) * Math.PI) / 180);
    this.lines = null;
    this.cars = new Map();
    this.overlays = { routes: [], pins: [], heat: [], ghosts: [] };
    this.heatMode = "all"; // or supply, demand, surge
    this.followed = -1;
    this.onview = () => {};
    this.ontap = () => {};
    this.picture = document.createElement("canvas");
    this.pictureView = null;
    this.colours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.colours(); this.stale = true; });
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.scale = 9000;
    [this.cx, this.cy] = this.project(info.center[0], info.center[1]);
    this.resize();
    addEventListener("resize", () => this.resize());
    this.listen();
    requestAnimationFrame((t) => this.frame(t));
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(name).trim();
    this.paint = {};
    for (const name of ["--land", "--road", "--road-edge", "--major", "--major-edge", "--motorway", "--faint", "--free", "--busy", "--riding",
      "--route", "--approach", "--ink", "--soft"]) this.paint[name] = this.colour(name);
    this.sprites = {};
  }

  project(lat, lng) { return [lng * this.squeeze, -lat]; }
  toScreen(x, y) { return [(x - this.cx) * this.scale + this.width / 2, (y - this.cy) * this.scale + this.height / 2]; }
  place(px, py) {
    const x = (px - this.width / 2) / this.scale + this.cx, y = (py - this.height / 2) / this.scale + this.cy;
    return { lat: -y, lng: x / this.squeeze };
  }
  window(pad = 0.15) {
    const a = this.place(-this.width * pad, this.height * (1 + pad)), b = this.place(this.width * (1 + pad), -this.height * pad);
    return { south: a.lat, west: a.lng, north: b.lat, east: b.lng };
  }

  resize() {
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = innerWidth;
    this.height = innerHeight;
    for (const canvas of [this.canvas, this.picture]) {
      canvas.width = this.width * this.ratio;
      canvas.height = this.height * this.ratio;
    }
    this.stale = true;
    this.moved();
  }

  moved() {
    clearTimeout(this.settle);
    this.settle = setTimeout(() => { this.stale = true; this.onview(this.window()); }, 140);
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const next = Math.min(400000, Math.max(1500, this.scale * factor));
    const x = (px - this.width / 2) / this.scale, y = (py - this.height / 2) / this.scale;
    this.cx += x - (x * this.scale) / next;
    this.cy += y - (y * this.scale) / next;
    this.scale = next;
    this.moved();
  }

  pan(dx, dy) { this.cx -= dx / this.scale; this.cy -= dy / this.scale; this.moved(); }

  fit(places, pad = 90) {
    if (!places.length) return;
    const points = places.map(([lat, lng]) => this.project(lat, lng));
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const left = this.width > 640 ? 380 : 0, bottom = this.width > 640 ? 0 : this.height * 0.5;
    const w = Math.max(60, this.width - left - 2 * pad), h = Math.max(60, this.height - bottom - 2 * pad - 40);
    const spanX = Math.max(Math.max(...xs) - Math.min(...xs), 1e-4), spanY = Math.max(Math.max(...ys) - Math.min(...ys), 1e-4);
    this.scale = Math.min(90000, Math.max(1500, Math.min(w / spanX, h / spanY)));
    this.cx = (Math.max(...xs) + Math.min(...xs)) / 2 - left / 2 / this.scale;
    this.cy = (Math.max(...ys) + Math.min(...ys)) / 2 + (bottom / 2 - 20) / this.scale;
    this.moved();
  }

  // -- what is drawn

  setLines(buffer) {
    const view = new DataView(buffer);
    const count = view.getUint32(0, true), points = view.getUint32(4, true);
    const [south, west, north, east] = [8, 12, 16, 20].map((at) => view.getInt32(at, true) / 1e7);
    const classes = new Uint8Array(buffer, 24, count);
    let at = 24 + count + (count % 2);
    const counts = new Uint16Array(buffer, at, count);
    at += count * 2;
    const raw = new Uint16Array(buffer.slice(at, at + points * 4));
    const xs = new Float64Array(points), ys = new Float64Array(points);
    const dx = ((east - west) * this.squeeze) / 65535, dy = (north - south) / 65535;
    for (let n = 0; n < points; n++) {
      xs[n] = west * this.squeeze + raw[2 * n] * dx;
      ys[n] = -(south + raw[2 * n + 1] * dy);
    }
    const lines = [];
    for (let n = 0, first = 0; n < count; first += counts[n], n++) {
      let left = Infinity, right = -Infinity, top = Infinity, low = -Infinity;
      for (let p = first; p < first + counts[n]; p++) {
        left = Math.min(left, xs[p]); right = Math.max(right, xs[p]); top = Math.min(top, ys[p]); low = Math.max(low, ys[p]);
      }
      lines.push({ kind: classes[n], first, end: first + counts[n], left, right, top, low });
    }
    this.lines = { xs, ys, lines };
    this.stale = true;
  }

  drawRoads() {
    const context = this.picture.getContext("2d"), { ratio, width, height, scale, paint } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = paint["--land"];
    context.fillRect(0, 0, width, height);
    this.pictureView = { cx: this.cx, cy: this.cy, scale };
    this.stale = false;
    if (!this.lines) return;
    const { xs, ys, lines } = this.lines;
    const ox = width / 2 - this.cx * scale, oy = height / 2 - this.cy * scale;
    const left = -ox / scale, right = (width - ox) / scale, top = -oy / scale, low = (height - oy) / scale;
    const paths = WIDTHS.map(() => new Path2D());
    for (const line of lines) {
      if (scale < SHOWN_FROM[line.kind] || line.right < left || line.left > right || line.low < top || line.top > low) continue;
      const path = paths[line.kind];
      let px = xs[line.first] * scale + ox, py = ys[line.first] * scale + oy;
      path.moveTo(px, py);
      for (let p = line.first + 1; p < line.end; p++) {
        const qx = xs[p] * scale + ox, qy = ys[p] * scale + oy;
        if (p + 1 < line.end && Math.abs(qx - px) + Math.abs(qy - py) < 1.2) continue;
        path.lineTo(qx, qy);
        px = qx; py = qy;
      }
    }
    context.lineCap = context.lineJoin = "round";
    const widths = WIDTHS.map((w, kind) => Math.max(kind < 5 ? 1.1 : 0.7, (w * scale) / 62000));
    const strong = (kind) => (kind < 2 ? "--motorway" : kind < 4 ? "--major" : "--road");
    if (scale > 14000) {
      for (let kind = 7; kind >= 0; kind--) {
        context.strokeStyle = paint[kind < 4 ? "--major-edge" : "--road-edge"];
        context.lineWidth = widths[kind] + 1.6;
        context.stroke(paths[kind]);
      }
    }
    for (let kind = 7; kind >= 0; kind--) {
      context.strokeStyle = scale <= 14000 && kind > 3 ? paint["--faint"] : paint[strong(kind)];
      context.lineWidth = widths[kind];
      context.stroke(paths[kind]);
    }
  }

  setCars(buffer) {
    const view = new DataView(buffer);
    const count = view.getUint32(4, true), now = performance.now();
    const [south, west, north, east] = [16, 20, 24, 28].map((at) => view.getInt32(at, true) / 1e7);
    const dx = ((east - west) * this.squeeze) / 65535, dy = (north - south) / 65535;
    const seen = (this.generation = (this.generation || 0) + 1);
    for (let n = 0, at = 32; n < count; n++, at += 8) {
      const x = west * this.squeeze + view.getUint16(at, true) * dx, y = -(south + view.getUint16(at + 2, true) * dy);
      const word = view.getUint32(at + 4, true), number = word & 0xffffff;
      let car = this.cars.get(number);
      if (!car) {
        car = { x, y, fx: x, fy: y, tx: x, ty: y, angle: 0, since: now };
        this.cars.set(number, car);
      } else {
        const share = Math.min(1, (now - car.since) / GLIDE_MS);
        car.fx += (car.tx - car.fx) * share;
        car.fy += (car.ty - car.fy) * share;
        const away = Math.hypot(x - car.fx, y - car.fy);
        if (away > 3e-6) car.angle = Math.atan2(y - car.fy, x - car.fx);
        if (away > 0.01) { car.fx = x; car.fy = y; }
        car.tx = x; car.ty = y; car.since = now;
      }
      car.state = (word >>> 24) & 15;
      car.kind = word >>> 28;
      car.seen = seen;
    }
    for (const [number, car] of this.cars) if (car.seen !== seen) this.cars.delete(number);
  }

  sprite(state, size) {
    const key = `${state}:${size}`;
    if (this.sprites[key]) return this.sprites[key];
    const canvas = document.createElement("canvas"), r = this.ratio, box = size * 2.6;
    canvas.width = canvas.height = Math.ceil(box * r);
    const context = canvas.getContext("2d");
    context.scale(r, r);
    context.translate(box / 2, box / 2);
    context.fillStyle = this.paint[STATES[state] || "--soft"];
    context.strokeStyle = this.paint["--land"];
    context.lineWidth = Math.max(0.8, size / 9);
    context.beginPath();
    if (size < 7) context.arc(0, 0, size / 2, 0, 7);
    else {
      context.roundRect(-size, -size * 0.48, size * 2, size * 0.96, size * 0.36);
      context.fill();
      context.stroke();
      context.fillStyle = "rgba(255,255,255,.82)";
      context.beginPath();
      context.roundRect(size * 0.1, -size * 0.36, size * 0.34, size * 0.72, size * 0.12);
      context.roundRect(-size * 0.72, -size * 0.33, size * 0.24, size * 0.66, size * 0.1);
      context.fill();
      return (this.sprites[key] = { canvas, box });
    }
    context.fill();
    context.stroke();
    return (this.sprites[key] = { canvas, box });
  }

  frame(now) {
    requestAnimationFrame((t) => this.frame(t));
    if (this.calm.matches && now - (this.drawnAt ?? -1e9) < 180) return; // who wants little motion gets few frames
    this.drawnAt = now;
    const context = this.canvas.getContext("2d"), { ratio, width, height } = this, began = performance.now();
    if (this.stale && !this.dragging) this.drawRoads();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.paint["--land"];
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.pictureView) {
      const was = this.pictureView, grow = this.scale / was.scale;
      const dx = (was.cx - this.cx) * this.scale + (width / 2) * (1 - grow), dy = (was.cy - this.cy) * this.scale + (height / 2) * (1 - grow);
      context.drawImage(this.picture, dx * ratio, dy * ratio, this.canvas.width * grow, this.canvas.height * grow);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const heatOver = this.heatMode !== "all";
    if (!heatOver) this.drawHeat(context);
    for (const route of this.overlays.routes) this.drawRoute(context, route);
    this.drawCars(context, now);
    if (heatOver) this.drawHeat(context);
    for (const pin of this.overlays.pins) this.drawPin(context, pin, now);
    for (const ghost of this.overlays.ghosts) this.drawGhost(context, ghost);
    this.frames = (this.frames || 0) + 1;
    this.drawMs = (this.drawMs ?? 0) * 0.9 + (performance.now() - began) * 0.1;
  }

  drawHeat(context) {
    this.heatMost = { free: 1, asks: 1 };
    for (const { free, asks } of this.overlays.heat) {
      this.heatMost.free = Math.max(this.heatMost.free, free);
      this.heatMost.asks = Math.max(this.heatMost.asks, asks);
    }
    for (const cell of this.overlays.heat) {
      context.beginPath();
      cell.corners.forEach(([lat, lng], n) => {
        const [x, y] = this.toScreen(...this.project(lat, lng));
        if (n) context.lineTo(x, y); else context.moveTo(x, y);
      });
      context.closePath();
      const [colour, strength, label] = this.heatOf(cell);
      if (!label) continue;
      context.fillStyle = `rgba(${colour},${Math.min(0.55, strength)})`;
      context.fill();
      context.strokeStyle = "rgba(128,128,128,.35)";
      context.lineWidth = 1;
      context.stroke();
      const [lat, lng] = cell.corners.reduce((sum, [a, b]) => [sum[0] + a / 4, sum[1] + b / 4], [0, 0]);
      const [x, y] = this.toScreen(...this.project(lat, lng));
      context.fillStyle = this.paint["--ink"];
      context.font = "600 12px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText(label, x, y);
    }
  }

  heatOf({ surge, free, asks }) {
    const most = this.heatMost, share = (part, whole) => 0.06 + 0.46 * Math.sqrt(part / whole);
    const supply = ["10,157,88", share(free, most.free), `${free}`], demand = ["37,99,235", share(asks, most.asks), asks ? `${asks}` : ""];
    const price = ["224,90,0", 0.1 + (surge - 1) * 0.28, surge > 1 ? `${surge.toFixed(1)}×` : ""];
    return { supply, demand, surge: price }[this.heatMode] ?? (surge > 1 ? price : supply);
  }

  drawRoute(context, { line, colour, dashed }) {
    context.beginPath();
    line.forEach(([lat, lng], n) => {
      const [x, y] = this.toScreen(...this.project(lat, lng));
      if (n) context.lineTo(x, y); else context.moveTo(x, y);
    });
    context.lineCap = context.lineJoin = "round";
    context.setLineDash([]);
    context.strokeStyle = this.paint["--land"];
    context.lineWidth = 8;
    context.stroke();
    context.setLineDash(dashed ? [2, 9] : []);
    context.strokeStyle = this.paint[colour];
    context.lineWidth = 5;
    context.stroke();
    context.setLineDash([]);
  }

  drawCars(context, now) {
    const size = this.scale > 60000 ? 10 : this.scale > 26000 ? 8 : this.scale > 12000 ? 5.5 : 4;
    const { scale, width, height, cx, cy } = this;
    const pale = this.paleness();
    if (size < 7) this.drawDots(context, now, size);
    for (const [number, car] of size < 7 ? this.followedCar() : this.cars) {
      const share = Math.min(1, (now - car.since) / GLIDE_MS);
      const x = (car.fx + (car.tx - car.fx) * share - cx) * scale + width / 2;
      const y = (car.fy + (car.ty - car.fy) * share - cy) * scale + height / 2;
      if (x < -20 || y < -20 || x > width + 20 || y > height + 20) continue;
      const mine = number === this.followed;
      const { canvas, box } = this.sprite(mine ? 3 : car.state, mine ? 13 : size);
      if (mine) {
        context.beginPath();
        context.arc(x, y, 24 + 4 * Math.sin(now / 300), 0, 7);
        context.fillStyle = "rgba(80,140,255,.22)";
        context.fill();
      }
      const cos = Math.cos(car.angle), sin = Math.sin(car.angle), r = this.ratio;
      context.globalAlpha = mine ? 1 : pale;
      context.setTransform(cos * r, sin * r, -sin * r, cos * r, x * r, y * r);
      context.drawImage(canvas, -box / 2, -box / 2, box, box);
      context.setTransform(r, 0, 0, r, 0, 0);
    }
    context.globalAlpha = 1;
  }

  paleness() {
    return this.overlays.ghosts.length || (this.overlays.heat.length && this.heatMode !== "all") ? 0.25 : 1;
  }

  followedCar() {
    const car = this.cars.get(this.followed);
    return car ? [[this.followed, car]] : [];
  }

  // Far out a car is a dot: one path and one fill per state, so that ten thousand cost a few milliseconds a frame.
  drawDots(context, now, size) {
    if (this.cars.size > 4000) size *= 0.75;
    const { scale, width, height, cx, cy } = this, half = size / 2, ox = width / 2 - cx * scale, oy = height / 2 - cy * scale;
    const paths = {};
    for (const [number, car] of this.cars) {
      const share = Math.min(1, (now - car.since) / GLIDE_MS);
      const x = (car.fx + (car.tx - car.fx) * share) * scale + ox, y = (car.fy + (car.ty - car.fy) * share) * scale + oy;
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9 || number === this.followed) continue;
      (paths[car.state] ??= new Path2D()).rect(x - half, y - half, size, size);
    }
    context.globalAlpha = this.paleness(); // the cells are the picture then, or the replay
    for (const state of [4, 1, 2, 3]) {
      if (!paths[state]) continue;
      context.fillStyle = this.paint[STATES[state]];
      context.fill(paths[state]);
    }
    context.globalAlpha = 1;
  }

  // A car of a replay: where it was, looking where it went.
  drawGhost(context, { lat, lng, angle }) {
    const [x, y] = this.toScreen(...this.project(lat, lng)), r = this.ratio, { canvas, box } = this.sprite(3, 13);
    context.beginPath();
    context.arc(x, y, 25, 0, 7);
    context.fillStyle = "rgba(80,140,255,.24)";
    context.fill();
    context.setTransform(Math.cos(angle) * r, Math.sin(angle) * r, -Math.sin(angle) * r, Math.cos(angle) * r, x * r, y * r);
    context.drawImage(canvas, -box / 2, -box / 2, box, box);
    context.setTransform(r, 0, 0, r, 0, 0);
  }

  drawPin(context, { lat, lng, kind, label, pulse }, now) {
    const [x, y] = this.toScreen(...this.project(lat, lng));
    if (pulse) {
      const wave = (now % 1600) / 1600;
      context.beginPath();
      context.arc(x, y, 8 + wave * 46, 0, 7);
      context.fillStyle = `rgba(10,157,88,${0.28 * (1 - wave)})`;
      context.fill();
    }
    context.beginPath();
    if (kind === "to") context.roundRect(x - 8, y - 8, 16, 16, 3); else context.arc(x, y, 9, 0, 7);
    context.fillStyle = kind === "to" ? this.paint["--ink"] : this.paint["--free"];
    context.strokeStyle = this.paint["--land"];
    context.lineWidth = 3;
    context.fill();
    context.stroke();
    if (!label) return;
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "left";
    const wide = context.measureText(label).width + 16;
    context.beginPath();
    context.roundRect(x + 14, y - 13, wide, 26, 8);
    context.fillStyle = this.paint["--ink"];
    context.fill();
    context.fillStyle = this.paint["--land"];
    context.fillText(label, x + 22, y + 4.5);
  }

  // -- hands

  listen() {
    const touches = new Map();
    let start = null, pinch = 0;
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      touches.set(event.pointerId, [event.clientX, event.clientY]);
      start = touches.size === 1 ? [event.clientX, event.clientY] : null;
      this.dragging = true;
    });
    canvas.addEventListener("pointermove", (event) => {
      const was = touches.get(event.pointerId);
      if (!was) return;
      touches.set(event.pointerId, [event.clientX, event.clientY]);
      if (touches.size === 1) {
        if (start && Math.hypot(event.clientX - start[0], event.clientY - start[1]) < 6) return;
        start = null;
        this.pan(event.clientX - was[0], event.clientY - was[1]);
      } else {
        const [a, b] = [...touches.values()];
        const width = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (pinch) this.zoom(width / pinch, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        pinch = width;
      }
    });
    const up = (event) => {
      touches.delete(event.pointerId);
      pinch = 0;
      if (touches.size) return;
      this.dragging = false;
      this.stale = true;
      if (start && event.type === "pointerup") this.ontap(this.place(event.clientX, event.clientY));
      start = null;
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX, event.clientY);
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(1.8, event.clientX, event.clientY));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] }[event.key];
      if (step) this.pan(...step);
      else if (event.key === "+" || event.key === "=") this.zoom(1.4);
      else if (event.key === "-") this.zoom(1 / 1.4);
      else if (event.key === "Enter") this.ontap(this.place(this.width / 2, this.height / 2));
      else return;
      event.preventDefault();
    });
  }
}
