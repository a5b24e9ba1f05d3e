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

async function upload(file) {
  const seen = card(file.name); get("uploads").prepend(seen.box);
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
    await call("POST", `/uploads/${id}/import`, { name: file.name.replace(/\.[^.]+$/, "").replace(/[_.]+/g, " ") });
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

const ladders = new Map();
async function ladder(title) {
  if (!ladders.has(title.version)) ladders.set(title.version, await call("GET", `/titles/${title.id}`));
  const tracks = ladders.get(title.version).tracks, most = Math.max(...tracks.map((t) => t.peak_bps)), rows = element("div", { className: "ladder" });
  for (const t of [...tracks].reverse()) {
    const bar = element("i", {}); bar.style.width = `${Math.max(2, 100 * t.peak_bps / most)}%`; bar.style.setProperty("--mean", `${100 * t.average_bps / t.peak_bps}%`);
    rows.append(element("div", { title: `${t.codec}, ${t.segments} segments` }, element("b", { textContent: t.kind === "audio" ? "sound" : t.name }), element("span", {}, bar), element("span", { textContent: `${rate(t.average_bps)}, peak ${rate(t.peak_bps)}` })));
  }
  return element("article", { className: "card job" }, element("header", {}, element("b", {}, element("a", { href: `/streaming/watch/${title.id}`, textContent: title.name })), element("span", { className: "muted", textContent: `${span(title.duration_s)}, ${size(title.bytes)}` })), rows);
}

let busy = false, shown = "";
async function refresh() {
  if (busy) return; busy = true;
  try {
    const [{ jobs }, { titles }] = await Promise.all([call("GET", "/jobs"), call("GET", "/titles")]);
    const names = new Map(titles.map((t) => [t.id, t.name]));
    get("jobs").replaceChildren(...(jobs.length ? jobs.slice(0, 12).map((job) => jobCard(job, names)) : [element("p", { className: "empty", textContent: "No imports yet." })]));
    const ready = titles.filter((t) => t.version), key = ready.map((t) => t.version).join();
    if (key !== shown) { shown = key; get("titles").replaceChildren(...await Promise.all(ready.slice(0, 20).map(ladder))); }
  } catch (error) {
    const text = error.status === 401 || error.status === 403 ? "The studio is for operators: open the operator link that the start of the deployment printed, then come back." : `The studio does not answer: ${error.message}`;
    get("jobs").replaceChildren(element("p", { className: "empty", textContent: text }));
  }
  busy = false;
}
const drop = get("drop");
for (const kind of ["dragover", "dragenter"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); [...event.dataTransfer.files].forEach(upload); });
get("files").addEventListener("change", (event) => { [...event.target.files].forEach(upload); event.target.value = ""; });
refresh(); setInterval(refresh, 1000);
