"""The generated clip is drawn with whatever filters an ffmpeg has."""

import asyncio

import msgspec
import pytest

from fourplane.foundation.errors import Misconfigured
from fourplane.streaming import ffmpeg
from fourplane.streaming.clip import generate_clip


@pytest.mark.parametrize("missing", [frozenset(), {"drawtext"}, {"life", "drawtext"}, {"gradients"}])
def test_a_clip_is_drawn_without_a_filter(missing, tmp_path):
    async def main():
        try:
            encoder = await ffmpeg.find()
        except Misconfigured:
            pytest.skip("no ffmpeg on this machine")
        poorer = msgspec.structs.replace(encoder, filters=encoder.filters - missing)
        await generate_clip(poorer, tmp_path / "clip.mp4", duration_s=1.0, size="160x90")
        found = await encoder.probe(tmp_path / "clip.mp4")
        assert (found.width, found.height, len(found.audio)) == (160, 90, 1)

    asyncio.run(asyncio.wait_for(main(), 30))
