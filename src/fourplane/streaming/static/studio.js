// The studio: uploads in pieces, imports with progress, ladders of what is published.
const get = (id) => document.getElementById(id), CHUNK = 4 << 20;
const element = (name, properties, ...children) => { const made = Object.assign(document.createElement(name), properties); made.append(...children); return made; };
const size = (n) => (n > 1e9 ? `${(n / 1e9).toFixed(2)} GB` : `${(n / 1e6).toFixed(1)} MB`), rate = (n) => (n > 1e6 ? `${(n / 1e6).toFixed(2)} Mb/s` : `${Math.round(n / 1e3)} kb/s`);
const span = (s) => (s > 90 ? `${Math.round(s / 60)} min` : `${Math.round(s)} s`);

async function call(method, path, body, raw) {
  const answer = await fetch(`/streaming/api${path}`, { method, body: raw || (body && JSON.stringify(body)), headers: body || raw ? { "content-type": raw ? "application/octet-stream" : "application/json" } : {} });
  const told = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw Object.assign(new Error(told?.error?.message || `HTTP ${answer.status}`), { status: answer.status, fields: told?.error?.fields || {} });
  return told;
}

function card(name) {
  const bar = element("i", {}), state = element("span", { className: "pill running", textContent: "uploading" }), said = element("span", { className: "muted" });
  const box = element("article", { className: "card job" }, element("header", {}, element("b", { textContent: name }), state), element("div", { className: "meter" }, bar), said);
  bar.style.width = "0";
  return { box, show: (share, text) => { bar.style.width = `${100 * share}%`; said.textContent = text; }, end: (kind, text) => { state.className = `pill ${kind}`; state.textContent = kind; said.textContent = text; } };
}

const TEXT = /\.(vtt|srt)$/i, FILM = /\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|mxf|ogv|ts|vob|webm|wmv|y4m)$/i, AT_ONCE = 2;
let waiting = [], running = 0;
function next() { while (running < AT_ONCE && waiting.length) { running++; waiting.shift()().finally(() => { running--; next(); }); } }
const place = (file) => file.place || file.webkitRelativePath || "";

// What was dropped, folders with all that lies in them; of a folder only what looks like a film or its texts.
async function dropped(items) {
  const found = [], walk = async (entry, path) => {
    if (entry.isFile) { const file = await new Promise((done, failed) => entry.file(done, failed)); if (!path || FILM.test(file.name) || TEXT.test(file.name)) { file.place = path ? `${path}/${file.name}` : ""; found.push(file); } return; }
    const reader = entry.createReader(), inside = [];
    for (;;) { const some = await new Promise((done, failed) => reader.readEntries(done, failed)); if (!some.length) break; inside.push(...some); }
    for (const one of inside.filter((e) => !e.name.startsWith(".")).sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }))) await walk(one, path ? `${path}/${entry.name}` : entry.name);
  };
  for (const entry of items) await walk(entry, "");
  return found;
}

// A text file belongs to the film whose name it begins with: Film.mp4, Film.en.vtt.
function take(files) {
  const all = [...files], texts = all.filter((f) => TEXT.test(f.name)), films = all.filter((f) => !TEXT.test(f.name));
  for (const film of films) {
    const stem = film.name.replace(/\.[^.]+$/, ""), folder = place(film).replace(/[^/]*$/, "");
    const seen = card(film.name); seen.show(0, "waiting"); get("uploads").append(seen.box);
    waiting.push(() => upload(film, seen, texts.filter((t) => t.name.startsWith(`${stem}.`) && place(t).replace(/[^/]*$/, "") === folder)));
  }
  next();
  if (!films.length && texts.length) card(texts[0].name).end("failed", "Captions are dropped together with their film: Film.mp4 and Film.en.vtt.");
}
async function captions(texts) {
  const found = [];
  for (const text of texts) { const [, language, kind] = text.name.match(/\.([a-z]{2,3})\.(vtt|srt)$/i) || []; if (language) found.push({ language: language.toLowerCase(), kind: kind.toLowerCase(), text: await text.text() }); }
  return found;
}

async function upload(file, seen, texts = []) {
  try {
    let { id, offset } = await call("POST", "/uploads", { name: file.name, size: file.size }), tries = 0;
    const began = performance.now();
    while (offset < file.size) {
      try { offset = (await call("PUT", `/uploads/${id}/${offset}`, null, file.slice(offset, offset + CHUNK))).offset; tries = 0; }
      catch (error) {
        if (error.status === 409 && Number(error.fields.offset) >= 0) { offset = Number(error.fields.offset); continue; }
        if (error.status && error.status < 500 || ++tries > 8) throw error;
        seen.show(offset / file.size, `The connection broke; trying again (${tries})`); await new Promise((done) => setTimeout(done, 500 * tries));
        offset = (await call("GET", `/uploads/${id}`)).offset;
      }
      const pace = offset / ((performance.now() - began) / 1000);
      seen.show(offset / file.size, `${size(offset)} of ${size(file.size)}, ${size(pace)}/s, ${span((file.size - offset) / pace)} left`);
    }
    seen.show(1, "Looking at the file…");
    await call("POST", `/uploads/${id}/import`, { path: place(file) || file.name, captions: await captions(texts) });
    seen.box.remove(); refresh();
  } catch (error) { seen.end("failed", error.message); }
}

function jobCard(job, names) {
  const now = job.progress, running = job.state === "running", share = job.state === "done" ? 1 : now ? now.share : 0;
  const bar = element("i", {}); bar.style.width = `${100 * share}%`;
  const left = now && now.remaining_s !== null ? `, ${span(now.remaining_s)} left` : "", pace = now && now.speed ? `, ${now.speed.toFixed(1)}× real time` : "";
  const text = running && now ? `${Math.round(100 * share)} %, ${now.step}${pace}${left}` : job.said || (job.state === "queued" ? "waiting for the encoder" : new Date(job.changed_us / 1000).toLocaleString());
  const head = element("header", {}, element("b", { textContent: names.get(job.title) || job.file }), element("span", { className: `pill ${job.state}`, textContent: job.error || job.state }));
  if (running || job.state === "queued") head.append(element("button", { className: "button quiet", textContent: "Cancel", onclick: () => call("DELETE", `/jobs/${job.id}`).then(refresh).catch((e) => alert(e.message)) }));
  const box = element("article", { className: "card job" }, head);
  if (running || job.state === "queued") box.append(element("div", { className: "meter", role: "progressbar", ariaValueNow: String(Math.round(100 * share)) }, bar));
  box.append(element("span", { className: "muted", textContent: text })); return box;
}

const ladders = new Map(), SVG = "http://www.w3.org/2000/svg";
function draw(name, attributes, text) { const made = document.createElementNS(SVG, name); for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v); if (text !== undefined) made.textContent = text; return made; }

// Rate against VMAF: where every rung of the title's own ladder lies.
function chart(tracks) {
  const rungs = tracks.filter((t) => t.vmaf), W = 320, H = 150, L = 34, B = 24;
  if (rungs.length < 2) return null;
  const low = Math.log(Math.min(...rungs.map((t) => t.average_bps)) / 1.4), high = Math.log(Math.max(...rungs.map((t) => t.average_bps)) * 1.3), floor = Math.max(0, 10 * Math.floor(Math.min(...rungs.map((t) => t.vmaf)) / 10 - .5));
  const x = (b) => L + (W - L - 12) * (Math.log(b) - low) / (high - low), y = (v) => 10 + (H - B - 10) * (100 - v) / (100 - floor);
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, class: "vmaf", role: "img", "aria-label": `VMAF of ${rungs.length} rungs: ${rungs.map((t) => `${t.name} ${t.vmaf}`).join(", ")}` });
  for (let v = floor; v <= 100; v += (100 - floor) > 40 ? 20 : 10) svg.append(draw("line", { x1: L, x2: W, y1: y(v), y2: y(v), class: "grid" }), draw("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end" }, v));
  svg.append(draw("text", { x: W, y: H - 4, "text-anchor": "end" }, "rate →"), draw("text", { x: 2, y: H - 4 }, "VMAF"));
  const sorted = [...rungs].sort((a, b) => a.average_bps - b.average_bps);
  svg.append(draw("polyline", { points: sorted.map((t) => `${x(t.average_bps)},${y(t.vmaf)}`).join(" "), class: "edge" }));
  for (const t of sorted) { const dot = draw("circle", { cx: x(t.average_bps), cy: y(t.vmaf), r: 5 }); dot.append(draw("title", {}, `${t.name}: VMAF ${t.vmaf}, ${rate(t.average_bps)}`)); svg.append(dot, draw("text", { x: x(t.average_bps), y: y(t.vmaf) + 18, "text-anchor": "middle", class: "name" }, t.name.split("-")[0])); }
  return svg;
}

function describe(title, done) {
  const a = title.about, form = element("form", { className: "describe" }), field = (label, name, value, more = {}) => element("label", {}, label, Object.assign(element(more.long ? "textarea" : "input", { name, value: value ?? "" }), more.type ? { type: more.type } : {}));
  const date = (us) => (us ? new Date(us / 1000).toISOString().slice(0, 10) : ""), list = (text) => text.split(",").map((w) => w.trim()).filter(Boolean), micro = (day) => (day ? Date.parse(day) * 1000 : 0);
  form.append(field("Name", "name", title.name), field("Description", "description", title.description, { long: true }), field("Genres", "genres", a.genres.join(", ")), field("With", "cast", a.cast.join(", ")), field("Year", "year", a.year || "", { type: "number" }), field("Rating", "rating", a.rating), field("Series", "series", a.series), field("Season", "season", a.season || "", { type: "number" }), field("Episode", "episode", a.episode || "", { type: "number" }), field("Regions (empty: all)", "regions", a.regions.join(", ")), field("Shown from", "from", date(a.from_us), { type: "date" }), field("Shown until", "until", date(a.until_us), { type: "date" }));
  const said = element("span", { className: "muted", role: "status" });
  form.append(element("div", { className: "acts" }, element("button", { className: "button", textContent: "Save" }), element("button", { className: "button quiet", type: "button", textContent: "Close", onclick: () => form.remove() }), said));
  form.onsubmit = async (event) => {
    event.preventDefault(); const v = Object.fromEntries(new FormData(form));
    try { await call("PUT", `/titles/${title.id}`, { name: v.name, description: v.description, about: { genres: list(v.genres), cast: list(v.cast), year: Number(v.year) || 0, rating: v.rating, series: v.series, season: Number(v.season) || 0, episode: Number(v.episode) || 0, regions: list(v.regions), from_us: micro(v.from), until_us: micro(v.until) } }); form.remove(); done(); }
    catch (error) { said.textContent = error.message; }
  };
  return form;
}

async function ladder(title) {
  if (!ladders.has(title.version)) ladders.set(title.version, await call("GET", `/titles/${title.id}`));
  const { tracks, captions: texts } = ladders.get(title.version), most = Math.max(...tracks.map((t) => t.peak_bps)), rows = element("div", { className: "ladder" });
  for (const t of [...tracks].reverse()) {
    const bar = element("i", {}); bar.style.width = `${Math.max(2, 100 * t.peak_bps / most)}%`; bar.style.setProperty("--mean", `${100 * t.average_bps / t.peak_bps}%`);
    rows.append(element("div", { title: `${t.codec}, ${t.segments} segments` }, element("b", { textContent: t.kind === "audio" ? (t.language || "sound") : t.name.split("-")[0] }), element("span", {}, bar), element("span", { textContent: `${rate(t.average_bps)}, peak ${rate(t.peak_bps)}${t.vmaf ? `, VMAF ${t.vmaf}` : ""}` })));
  }
  const both = element("div", { className: "both" }, rows), seen = chart(tracks);
  if (seen) both.append(seen);
  const box = element("article", { className: "card job" }), edit = element("button", { className: "button quiet", textContent: "Describe" });
  edit.onclick = () => { const open = box.querySelector("form"); if (open) open.remove(); else box.append(describe(title, () => { shown = ""; ladders.delete(title.version); refresh(); })); };
  box.append(element("header", {}, element("b", {}, element("a", { href: `/streaming/title/${title.id}`, textContent: title.name })), element("span", { className: "muted", textContent: [span(title.duration_s), size(title.bytes), texts.length ? `captions: ${texts.join(", ")}` : ""].filter(Boolean).join(", ") }), edit), both);
  return box;
}

let busy = false, shown = "";
async function refresh() {
  if (busy) return; busy = true;
  try {
    const [{ jobs }, { titles }] = await Promise.all([call("GET", "/jobs"), call("GET", "/titles")]);
    const names = new Map(titles.map((t) => [t.id, t.name]));
    get("jobs").replaceChildren(...(jobs.length ? jobs.slice(0, 12).map((job) => jobCard(job, names)) : [element("p", { className: "empty", textContent: "No imports yet." })]));
    const ready = titles.filter((t) => t.version), key = ready.map((t) => t.version + t.name).join();
    if (key !== shown && !document.querySelector("form.describe")) { shown = key; get("titles").replaceChildren(...await Promise.all(ready.slice(0, 20).map(ladder))); }
  } catch (error) {
    const text = error.status === 401 || error.status === 403 ? "The studio is for operators: open the operator link that the start of the deployment printed, then come back." : `The studio does not answer: ${error.message}`;
    get("jobs").replaceChildren(element("p", { className: "empty", textContent: text }));
  }
  busy = false;
}
const drop = get("drop");
for (const kind of ["dragover", "dragenter"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean), plain = [...event.dataTransfer.files]; if (entries.some((e) => e.isDirectory)) dropped(entries).then(take); else take(plain); });
get("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
get("folder").addEventListener("change", (event) => { take([...event.target.files].filter((f) => FILM.test(f.name) || TEXT.test(f.name)).sort((a, b) => place(a).localeCompare(place(b), undefined, { numeric: true }))); event.target.value = ""; });
refresh(); setInterval(refresh, 1000);
