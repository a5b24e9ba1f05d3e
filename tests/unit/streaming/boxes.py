"""Fragmented MP4 made by hand: just the boxes that packaging reads, so that no test needs an encoder."""

import struct


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def full(kind, *parts, version=0, flags=0):
    return box(kind, bytes([version]) + flags.to_bytes(3, "big"), *parts)


def video_entry(width, height):
    avcc = box(b"avcC", bytes([1, 0x64, 0, 0x1F, 0xFF, 0xE1]))
    return box(b"avc1", bytes(24), struct.pack(">HH", width, height), bytes(50), avcc)


def audio_entry(channels, rate):
    config = bytes([5, 2, 0x12, 0x10])
    decoder = bytes([4, 13 + len(config), 0x40]) + bytes(12) + config
    esds = full(b"esds", bytes([3, 3 + len(decoder), 0, 1, 0]), decoder)
    return box(b"mp4a", bytes(16), struct.pack(">HHHHI", channels, 16, 0, 0, rate << 16), esds)


def init(entry, timescale):
    mdhd = full(b"mdhd", struct.pack(">IIII", 0, 0, timescale, 0), bytes(4))
    stsd = full(b"stsd", struct.pack(">I", 1), entry)
    mdia = box(b"mdia", mdhd, box(b"minf", box(b"stbl", stsd)))
    trex = full(b"trex", struct.pack(">IIIII", 1, 1, 0, 0, 0))
    return box(b"ftyp", b"iso6", bytes(4)) + box(b"moov", box(b"trak", mdia), box(b"mvex", trex))


def fragment(number, start, sizes, duration, *, key=True):
    first = 0x02000000 if key else 0x01010000
    samples = b"".join(struct.pack(">I", size) for size in sizes)
    tfhd = full(b"tfhd", struct.pack(">III", 1, duration, 0x01010000), flags=0x20028)
    tfdt = full(b"tfdt", struct.pack(">Q", start), version=1)
    trun = full(b"trun", struct.pack(">IiI", len(sizes), 0, first), samples, flags=0x205)
    moof = box(b"moof", full(b"mfhd", struct.pack(">I", number)), box(b"traf", tfhd, tfdt, trun))
    return moof + box(b"mdat", bytes(sum(sizes)))


def video_file(*, segments=4, size=10_000, fps=24, width=640, height=360):
    """Segments of two seconds; `size` bytes of samples each."""
    frames = 2 * fps
    parts = [init(video_entry(width, height), fps)]
    for number in range(segments):
        sizes = [size // 2] + [size // 2 // (frames - 1)] * (frames - 1)
        parts.append(fragment(number + 1, number * frames, sizes, 1))
    return b"".join(parts)


def audio_file(*, segments=4, size=2_000):
    head = init(audio_entry(2, 48_000), 48_000)
    parts = [fragment(number + 1, number * 96_256, [size // 94] * 94, 1_024) for number in range(segments)]
    return b"".join([head, *parts])
