// The three ways to play: our own over MSE (starts fastest), hls.js, and the browser's own HLS.
import { MsePlayer } from "/streaming/static/mse_player.js";

let library;
function hlsLibrary() {
  library ||= new Promise((done) => {
    const script = document.createElement("script");
    script.src = "/vendor/hls.js/dist/hls.min.js";
    script.onload = () => done(window.Hls || null); script.onerror = () => done(null);
    document.head.append(script);
  });
  return library;
}

class HlsPlayer {
  constructor(Hls, video, play, hooks) {
    this.hls = new Hls({ startLevel: 0, enableWorker: true, cmcd: { sessionId: play.session, contentId: play.title, useHeaders: false }, maxBufferLength: 24 });
    this.bytes = 0; this.video = video; this.play = play;
    const events = Hls.Events;
    this.hls.on(events.LEVEL_SWITCHED, () => hooks.rung && hooks.rung({ height: this.height() }));
    this.hls.on(events.FRAG_LOADED, (_, data) => { this.bytes += data.frag.stats.total; this.pathway = data.frag.baseurl; });
    this.hls.on(events.ERROR, (_, data) => { if (data.fatal) hooks.fatal(new Error(data.details)); else hooks.trouble && hooks.trouble(new Error(data.details)); });
    this.hls.subtitleDisplay = false;  // the page shows texts itself, the same way for every engine
    if (play.resume_s) this.hls.config.startPosition = play.resume_s;
    this.hls.loadSource(new URL(play.steered_hls, location.href).href); this.hls.attachMedia(video);
  }
  levels() { const seen = new Map(); this.hls.levels.forEach((l) => seen.set(l.height, { name: `${l.height}p`, height: l.height })); return [...seen.values()]; }
  fix(name) { this.hls.currentLevel = name === null ? -1 : this.hls.levels.findIndex((l) => `${l.height}p` === name); }
  hear(name) { const at = this.play.tracks.filter((t) => t.kind === "audio").findIndex((t) => t.name === name); if (at >= 0) this.hls.audioTrack = at; }
  height() { const level = this.hls.levels[this.hls.currentLevel]; return level ? level.height : 0; }
  destroy() { this.hls.destroy(); }
}

class NativePlayer {
  constructor(video, play, hooks) {
    this.video = video; this.bytes = 0; video.src = play.hls;
    if (play.resume_s) video.addEventListener("loadedmetadata", () => { video.currentTime = play.resume_s; }, { once: true });
    video.addEventListener("error", () => hooks.fatal(new Error(video.error ? video.error.message : "the browser could not play it")), { once: true });
  }
  levels() { return []; }
  fix() {}
  hear(name) { void name; }
  height() { return this.video.videoHeight; }
  destroy() { this.video.removeAttribute("src"); this.video.load(); }
}

// wanted: "" (best), "mse", "hls", "native"
export async function choose(wanted, video, play, hooks, prepared) {
  if ((wanted === "" || wanted === "mse") && MsePlayer.usable(play)) return ["mse", new MsePlayer(video, play, hooks, prepared)];
  if (wanted !== "native") {
    const Hls = await hlsLibrary();
    if (Hls && Hls.isSupported()) return ["hls", new HlsPlayer(Hls, video, play, hooks)];
  }
  if (video.canPlayType("application/vnd.apple.mpegurl")) return ["native", new NativePlayer(video, play, hooks)];
  if (MsePlayer.usable(play)) return ["mse", new MsePlayer(video, play, hooks)];
  video.removeAttribute("src");
  throw new Error("This browser plays neither HLS nor MP4 segments.");
}
