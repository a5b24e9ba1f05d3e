"""What strangers say of us: the public cache suite, and validators of manifests beside two other packagers.

Nothing here may be shipped, so each judge is used where it is at hand (`tests/protocol/cache/suite.py` and
`tests/protocol/streaming/judges.py` say where to get them) and is named where it is missing.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FILM_S = 16.0


def suite(edition="current"):
    """Passed tests of http-tests/cache-tests by kind; the npm edition stands in where the current one is not at hand."""
    from tests.protocol.cache.suite import CURRENT, NPM, at_hand, failed, judged

    named, folder = "current", CURRENT
    if edition == "npm" or at_hand(CURRENT):
        named, folder = "npm, older: 17 of its expectations are outdated", NPM
    if reason := at_hand(folder):
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as work:
        found = asyncio.run(judged(folder, Path(work)))
    counts = found["counts"]
    passed = {kind: counts[kind] - len(failed(found, kind)) for kind in counts}
    cdn = (passed.get("cdn required", 0) + passed.get("cdn optimal", 0), counts.get("cdn required", 0))
    return {
        "edition": named,
        "required": f"{passed['required']} of {counts['required']}",
        "optional": f"{passed['optimal']} of {counts['optimal']}",
        "cdn": f"{cdn[0]} of {cdn[1] + counts.get('cdn optimal', 0)}",
        "bar": "150 of 150, at least 94 of 98, 17 of 17",
        "met": named == "current" and passed["required"] == 150 and passed["optimal"] >= 94 and cdn[0] == 17,
    }


def validators():
    """Findings in our manifests, in Shaka Packager's over the same tracks and in those of ffmpeg's own muxer."""
    from tests.protocol.streaming import judges

    from fourplane.streaming.hls_rules import findings

    judged, missing = {"hls rules": findings}, []
    for name, make in (("schema", judges.Schema), ("schematron", judges.Schematron)):
        try:
            judged[name] = make().findings
        except judges.NotAtHand as reason:
            missing.append(str(reason))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        index, encoded, muxed = asyncio.run(_film(folder))
        result = {"ours": _count(judged, *_ours(index)), "ffmpeg's muxer": _count(judged, *muxed)}
        try:
            (folder / "packager").mkdir()
            tracks = [(rung.name, "video", file) for rung, file in encoded.video]
            tracks += [(file.stem, "audio", file) for _, file in encoded.audio]
            theirs = judges.packaged(folder / "packager", tracks, segment_s=index.video[0].segments[0].duration / 24)
            result["Shaka Packager"] = _count(judged, list(theirs[0].values()), [theirs[1]])
            result["peak rate, ours to the packager's"] = _peaks(index, theirs[0]["master.m3u8"])
        except judges.NotAtHand as reason:
            missing.append(str(reason))
    told = {name: _said(found) for name, found in result.items()}
    return {
        **told,
        "missing": "; ".join(missing) or "nothing",
        "bar": "0 findings",
        "met": not any(result["ours"].values()),
    }


async def _film(folder):
    """The index of a film encoded here, its files, and what ffmpeg's own muxer writes of the same tracks."""
    from tests.journeys.streaming.rig import QUICK

    from fourplane.streaming import ffmpeg, packaging
    from fourplane.streaming.clip import generate_clip
    from fourplane.streaming.encoding import Encode

    encoder = await ffmpeg.find()
    film = folder / "film.mp4"
    await generate_clip(encoder, film, duration_s=FILM_S, size="640x360")
    (folder / "film.en.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nWords\n")
    encoded = await Encode(encoder, film, folder / "work", QUICK).run()
    index = packaging.index_title("t", "v", encoded)
    files = [file for _, file in (*encoded.video, *encoded.audio)]
    inputs = [part for file in files for part in ("-i", str(file))]
    maps = [part for number in range(len(files)) for part in ("-map", str(number))]
    (folder / "muxer").mkdir()
    place = ["-f", "dash", "-hls_playlist", "1", "-seg_duration", "2", str(folder / "muxer" / "manifest.mpd")]
    await encoder.run([*inputs, *maps, "-c", "copy", *place])
    hls = [file.read_text() for file in (folder / "muxer").glob("*.m3u8")]
    return index, encoded, (hls, [(folder / "muxer" / "manifest.mpd").read_text()])


def _ours(index):
    """Every playlist and both kinds of MPD."""
    from fourplane.streaming import dash, hls

    nodes = (("EDGE1", "http://a/t/x/"), ("EDGE2", "http://b/t/x/"))
    texts = [hls.master(index), hls.master(index, steering_uri="/s", pathways=nodes)]
    texts += [hls.media(index, track) for track in index.tracks]
    texts += [hls.key_frames(index, track) for track in index.video]
    texts += [hls.captions(index, caption) for caption in index.captions]
    return texts, [dash.manifest(index), dash.manifest(index, steering_uri="/s", pathways=nodes)]


def _count(judged, playlists, manifests):
    return {
        name: sum(len(judge(text)) for text in (playlists if name == "hls rules" else manifests))
        for name, judge in judged.items()
    }


def _peaks(index, master):
    """BANDWIDTH of our rungs divided by what the packager measured."""
    import re

    from fourplane.streaming import hls

    def rates(text):
        found = re.findall(r"STREAM-INF:BANDWIDTH=(\d+).*?RESOLUTION=\d+x(\d+)", text)
        return {int(height): int(rate) for rate, height in found}

    ours, theirs = rates(hls.master(index).replace("I-FRAME-", "")), rates(master.replace("I-FRAME-", ""))
    return {f"{height}p": round(ours[height] / theirs[height], 3) for height in sorted(ours) if height in theirs}


def _said(found):
    return ", ".join(f"{name} {value}" for name, value in found.items())
