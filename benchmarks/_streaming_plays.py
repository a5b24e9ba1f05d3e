"""Plays in a real Chromium: the first painted picture of many starts, and waiting over throttled networks.

Both use the page's own player and the deployment's own ports. Each viewer has a line of its own (`_streaming_line`); the
traces are written here, after the shapes that field studies describe: a bus on 3G, a walk on 4G, a satellite's hand-overs
every 15 s, a crowded Wi-Fi, a tunnel, an evening's congestion. Kilobits per second, one value a second.
"""

import contextlib
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _streaming_line import lines

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--disable-gpu",
    "--disable-features=LocalNetworkAccessChecks",
]
START = """async (title) => {
  const { Player } = await import('/streaming/static/player.js');
  const box = document.createElement('div'); document.body.replaceChildren(box);
  await new Promise((rested) => setTimeout(rested, 100));  // nobody presses play while the last film is being put away
  const player = new Player(box, { title: { id: title, name: '' }, region: 'us', engine: 'mse', autoplay: true });
  while (player.totals.start_ms === null && !player.node.dataset.failed) await new Promise((done) => setTimeout(done, 4));
  const took = player.totals.start_ms; const failed = player.node.dataset.failed || '';
  player.close(); return [took, failed];
}"""
# The same browser, the same bytes, no network and no page of ours: what is held in memory goes into a bare video element.
FLOOR = """async (title) => {
  if (!window.held) {
    const body = JSON.stringify({ title }), headers = { 'content-type': 'application/json' };
    const play = await (await fetch('/streaming/api/play', { method: 'POST', headers, body })).json();
    const bytes = async (path) => (await fetch(play.base + path)).arrayBuffer();
    const rung = play.tracks.filter((t) => t.kind === 'video').sort((a, b) => a.bps - b.bps)[0];
    window.held = [];
    for (const t of [rung, play.tracks.find((t) => t.kind === 'audio')]) {
      const blob = new Blob([await bytes(t.name + '/init.mp4'), await bytes(t.name + '/0.m4s')]);
      held.push([`${t.kind}/mp4; codecs="${t.codec}"`, await blob.arrayBuffer()]);
    }
  }
  document.body.replaceChildren(); await new Promise((rested) => setTimeout(rested, 100));
  const video = document.createElement('video'), source = new MediaSource(), pressed = performance.now();
  document.body.replaceChildren(video); video.src = URL.createObjectURL(source);
  const took = await new Promise((done) => {
    video.requestVideoFrameCallback(() => done(performance.now() - pressed));
    source.addEventListener('sourceopen', () => {
      const buffers = held.map(([type]) => source.addSourceBuffer(type));
      held.forEach(([, data], n) => buffers[n].appendBuffer(data)); video.play();
    });
  });
  video.removeAttribute('src'); video.load(); video.remove(); return took;
}"""
PLAY = """async (title) => {
  const { Player } = await import('/streaming/static/player.js');
  const box = document.createElement('div'); document.body.replaceChildren(box);
  window.player = new Player(box, { title: { id: title, name: '' }, region: 'us', engine: 'mse', autoplay: true });
}"""
SEEN = """() => { player.unstall(); return { played: player.totals.played_s, stalled: player.totals.stalled_s,
  stalls: player.totals.stalls, start: player.totals.start_ms, height: player.core?.height() || 0,
  failed: player.node.dataset.failed || '' }; }"""
TRACES = {
    "3G, a bus": [1400, 1100, 900, 700, 800, 1200, 1500, 1300, 600, 500, 700, 1000],
    "4G, a walk": [9000, 12000, 7000, 3000, 2500, 6000, 11000, 15000, 8000, 2000, 1500, 5000],
    "satellite, hand-overs": [40000] * 14 + [900],
    "Wi-Fi, crowded": [5000, 700, 4000, 900, 6000, 800, 3500, 600],
    "a tunnel": [8000] * 14 + [200] * 4,
    "an evening's congestion": [6000, 5000, 4000, 3000, 2000, 1600, 1300, 1100, 1000, 1000, 1200, 1500, 2500, 4000],
}
LATENCY_MS = 40


@contextlib.contextmanager
def browser():
    """A headless Chromium; raises RuntimeError where there is none."""
    import shutil

    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise RuntimeError("no chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


def house(folder, **options):
    """The streaming system of the journeys' tests, on free ports."""
    sys.path.insert(0, str(ROOT))
    from tests.journeys.streaming.rig import served

    return served(Path(folder), **options)


def first_frame(starts=100):
    """The first painted picture on a warm page, the server's part of it, and what Chromium alone needs, in turns."""
    sys.path.insert(0, str(ROOT))
    sys.setswitchinterval(0.0005)  # the server shares this process with the browser's driver
    from fourplane.foundation.telemetry import quantile

    with tempfile.TemporaryDirectory() as folder, house(folder) as (here, title), browser() as opened:
        page = opened.new_page()
        page.goto(f"{here.address}/streaming/")
        for _ in range(5):
            page.evaluate(START, title)
            page.evaluate(FLOOR, title)
        served, found, floor = here.rooms.play_seconds, [], []
        warm = list(served.buckets)
        gc.freeze()  # as a deployment's workers do
        for number in range(starts):
            found.append(page.evaluate(START, title))
            if number % 2:
                floor.append(page.evaluate(FLOOR, title))
        server_s = quantile([now - then for now, then in zip(served.buckets, warm, strict=True)], 0.99, served.scale)
    took = sorted(ms for ms, failed in found if not failed)
    p99 = _share(took, 0.99)
    return {
        "starts": len(took),
        "failed": len(found) - len(took),
        "p50_ms": round(statistics.median(took), 1),
        "p90_ms": round(_share(took, 0.9), 1),
        "p99_ms": round(p99, 1),
        "chromium_alone_p50_ms": round(statistics.median(floor), 1),
        "chromium_alone_p99_ms": round(_share(sorted(floor), 0.99), 1),
        "server_p99_ms": round(server_s * 1e3, 2),
        "bar": "p99 < 100 ms, server < 10 ms",
        "met": p99 < 100 and server_s < 0.010,
    }


def _share(ordered, share):
    return ordered[max(0, int(len(ordered) * share) - 1)]


def rebuffer(seconds=40, film=None):
    """Waiting over all traces at once, a page each; shares of the time watched."""
    sys.path.insert(0, str(ROOT))
    shared = ROOT.parent / "shared" / "data" / "video" / "big_buck_bunny_trailer_720p.mp4"
    file = film or (shared if shared.is_file() else None)
    import msgspec
    from tests.journeys.streaming.rig import QUICK

    encoding = msgspec.structs.replace(
        QUICK, preset="veryfast", rungs_max=3, height_max=540, duration_s_max=seconds + 8.0
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        house(folder, file=file, encoding=encoding) as (here, title),
        lines(TRACES, LATENCY_MS / 1e3) as held,
        browser() as opened,
    ):
        pages = {}
        for name, line in held.items():
            proxy = {"server": f"http://127.0.0.1:{line.port}", "bypass": "<-loopback>"}
            page = pages[name] = opened.new_context(proxy=proxy).new_page()
            page.goto(f"{here.address}/streaming/")
            page.wait_for_load_state("networkidle")
        for name, page in pages.items():
            held[name].start()
            page.evaluate(PLAY, title)
        time.sleep(seconds)
        seen = {name: page.evaluate(SEEN) for name, page in pages.items()}
    played, stalled = sum(one["played"] for one in seen.values()), sum(one["stalled"] for one in seen.values())
    ratio = stalled / (played + stalled)
    result = {}
    for name, one in seen.items():
        waited = f"{one['stalls']} stalls ({one['stalled']:.2f} s)"
        result[name] = f"{one['played']:.0f} s, {waited}, {one['height']}p, {held[name].bytes / 1e6:.1f} MB"
    failed = sum(1 for one in seen.values() if one["failed"])
    return {**result, "ratio": round(ratio, 5), "bar": "< 0.005", "met": ratio < 0.005 and not failed}
