"""Films: whoever was served bytes got those asked for, and nobody without a right to them."""

from fourplane.simulator.film import mark


def wrong_bytes(content: bytes, film: str, track: str, number: int) -> list[str]:
    """A segment's content must be that of its own film, track and number, whole."""
    place = content.find(b"mdat")
    expected = mark(film, track, number)
    inside = content[place + 4 :]
    filling = (expected * (len(inside) // len(expected) + 1))[: len(inside)]
    if place < 0 or inside != filling:
        return [f"films: {film} {track} {number} was answered with {inside[:40]!r}"]
    return []


def unearned(status: int, what: str) -> list[str]:
    """An address that must not be served was."""
    return [f"films: {what} was served with {status}"] if status < 400 else []
