"""Frames come out as they went in, however the network cuts them."""

import numpy as np
import pytest

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.driver_index import make_updates
from fourplane.foundation.errors import Rejected


def pour(buffer: frames.FrameBuffer, stream: bytes, sizes: np.random.Generator, most: int) -> list[tuple[int, bytes]]:
    got, at = [], 0
    while at < len(stream):
        free = buffer.free()
        count = min(len(free), len(stream) - at, int(sizes.integers(1, most)))
        free[:count] = stream[at : at + count]
        buffer.filled(count)
        at += count
        while (one := buffer.take()) is not None:
            got.append((one[0], bytes(one[1])))
    return got


@pytest.mark.parametrize("most", [3, 40, 900, 70_000])
def test_frames_cut_anywhere_come_out_whole_and_in_order(most: int) -> None:
    rng = np.random.default_rng(most)
    sent = [
        (int(rng.integers(1, 4)), rng.bytes(int(rng.choice([0, 16, 160, 3_000, 100_000]))))
        for _ in range(12 if most < 100 else 60)
    ]
    buffer = frames.FrameBuffer()
    buffer.most = frames.BUFFER_MAX
    if most < 100:
        sent = [(kind, payload[:3_000]) for kind, payload in sent]
    got = pour(buffer, b"".join(frames.frame(*one) for one in sent), rng, most)

    def joined(many: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Neighbouring positions as one: they may be joined on the way."""
        out: list[tuple[int, bytes]] = []
        for kind, payload in many:
            if kind == frames.POSITIONS and out and out[-1][0] == kind:
                out[-1] = kind, out[-1][1] + payload
            else:
                out.append((kind, payload))
        return out

    assert joined(got) == joined(sent)


def test_a_thousand_phones_on_one_connection_are_taken_together() -> None:
    count = 1_000
    updates = make_updates(
        np.arange(count, dtype=np.uint32), np.full(count, 41.0), np.full(count, -8.0), np.ones(count, np.uint32)
    )
    stream = b"".join(frames.positions_frame(updates[n : n + 1]) for n in range(count)) + frames.frame(3, b"[]")
    buffer = frames.FrameBuffer()
    buffer.most = frames.BUFFER_MAX
    got = pour(buffer, stream, np.random.default_rng(1), 100_000)
    assert b"".join(payload for kind, payload in got if kind == frames.POSITIONS) == updates.tobytes()
    assert len(got) < 50
    assert got[-1] == (3, b"[]")


def test_what_is_no_frame_or_too_long_before_the_hello_is_refused() -> None:
    buffer = frames.FrameBuffer()
    buffer.free()[:8] = b"GET / HT"
    buffer.filled(8)
    with pytest.raises(Rejected, match="not frames"):
        buffer.take()
    early = frames.FrameBuffer()
    head = frames.HEADER.pack(frames.MAGIC, frames.POSITIONS, 0, 100_000)
    early.free()[: len(head)] = head
    early.filled(len(head))
    with pytest.raises(Rejected, match="hello"):
        early.take()
