"""One title, every player: hls.js, dash.js, shaka-player, Chromium's own HLS, ffmpeg and VLC play what we publish.

The players' packages are large and only wanted here: npm installs them beside this test's results the first time.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.journeys.streaming.rig import ROOT, run, served

from fourplane.foundation.errors import Misconfigured
from fourplane.streaming import ffmpeg

WANTED = Path(__file__).parent / "players"
PLACE = ROOT / ".tools" / "players"
FRAMES_MIN = 20
PAGES = {
    "dash.js": (
        "/players/dashjs/dist/modern/umd/dash.all.min.js",
        "const p = dashjs.MediaPlayer().create(); p.initialize(video, url, true); p.on('error', (e) => wrong(e.error));",
    ),
    "shaka": (
        "/players/shaka-player/dist/shaka-player.compiled.js",
        (
            "const p = new shaka.Player(); await p.attach(video); p.addEventListener('error', (e) => wrong(e.detail));"
            " await p.load(url); video.play();"
        ),
    ),
    "hls.js": (
        "/vendor/hls.js/dist/hls.min.js",
        (
            "const p = new Hls(); p.on(Hls.Events.ERROR, (_, d) => d.fatal && wrong(d.details)); p.loadSource(url);"
            " p.attachMedia(video); video.play();"
        ),
    ),
    "native": ("", "video.src = url; video.onerror = () => wrong(video.error.message); video.play();"),
}
PAGE = """async ([script, url]) => {
  const video = document.createElement('video'); video.muted = true; document.body.replaceChildren(video);
  window.said = []; const wrong = (e) => window.said.push(String(e && e.message || e && e.code || e));
  if (script) await new Promise((done, failed) => {
    const s = document.createElement('script'); s.src = script; s.onload = done; s.onerror = failed; document.head.append(s);
  });
  CODE
}"""
SEEN = "() => [document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames, window.said]"
PLAYED = f"() => document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > {FRAMES_MIN} || window.said.length"


@pytest.fixture(scope="module")
def players():
    """The folder with dash.js and shaka-player."""
    found = PLACE / "node_modules"
    if not (found / "dashjs").is_dir() or not (found / "shaka-player").is_dir():
        if shutil.which("npm") is None:
            pytest.skip("npm is missing, so dash.js and shaka-player are")
        PLACE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(WANTED / name, PLACE / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=PLACE, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install the players: {done.stderr.strip()[-200:]}")
    return found


@pytest.fixture(scope="module")
def title(players, tmp_path_factory):
    try:
        run(ffmpeg.find)
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")
    with served(tmp_path_factory.mktemp("title"), players=players) as found:
        yield found


def ask(page, here, title):
    return page.evaluate(
        "([t]) => fetch('/streaming/api/play', { method: 'POST', headers: { 'content-type': 'application/json' },"
        " body: JSON.stringify({ title: t }) }).then((a) => a.json())",
        [title],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "kind"),
    [
        ("dash.js", "dash"),
        ("dash.js", "steered_dash"),
        ("shaka", "dash"),
        ("shaka", "hls"),
        ("hls.js", "hls"),
        ("native", "hls"),
    ],
)
def test_a_browser_s_player_plays_the_title(chromium, title, player, kind):
    here, title = title
    script, code = PAGES[player]
    page = chromium.new_page()
    try:
        page.goto(f"{here.address}/streaming/studio")
        url = ask(page, here, title)[kind]
        page.evaluate(PAGE.replace("CODE", code), [script, url if url.startswith("http") else here.address + url])
        page.wait_for_function(PLAYED, timeout=30_000)
        frames, said = page.evaluate(SEEN)
    finally:
        page.close()
    assert said == []
    assert frames > FRAMES_MIN


@pytest.mark.slow
def test_players_say_how_they_fare_and_it_is_heard(chromium, title):
    here, title = title
    page = chromium.new_page()
    try:
        page.goto(f"{here.address}/streaming/watch/{title}?engine=hls")
        page.wait_for_function("() => document.querySelector('video')?.currentTime > 1", timeout=30_000)
    finally:
        page.close()
    assert here.rooms.guard.cmcd.requests > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hls", "dash"])
def test_ffmpeg_reads_every_picture(chromium, title, kind):
    here, title = title
    page = chromium.new_page()
    try:
        page.goto(f"{here.address}/streaming/studio")
        url = ask(page, here, title)[kind]
    finally:
        page.close()
    program = run(ffmpeg.find).path
    command = [
        program,
        "-nostdin",
        "-hide_banner",
        "-v",
        "error",
        "-stats",
        "-i",
        url,
        "-map",
        "0:v:0",
        "-f",
        "null",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert int(re.findall(r"frame=\s*(\d+)", done.stderr)[-1]) > 7 * 24


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hls", "dash"])
def test_vlc_fetches_the_whole_title(chromium, title, tmp_path, kind):
    if shutil.which("cvlc") is None:
        pytest.skip("VLC is not installed")
    here, title = title
    page = chromium.new_page()
    try:
        page.goto(f"{here.address}/streaming/studio")
        url = ask(page, here, title)[kind]
    finally:
        page.close()
    tmp_path.chmod(0o777)
    command = ["cvlc", "--vout", "dummy", "--aout", "dummy", "--run-time", "3", "--play-and-exit", url]
    if os.geteuid() == 0:  # VLC refuses root
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    before = sum(node.requests for node in here.rooms.delivery.nodes.values())
    subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, timeout=60, check=False, cwd="/"
    )
    seen = sum(node.requests for node in here.rooms.delivery.nodes.values()) - before
    assert seen > 4, json.dumps({name: node.statistics().refused for name, node in here.rooms.delivery.nodes.items()})
