// The player: picture, controls, keyboard, quality beacons. The engine underneath is chosen by engines.js.
import { choose } from "/streaming/static/engines.js";
import { MsePlayer } from "/streaming/static/mse_player.js";

const ICONS = {
  play: "M8 5v14l11-7z", pause: "M6 5h4v14H6zm8 0h4v14h-4z", back: "M12 5V1L7 6l5 5V7a6 6 0 1 1-6 6H4a8 8 0 1 0 8-8z",
  loud: "M3 9v6h4l5 5V4L7 9zm13 3a4.5 4.5 0 0 0-2.5-4v8a4.5 4.5 0 0 0 2.5-4z", mute: "M3 9v6h4l5 5V4L7 9zm18 .4L19.6 8 17 10.6 14.4 8 13 9.4l2.6 2.6-2.6 2.6 1.4 1.4 2.6-2.6 2.6 2.6 1.4-1.4-2.6-2.6z",
  full: "M5 5h6v2H7v4H5zm8 0h6v6h-2V7h-4zM5 13h2v4h4v2H5zm12 0h2v6h-6v-2h4z", facts: "M4 20V10h4v10zm6 0V4h4v16zm6 0v-7h4v7z",
};
const post = (path, body) => fetch(`/streaming/api/${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const FURNISH_MS = 250;

// A start for our own engine: the play and the first seconds in one answer, so nothing is waited for twice.
async function begin(asked) {
  const began = performance.now(), answer = await post("start", asked);
  if (!answer.ok) return { answer };
  const data = await answer.arrayBuffer(), size = new DataView(data).getUint32(0);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size))), play = told.play;
  let from = 4 + size; play.pieces = new Map();
  for (const piece of told.pieces) { play.pieces.set(`${piece.track}/${piece.number}`, new Uint8Array(data, from, piece.bytes)); from += piece.bytes; }
  play.rate = 8000 * data.byteLength / Math.max(performance.now() - began, 2);
  return { answer, play };
}
const kept = (key, value) => { try { if (value === undefined) return localStorage.getItem(key); localStorage.setItem(key, value); } catch { /* a private window keeps nothing */ } return null; };
const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
export const clock = (s) => { s = Math.max(0, Math.floor(s || 0)); const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60; return (h ? `${h}:${String(m).padStart(2, "0")}` : `${m}`) + ":" + String(s % 60).padStart(2, "0"); };

export class Player {
  constructor(stage, { title, region, engine, autoplay }) {
    this.pressed = performance.now(); this.title = title; this.region = region; this.wanted = engine || "";
    const asked = { title: title.id, region }, ours = (this.wanted === "" || this.wanted === "mse") && "MediaSource" in window;
    this.kept_s = Number(kept(`at:${title.id}`)) || 0;
    this.asked = ours ? begin({ ...asked, at_s: this.kept_s, language: kept("sound") || "" }) : post("play", asked).then((answer) => ({ answer }));  // before anything is drawn
    this.asked.catch(() => {});
    this.totals = { played_s: 0, stalled_s: 0, stalls: 0, errors: 0, start_ms: null, error: "" };
    this.node = document.createElement("div");
    this.node.className = "player waiting"; this.node.tabIndex = 0; this.node.setAttribute("role", "region"); this.node.setAttribute("aria-label", "Video player");
    this.node.innerHTML = `<video playsinline preload="auto"></video><div class="veil"><div class="spin"></div></div>`;
    this.video = this.node.firstChild;
    this.prepared = ours ? MsePlayer.prepare(this.video) : null;
    stage.replaceChildren(this.node);
    this.listen();
    this.late = setTimeout(() => this.furnish(), FURNISH_MS);
    this.start(autoplay).catch((error) => this.fail(error));
  }

  // Title and controls: after the first picture, which they must not delay, or when that takes long.
  furnish() {
    if (this.furnished) return;
    this.furnished = true; clearTimeout(this.late);
    this.part(".veil").insertAdjacentHTML("beforebegin", `<div class="title"></div>`);
    this.part(".veil").insertAdjacentHTML("afterend", `<div class="controls"><div class="bar" role="slider" tabindex="0" aria-label="Seek" aria-valuemin="0"><div class="rail"><div class="loaded"></div><div class="played"></div></div><div class="preview"><i></i><span></span></div></div>
<div class="buttons"><button data-do="toggle" aria-label="Play">${icon("play")}</button><button data-do="back" class="wide" aria-label="Back 10 seconds">${icon("back")}</button><button data-do="mute" aria-label="Mute">${icon("loud")}</button><input class="wide" data-do="volume" type="range" min="0" max="1" step="0.05" value="1" aria-label="Volume">
<span class="time"><span class="now">0:00</span> / <span class="all">0:00</span></span><span class="gap"></span>
<select data-do="speed" class="wide" aria-label="Speed"><option value="0.5">0.5×</option><option value="1" selected>1×</option><option value="1.25">1.25×</option><option value="1.5">1.5×</option><option value="2">2×</option></select>
<select data-do="sound" aria-label="Sound" hidden></select><select data-do="text" aria-label="Captions" hidden><option value="">No captions</option></select>
<select data-do="rung" aria-label="Quality"><option value="">Auto</option></select><button data-do="facts" class="wide" aria-label="Figures">${icon("facts")}</button><button data-do="full" aria-label="Full screen">${icon("full")}</button></div></div>`);
    const bar = this.part(".bar"), video = this.video, seek = (event) => { const box = bar.getBoundingClientRect(); return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (this.play?.duration_s || 0); };
    bar.addEventListener("pointerdown", (event) => { bar.setPointerCapture(event.pointerId); video.currentTime = seek(event); this.dragging = true; });
    bar.addEventListener("pointermove", (event) => { this.preview(seek(event), event); if (this.dragging) video.currentTime = seek(event); });
    bar.addEventListener("pointerup", () => { this.dragging = false; });
    this.reflect(); if (this.play) this.named();
  }

  named() {
    if (!this.furnished) return;
    this.part(".title").textContent = this.play.name; this.part(".all").textContent = clock(this.play.duration_s);
    if (this.rung) this.part("select[data-do=rung] option").textContent = `Auto (${this.rung.height}p)`;
    this.menus();
  }

  reflect() {  // what the buttons say about the video
    if (!this.furnished) return;
    const video = this.video, toggle = this.part("[data-do=toggle]"), quiet = video.muted || !video.volume;
    toggle.innerHTML = icon(video.paused ? "play" : "pause"); toggle.setAttribute("aria-label", video.paused ? "Play" : "Pause");
    this.part("[data-do=mute]").innerHTML = icon(quiet ? "mute" : "loud"); this.part("[data-do=volume]").value = video.muted ? 0 : video.volume;
  }

  part(what) { return this.node.querySelector(what); }

  async start(autoplay) {
    const { answer, play = await answer.json() } = await this.asked;
    if (!answer.ok) throw new Error(play.error ? play.error.message : `HTTP ${answer.status}`);
    this.play = play; play.resume_s ||= this.kept_s; this.named();
    const hooks = {
      language: kept("sound"),
      fatal: (error) => this.fail(error),
      trouble: (error) => { this.totals.errors++; this.totals.error = String(error.message).slice(0, 60); },
      rung: (track) => { this.rung = track; if (this.furnished) this.part("select[data-do=rung] option").textContent = `Auto (${track.height}p)`; },
      reroute: (base) => this.reroute(base),
    };
    const first = () => { if (this.totals.start_ms === null) { this.totals.start_ms = performance.now() - this.pressed; setTimeout(() => { this.furnish(); this.beacon(); }); this.later = setTimeout(() => this.scrub(), 1000); } };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(first); else this.video.addEventListener("loadeddata", first, { once: true });
    [this.engine, this.core] = await choose(this.wanted, this.video, play, hooks, this.prepared);
    this.node.dataset.engine = this.engine;
    if (autoplay) this.video.play().catch(() => { this.video.muted = true; return this.video.play(); }).catch(() => this.offer());
    this.timer = setInterval(() => this.tick(), 500); this.report = setInterval(() => this.beacon(), 5000);
  }

  async reroute(base) {
    const answer = await fetch(`/streaming/api/sessions/${this.play.session}/steering`).then((a) => a.ok ? a.json() : null).catch(() => null);
    const best = answer && answer["PATHWAY-PRIORITY"][0];
    if (!best) return null;
    this.bases ||= await fetch(this.play.steered_hls).then((a) => a.text()).then((text) => Object.fromEntries([...text.matchAll(/PATHWAY-ID="([^"]+)"\n(http\S+\/)[^/\n]+\.m3u8/g)].map((m) => [m[1], m[2]]))).catch(() => null);
    if (!this.bases || !this.bases[best] || this.bases[best] === base) return null;
    this.play.node = best; return this.bases[best];
  }

  listen() {
    const video = this.video, node = this.node;
    const act = {
      toggle: () => (video.paused ? video.play() : video.pause()), back: () => { video.currentTime -= 10; }, mute: () => { video.muted = !video.muted; },
      full: () => (document.fullscreenElement ? document.exitFullscreen() : node.requestFullscreen && node.requestFullscreen()), facts: () => this.facts(),
    };
    node.addEventListener("click", (event) => { const what = event.target.closest("[data-do]"); if (what && act[what.dataset.do]) act[what.dataset.do](); else if (event.target === video) act.toggle(); });
    node.addEventListener("change", (event) => { const what = event.target.dataset.do; if (what === "speed") video.playbackRate = Number(event.target.value); if (what === "rung") this.core.fix(event.target.value || null); if (what === "text") this.caption(event.target.value); if (what === "sound") { const t = this.play.tracks.find((one) => one.name === event.target.value); kept("sound", t ? t.language : ""); this.core.hear(event.target.value); } });
    node.addEventListener("input", (event) => { if (event.target.dataset.do === "volume") { video.volume = Number(event.target.value); video.muted = false; } });
    node.addEventListener("keydown", (event) => {
      if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
      const keys = { " ": act.toggle, k: act.toggle, ArrowLeft: () => { video.currentTime -= 5; }, ArrowRight: () => { video.currentTime += 5; }, j: act.back, l: () => { video.currentTime += 10; }, ArrowUp: () => { video.volume = Math.min(1, video.volume + .1); }, ArrowDown: () => { video.volume = Math.max(0, video.volume - .1); }, m: act.mute, f: act.full, i: act.facts, c: () => { const menu = this.part("select[data-do=text]"); if (menu) this.caption(menu.value ? "" : menu.options[1]?.value); }, Home: () => { video.currentTime = 0; }, End: () => { video.currentTime = video.duration - 1; }, "<": () => { video.playbackRate = Math.max(.25, video.playbackRate - .25); }, ">": () => { video.playbackRate = Math.min(3, video.playbackRate + .25); } };
      if (event.target.tagName === "BUTTON" && event.key === " ") return;
      const done = keys[event.key] || keys[event.key.toLowerCase()]; if (done) { done(); event.preventDefault(); this.awake(); }
    });
    for (const kind of ["pointermove", "pointerdown", "focusin"]) node.addEventListener(kind, () => this.awake());
    video.addEventListener("play", () => { this.reflect(); this.part(".big")?.remove(); this.awake(); });
    video.addEventListener("pause", () => { this.reflect(); node.classList.remove("idle"); });
    video.addEventListener("volumechange", () => this.reflect());
    video.addEventListener("waiting", () => { node.classList.add("waiting"); if (this.totals.start_ms !== null && !video.seeking && !this.stalling) { this.stalling = performance.now(); this.totals.stalls++; } });
    for (const kind of ["playing", "canplay", "seeked"]) video.addEventListener(kind, () => { node.classList.remove("waiting"); this.unstall(); });
    video.addEventListener("ended", () => this.beacon());
    this.leaving = () => this.beacon(true); addEventListener("pagehide", this.leaving);
  }

  unstall() { if (this.stalling) { this.totals.stalled_s += (performance.now() - this.stalling) / 1000; this.stalling = 0; } }
  awake() { this.node.classList.remove("idle"); clearTimeout(this.sleepy); this.sleepy = setTimeout(() => { if (!this.video.paused) this.node.classList.add("idle"); }, 2500); }
  offer() { this.furnish(); this.node.classList.remove("waiting"); const big = document.createElement("button"); big.className = "big"; big.textContent = "▶"; big.setAttribute("aria-label", "Play"); big.onclick = () => this.video.play(); this.part(".veil").append(big); }

  tick() {
    if (!this.furnished) return;
    const video = this.video, length = this.play.duration_s, at = video.currentTime;
    if (!video.paused && at > (this.before || 0)) this.totals.played_s += Math.min(1.5, at - (this.before || 0));
    this.before = at;
    this.part(".now").textContent = clock(at); this.part(".played").style.width = `${100 * at / length}%`;
    const ranges = video.buffered; let end = 0; for (let n = 0; n < ranges.length; n++) if (ranges.start(n) <= at + .3) end = Math.max(end, ranges.end(n));
    this.part(".loaded").style.width = `${100 * end / length}%`; this.ahead = Math.max(0, end - at);
    const bar = this.part(".bar"); bar.setAttribute("aria-valuemax", Math.round(length)); bar.setAttribute("aria-valuenow", Math.round(at)); bar.setAttribute("aria-valuetext", clock(at));
    const menu = this.part("select[data-do=rung]"), levels = this.core.levels();
    if (menu.options.length === 1 && levels.length > 1) [...levels].sort((a, b) => b.height - a.height).forEach((l) => menu.add(new Option(l.name, l.name)));
    kept(`at:${this.title.id}`, at > 5 && at < 0.95 * length ? String(at) : "0");
    this.show();
  }

  menus() {
    const sounds = this.play.tracks.filter((t) => t.kind === "audio"), sound = this.part("select[data-do=sound]"), text = this.part("select[data-do=text]");
    sounds.forEach((t) => sound.add(new Option(t.label || t.name, t.name, false, t.language !== "" && t.language === kept("sound"))));
    sound.hidden = sounds.length < 2;
    this.play.captions.forEach((c) => text.add(new Option(c.label, c.name)));
    text.hidden = !this.play.captions.length;
    const liked = this.play.captions.find((c) => c.language === kept("captions"));
    if (liked) { text.value = liked.name; this.caption(liked.name); }
  }

  // One text track at a time, as a track element over bytes of ours: so every engine shows texts the same way.
  async caption(name) {
    const wanted = this.play.captions.find((c) => c.name === name);
    this.video.querySelectorAll("track").forEach((old) => { old.track.mode = "disabled"; old.remove(); });
    kept("captions", wanted ? wanted.language : ""); this.part("select[data-do=text]").value = wanted ? name : "";
    if (!wanted) return;
    const answer = await fetch(`${this.play.base}${name}.vtt`).catch(() => null);
    if (!answer || !answer.ok) return;
    const track = document.createElement("track");
    track.kind = "captions"; track.label = wanted.label; track.srclang = wanted.language; track.src = URL.createObjectURL(await answer.blob());
    track.onload = () => { for (const cue of track.track.cues || []) if (cue.line === "auto") cue.line = -4; };  // above the controls
    this.video.append(track); track.track.mode = "showing";
  }

  async scrub() {
    if (!this.play.scrub) return;
    const text = await fetch(this.play.scrub).then((a) => a.ok ? a.text() : "").catch(() => "");
    const stamp = (t) => t.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
    this.cues = [...text.matchAll(/([\d:.]+) --> ([\d:.]+)\n(\S+)#xywh=(\d+),(\d+),(\d+),(\d+)/g)].map((m) => ({ from: stamp(m[1]), to: stamp(m[2]), x: +m[4], y: +m[5], w: +m[6], h: +m[7] }));
    if (this.cues.length) { const sheet = await fetch(new URL("sprite.jpg", this.play.scrub)).then((a) => a.blob()).catch(() => null); if (sheet) this.sheet = URL.createObjectURL(sheet); }
  }

  preview(at, event) {
    const box = this.part(".preview"), cue = this.cues?.find((c) => at >= c.from && at < c.to), bar = this.part(".bar").getBoundingClientRect();
    box.classList.toggle("ready", Boolean(cue && this.sheet)); box.style.left = `${Math.min(bar.width - 82, Math.max(82, event.clientX - bar.left))}px`;
    if (cue && this.sheet) { const i = box.querySelector("i"); i.style.cssText = `width:${cue.w}px;height:${cue.h}px;background-image:url(${this.sheet});background-position:-${cue.x}px -${cue.y}px`; box.querySelector("span").textContent = clock(at); }
  }

  facts() { const old = this.part(".facts-box"); if (old) { old.remove(); return; } const box = document.createElement("dl"); box.className = "facts-box"; this.node.append(box); this.show(); }
  show() {
    const box = this.part(".facts-box"); if (!box) return;
    const quality = this.video.getVideoPlaybackQuality?.(), t = this.totals;
    const rows = { engine: this.engine, node: this.play.node, region: this.play.region, start: t.start_ms === null ? "…" : `${t.start_ms.toFixed(0)} ms`, picture: `${this.core.height() || this.video.videoHeight}p`, buffer: `${(this.ahead || 0).toFixed(1)} s`, stalls: `${t.stalls} (${t.stalled_s.toFixed(1)} s)`, frames: quality ? `${quality.totalVideoFrames} (${quality.droppedVideoFrames} lost)` : "?", received: `${(this.core.bytes / 1e6).toFixed(1)} MB` };
    box.innerHTML = Object.entries(rows).map(([k, v]) => `<dt>${k}</dt><dd></dd>`).join(""); [...box.querySelectorAll("dd")].forEach((dd, n) => { dd.textContent = Object.values(rows)[n]; });
  }

  beacon(ended = false) {
    if (!this.play) return;
    const t = this.totals, now = this.stalling ? (performance.now() - this.stalling) / 1000 : 0;
    const body = { session: this.play.session, played_s: t.played_s, stalled_s: t.stalled_s + now, stalls: t.stalls, start_ms: t.start_ms, height: this.core?.height() || this.video.videoHeight || 0, bytes: this.core?.bytes || 0, errors: t.errors, error: t.error, region: this.play.region, node: this.play.node, at_s: this.video.currentTime || 0, ended };
    return fetch("/streaming/api/beacons", { method: "POST", keepalive: true, headers: { "content-type": "application/json" }, body: JSON.stringify(body) }).catch(() => {});
  }

  fail(error) {
    this.totals.errors++; this.totals.error = String(error.message).slice(0, 60); this.beacon(); this.node.classList.remove("waiting"); this.node.dataset.failed = error.message;
    const box = document.createElement("div"); box.className = "trouble"; box.setAttribute("role", "alert");
    const text = document.createElement("p"), again = document.createElement("button"); text.textContent = `This title cannot be played now: ${error.message}`; again.className = "play"; again.textContent = "Try again"; again.onclick = () => location.reload();
    const inner = document.createElement("div"); inner.append(text, again); box.append(inner); this.node.append(box);
  }

  close() { clearTimeout(this.late); clearTimeout(this.later); clearInterval(this.timer); clearInterval(this.report); this.beacon(true); removeEventListener("pagehide", this.leaving); this.core?.destroy(); this.node.remove(); this.video.removeAttribute("src"); this.video.load(); }  // or its decoders live until the collector comes
}
