"""The first painted picture after a press on play: a warm page in a real Chromium, one hundred starts."""

import gc
import os
import statistics
import sys

import pytest
from tests.journeys.streaming.rig import run, served

from fourplane.foundation.errors import Misconfigured
from fourplane.streaming import ffmpeg

STARTS = int(os.environ.get("FOURPLANE_TEST_STARTS", "100"))
GOAL_MS = 100.0
SERVER_GOAL_S = 0.010
BUSY = 0.75  # of the cores, beyond which a figure of a browser says nothing
START = """async (title) => {
  const { Player } = await import('/streaming/static/player.js');
  const box = document.createElement('div'); document.body.replaceChildren(box);
  await new Promise((rested) => setTimeout(rested, 100));  // nobody presses play while the last film is being put away
  const player = new Player(box, { title: { id: title, name: '' }, region: 'us', engine: 'mse', autoplay: true });
  while (player.totals.start_ms === null && !player.node.dataset.failed) await new Promise((done) => setTimeout(done, 4));
  const took = player.totals.start_ms; const failed = player.node.dataset.failed || '';
  player.close(); return [took, failed];
}"""


@pytest.mark.slow
def test_one_hundred_starts_on_a_warm_page(chromium, tmp_path, record_property):
    try:
        run(ffmpeg.find)
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")
    sys.setswitchinterval(0.0005)  # the server shares this process with the browser's driver
    with served(tmp_path) as (here, title):
        page = chromium.new_page()
        try:
            page.goto(f"{here.address}/streaming/")
            for _ in range(5):
                page.evaluate(START, title)
            gc.freeze()  # as a deployment's workers do
            found = [page.evaluate(START, title) for _ in range(STARTS)]
        finally:
            page.close()
        server_s = here.rooms.play_seconds.quantile(0.99)
        sys.setswitchinterval(0.005)
    assert {failed for _, failed in found} == {""}
    took = sorted(ms for ms, _ in found)
    p99 = took[max(0, int(len(took) * 0.99) - 1)]
    load = os.getloadavg()[0]
    figures = f"p50 {statistics.median(took):.0f} ms, p99 {p99:.0f} ms, play call p99 {server_s * 1e3:.1f} ms"
    record_property("first frame", f"{figures}, load {load:.1f}")
    if load > (os.cpu_count() or 1) * BUSY:
        pytest.skip(f"the machine is too busy to judge: {figures}, load {load:.1f}")
    assert p99 < GOAL_MS, figures
    assert server_s < SERVER_GOAL_S, figures
