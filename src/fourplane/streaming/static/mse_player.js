// An adaptive player over Media Source Extensions that reads no manifest: the play call says where segments are.
// It starts with init and first segment of the smallest rung fetched in parallel, and climbs as soon as the measured
// throughput and the buffer allow. Buffer-aware rate rule: never above 0.7 of the throughput, none up below 4 s of buffer.

const AHEAD_S = 24, BEHIND_S = 30, SAFE = 0.7, RETRIES = 4, HOLD_MS = 300, QUICK_BPS = 5e6;

function joined(a, b) { const bytes = (part) => (part instanceof Uint8Array ? part : new Uint8Array(part)), whole = new Uint8Array(a.byteLength + b.byteLength); whole.set(bytes(a)); whole.set(bytes(b), a.byteLength); return whole; }

export class MsePlayer {
  static usable(play) {
    return "MediaSource" in window && play.tracks.every((t) => MediaSource.isTypeSupported(`${t.kind}/mp4; codecs="${t.codec}"`));
  }

  // The media source may open while the play call is still on its way.
  static prepare(video) {
    if (!("MediaSource" in window)) return null;
    const source = new MediaSource(); video.src = URL.createObjectURL(source); return source;
  }

  constructor(video, play, hooks, prepared) {
    this.video = video; this.play = play; this.hooks = hooks;
    this.bases = [play.base]; this.base = play.base;
    this.rungs = play.tracks.filter((t) => t.kind === "video").sort((a, b) => a.bps - b.bps);
    this.sounds = play.tracks.filter((t) => t.kind === "audio");
    const liked = (hooks.language && this.sounds.find((t) => t.language === hooks.language)) || this.sounds[0];
    this.sound = liked; const from = play.resume_s || 0;
    this.fixed = null; this.rate = 0; this.bytes = 0; this.pieces = play.pieces || new Map(); this.rung = this.rungs[0]; this.dead = false;
    // What follows the first seconds waits for the first picture, which it would delay; a slow line must not rest for that.
    this.held = this.pieces.size > 0 && play.rate > QUICK_BPS;
    this.inits = new Map(play.tracks.filter((t) => t.init).map((t) => [t.name, Promise.resolve(Uint8Array.from(atob(t.init), (c) => c.charCodeAt(0)).buffer)]));
    this.source = prepared || MsePlayer.prepare(video);
    this.lanes = [];
    const head = this.lane("video", this.rung), tail = this.sound ? this.lane("audio", this.sound) : null;
    for (const lane of this.lanes) lane.next = Math.min(Math.floor(from / lane.track.segment_s), lane.track.count - 1);
    this.early = [this.load(head, this.rung, head.next), tail && this.load(tail, this.sound, tail.next)];
    this.early.forEach((one) => one && one.catch(() => {}));
    this.steering = setInterval(() => this.steer(), (play.steering_s || 10) * 1000);
    if (this.source.readyState === "open") this.open(); else this.source.addEventListener("sourceopen", () => this.open(), { once: true });
    if (from) video.currentTime = from;
    if (this.held) { this.holding = setTimeout(() => this.go(), HOLD_MS); if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(() => setTimeout(() => this.go())); }
    video.addEventListener("seeking", this.seeking = () => this.lanes.forEach((lane) => this.retune(lane)));
    video.addEventListener("timeupdate", this.ticking = () => this.pump());
  }

  lane(kind, track) { const lane = { kind, track, next: 0, busy: false, initOf: "", buffer: null, abort: null }; this.lanes.push(lane); return lane; }

  async open() {
    this.source.duration = Math.max(...this.play.tracks.map((t) => t.segment_s * t.count), this.play.duration_s);
    for (const lane of this.lanes) lane.buffer = this.source.addSourceBuffer(`${lane.kind}/mp4; codecs="${lane.track.codec}"`);
    this.pump();
  }

  async fetch(url, lane) {
    let wait = 150;
    for (let tries = 0; ; tries++) {
      try {
        if (lane) lane.abort = new AbortController();
        const began = performance.now();
        const answer = await fetch(url(), { signal: lane ? lane.abort.signal : undefined });
        if (!answer.ok) throw Object.assign(new Error(`HTTP ${answer.status}`), { status: answer.status });
        const data = await answer.arrayBuffer();
        this.bytes += data.byteLength;
        const seconds = (performance.now() - began) / 1000;
        if (data.byteLength > 20000) { const now = 8 * data.byteLength / Math.max(seconds, 0.002); this.rate = this.rate ? Math.min(now, 0.6 * this.rate + 0.4 * now) || now : now; if (now > this.rate) this.rate = 0.7 * this.rate + 0.3 * now; }
        return data;
      } catch (error) {
        if (error.name === "AbortError" || this.dead) throw error;
        if (tries >= RETRIES) throw error;
        this.hooks.trouble && this.hooks.trouble(error);
        const moved = await (this.hooks.reroute ? this.hooks.reroute(this.base) : null);
        if (moved) this.base = moved;
        await new Promise((done) => setTimeout(done, wait)); wait *= 2;
      }
    }
  }

  async steer() {  // content steering: the node to use may change while nothing is wrong with this one
    const moved = this.hooks.reroute ? await this.hooks.reroute(this.base).catch(() => null) : null;
    if (moved && !this.dead) this.base = moved;
  }

  init(track) {
    if (!this.inits.has(track.name)) {
      const got = this.fetch(() => `${this.base}${track.name}/init.mp4`);
      got.catch(() => this.inits.delete(track.name));
      this.inits.set(track.name, got);
    }
    return this.inits.get(track.name);
  }

  load(lane, track, number) { return Promise.all([lane.initOf === track.name ? null : this.init(track), this.piece(`${track.name}/${number}`) || this.fetch(() => `${this.base}${track.name}/${number}.m4s`, lane)]); }

  piece(name) {  // what came along with the play call
    const found = this.pieces.get(name);
    if (found) { this.pieces.delete(name); this.bytes += found.byteLength; }
    return found;
  }

  retune(lane) {
    const at = Math.min(Math.floor((this.video.currentTime + 1e-3) / lane.track.segment_s), lane.track.count - 1);
    if (this.ahead(lane) > 0.3 || (lane.busy && lane.next === at)) return;
    if (lane.abort) lane.abort.abort();
    lane.next = Math.max(0, at); this.pump();
  }

  ahead(lane) {
    const ranges = lane.buffer ? lane.buffer.buffered : null, at = this.video.currentTime;
    for (let n = 0; ranges && n < ranges.length; n++) if (ranges.start(n) <= at + 0.25 && ranges.end(n) > at) return ranges.end(n) - at;
    return 0;
  }

  choose() {
    if (this.fixed !== null) return this.rungs.find((t) => t.name === this.fixed) || this.rungs[0];
    const buffer = this.ahead(this.lanes[0]);
    if (!this.rate) return this.rungs[0];
    const room = this.rate * SAFE - (this.sound ? this.sound.bps : 0);
    let best = this.rungs[0];
    for (const track of this.rungs) if (track.bps <= room) best = track;
    const tall = (this.video.clientHeight || 720) * (window.devicePixelRatio || 1);
    while (best !== this.rungs[0] && this.rungs[this.rungs.indexOf(best) - 1].height >= tall * 1.1) best = this.rungs[this.rungs.indexOf(best) - 1];
    const now = this.rungs.indexOf(this.rung), then = this.rungs.indexOf(best);
    if (then > now && buffer < 2) return this.rung;
    if (then < now && buffer > 14) return this.rung;
    return best;
  }

  go() { if (this.held && !this.dead) { this.held = false; clearTimeout(this.holding); this.pump(); } }

  pump() { for (const lane of this.lanes) this.feed(lane); }

  async feed(lane) {
    if (lane.busy || this.dead || !lane.buffer || lane.next >= lane.track.count) { this.finish(); return; }
    if (this.ahead(lane) > AHEAD_S || (this.held && lane.initOf)) return;
    lane.busy = true;
    const number = lane.next;
    try {
      const early = this.early[this.lanes.indexOf(lane)];
      const track = lane.kind === "video" && !early ? this.choose() : lane.track;
      this.early[this.lanes.indexOf(lane)] = null;
      const [init, data] = await (early || this.load(lane, track, number));
      await this.append(lane, init ? joined(init, data) : data);
      if (init) lane.initOf = track.name;
      if (lane.kind === "video" && this.rung !== track) { this.rung = track; this.hooks.rung && this.hooks.rung(track); }
      if (lane.next === number) lane.next = number + 1;
      await this.trim(lane);
    } catch (error) {
      if (error.name !== "AbortError" && !this.dead) { this.dead = true; this.hooks.fatal(error); return; }
    } finally { lane.busy = false; }
    if (!this.dead) queueMicrotask(() => this.feed(lane));
  }

  append(lane, data) {
    return new Promise((done, failed) => {
      const buffer = lane.buffer;
      const end = () => { buffer.removeEventListener("updateend", end); buffer.removeEventListener("error", bad); done(); };
      const bad = () => { buffer.removeEventListener("updateend", end); buffer.removeEventListener("error", bad); failed(new Error("the browser refused a segment")); };
      buffer.addEventListener("updateend", end); buffer.addEventListener("error", bad);
      try { buffer.appendBuffer(data); } catch (error) { buffer.removeEventListener("updateend", end); buffer.removeEventListener("error", bad); failed(error); }
    });
  }

  async trim(lane) {
    const until = this.video.currentTime - BEHIND_S, ranges = lane.buffer.buffered;
    if (ranges.length && until > ranges.start(0) + 10) await new Promise((done) => { lane.buffer.addEventListener("updateend", done, { once: true }); lane.buffer.remove(0, until); });
  }

  finish() {
    if (this.source.readyState === "open" && this.lanes.every((lane) => lane.next >= lane.track.count && !lane.busy && lane.buffer && !lane.buffer.updating)) this.source.endOfStream();
  }

  // Another language: what was fetched of the old one goes, the new one begins where the viewer is.
  async hear(name) {
    const lane = this.lanes.find((one) => one.kind === "audio"), track = this.sounds.find((t) => t.name === name);
    if (!lane || !track || track === this.sound || !lane.buffer) return;
    if (lane.abort) lane.abort.abort();
    while (lane.busy || lane.buffer.updating) await new Promise((done) => setTimeout(done, 10));
    lane.busy = true; this.sound = lane.track = track; lane.initOf = "";
    if (lane.buffer.changeType) lane.buffer.changeType(`audio/mp4; codecs="${track.codec}"`);
    await new Promise((done) => { lane.buffer.addEventListener("updateend", done, { once: true }); lane.buffer.remove(0, Infinity); });
    lane.busy = false; lane.next = Math.min(Math.floor(this.video.currentTime / track.segment_s), track.count - 1); this.pump();
  }

  levels() { return this.rungs.map((t) => ({ name: t.name, height: t.height })); }
  fix(name) { this.fixed = name; }
  height() { return this.rung.height; }
  destroy() {
    this.dead = true; clearInterval(this.steering); clearTimeout(this.holding); this.lanes.forEach((lane) => lane.abort && lane.abort.abort());
    this.video.removeEventListener("seeking", this.seeking); this.video.removeEventListener("timeupdate", this.ticking);
    URL.revokeObjectURL(this.video.src); this.pieces.clear();
  }
}
