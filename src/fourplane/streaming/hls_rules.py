"""Checks an HLS playlist against what RFC 8216bis says it MUST be; each finding names the rule and the line.

No validator for HLS exists that may be shipped, so this one is proved on playlists broken on purpose (see its tests). It
reads text only; whether segments are what a playlist says is the business of `packaging`.
"""

import re

MEDIA_ONLY = (
    "#EXTINF",
    "#EXT-X-TARGETDURATION",
    "#EXT-X-MEDIA-SEQUENCE",
    "#EXT-X-ENDLIST",
    "#EXT-X-PLAYLIST-TYPE",
    "#EXT-X-I-FRAMES-ONLY",
    "#EXT-X-MAP",
    "#EXT-X-BYTERANGE",
)
MASTER_ONLY = ("#EXT-X-STREAM-INF", "#EXT-X-MEDIA:", "#EXT-X-I-FRAME-STREAM-INF", "#EXT-X-CONTENT-STEERING")
ONCE = ("#EXT-X-VERSION", "#EXT-X-TARGETDURATION", "#EXT-X-MEDIA-SEQUENCE", "#EXT-X-ENDLIST", "#EXT-X-CONTENT-STEERING")
_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"\r\n]*"|[^",\s]+)(?:,|$)')
_QUOTED = frozenset(
    {"CODECS", "AUDIO", "SUBTITLES", "URI", "GROUP-ID", "NAME", "LANGUAGE", "CHANNELS", "PATHWAY-ID", "SERVER-URI"}
)
_INTEGERS = frozenset({"BANDWIDTH", "AVERAGE-BANDWIDTH"})


def findings(text: str) -> list[str]:
    """What is wrong with a playlist, empty when nothing is."""
    found: list[str] = []
    if text.startswith("\ufeff"):
        found.append("4.1: a byte order mark stands at the beginning")
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0] != "#EXTM3U":
        found.append("4.4.1.1: the first line is not #EXTM3U")
    if re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", text):
        found.append("4.1: a control character stands in the playlist")
    found += [f"4.4: {tag} stands more than once" for tag in ONCE if _count(lines, tag) > 1]
    master = any(line.startswith(MASTER_ONLY) for line in lines)
    if master and any(line.startswith(MEDIA_ONLY) for line in lines):
        found.append("4.1: tags of media and multivariant playlists are mixed")
    if not master and not any(line.startswith("#EXTINF") for line in lines):
        found.append("4.1: neither variants nor segments")
    return found + (_master(lines) if master else _media(lines))


def _count(lines: list[str], tag: str) -> int:
    return sum(1 for line in lines if line == tag or line.startswith(f"{tag}:"))


def _value(lines: list[str], tag: str) -> str | None:
    return next((line.partition(":")[2] for line in lines if line.startswith(f"{tag}:")), None)


def _version(lines: list[str]) -> int:
    stated = _value(lines, "#EXT-X-VERSION")
    return int(stated) if stated is not None and stated.isdigit() else 1


def _media(lines: list[str]) -> list[str]:
    found: list[str] = []
    target = _value(lines, "#EXT-X-TARGETDURATION")
    if target is None or not target.isdigit():
        found.append("4.4.3.1: EXT-X-TARGETDURATION is missing or no integer")
    version, key_frames = _version(lines), "#EXT-X-I-FRAMES-ONLY" in lines
    if _value(lines, "#EXT-X-MAP") is not None and version < (5 if key_frames else 6):
        found.append("8: EXT-X-MAP needs version 6 (5 with I-frames only)")
    if _value(lines, "#EXT-X-BYTERANGE") is not None and version < 4:
        found.append("8: EXT-X-BYTERANGE needs version 4")
    if _value(lines, "#EXT-X-PLAYLIST-TYPE") == "VOD" and "#EXT-X-ENDLIST" not in lines:
        found.append("6.2.1: a VOD playlist has no EXT-X-ENDLIST")
    return found + _segments(lines, int(target) if target is not None and target.isdigit() else None, version)


def _segments(lines: list[str], target: int | None, version: int) -> list[str]:
    found: list[str] = []
    pending: str | None = None
    for number, line in enumerate(lines, 1):
        if line.startswith("#EXTINF:"):
            pending = line.partition(":")[2].partition(",")[0]
            found += _duration(line, number, pending, target, version=version)
        elif line.startswith("#EXT-X-BYTERANGE:") and not re.fullmatch(r"\d+(@\d+)?", line.partition(":")[2]):
            found.append(f"4.4.4.2 line {number}: the byte range is malformed")
        elif line.startswith("#EXT-X-MAP:"):
            found += _attributes(line, number, needed=("URI",))[1]
        elif line and not line.startswith("#"):
            if pending is None:
                found.append(f"4.4.4.1 line {number}: a segment without EXTINF")
            pending = None
    if pending is not None:
        found.append("4.4.4.1: an EXTINF without a segment")
    return found


def _duration(line: str, number: int, text: str, target: int | None, *, version: int) -> list[str]:
    found: list[str] = []
    if "," not in line:
        found.append(f"4.4.4.1 line {number}: EXTINF has no comma")
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        return [*found, f"4.4.4.1 line {number}: EXTINF is no duration"]
    if "." in text and version < 3:
        found.append(f"8 line {number}: a fractional EXTINF needs version 3")
    if target is not None and int(float(text) + 0.5) > target:
        found.append(f"4.4.3.1 line {number}: a segment of {text} s is longer than the target of {target} s")
    return found


def _master(lines: list[str]) -> list[str]:
    found: list[str] = []
    groups: set[str] = set()
    used: set[str] = set()
    names: set[tuple[str, str, str]] = set()
    defaults: set[tuple[str, str]] = set()
    for number, line in enumerate(lines, 1):
        if line.startswith("#EXT-X-MEDIA:"):
            told, wrong = _attributes(line, number, needed=("TYPE", "GROUP-ID", "NAME"))
            found += wrong
            kind, group = told.get("TYPE", ""), told.get("GROUP-ID", "")
            groups.add(group)
            if (kind, group, told.get("NAME", "")) in names:
                found.append(f"4.4.6.1.1 line {number}: two renditions of a group have one name")
            names.add((kind, group, told.get("NAME", "")))
            if told.get("DEFAULT") == "YES":
                if (kind, group) in defaults:
                    found.append(f"4.4.6.1.1 line {number}: a group has two defaults")
                defaults.add((kind, group))
                if told.get("AUTOSELECT", "YES") != "YES":
                    found.append(f"4.4.6.1 line {number}: a default rendition must be selected automatically")
        elif line.startswith("#EXT-X-STREAM-INF:"):
            told, wrong = _attributes(line, number, needed=("BANDWIDTH",))
            found += wrong + _rates(told, number)
            used.update(told[name] for name in ("AUDIO", "SUBTITLES") if name in told)
            if number >= len(lines) or not lines[number] or lines[number].startswith("#"):
                found.append(f"4.4.6.2 line {number}: no URI follows the variant")
        elif line.startswith("#EXT-X-I-FRAME-STREAM-INF:"):
            told, wrong = _attributes(line, number, needed=("BANDWIDTH", "URI"))
            found += wrong + _rates(told, number)
        elif line.startswith("#EXT-X-CONTENT-STEERING:"):
            found += _attributes(line, number, needed=("SERVER-URI",))[1]
    found += [f"4.4.6.2: the group {name} does not exist" for name in sorted(used - groups)]
    return found


def _rates(told: dict[str, str], number: int) -> list[str]:
    found: list[str] = []
    mean, peak = told.get("AVERAGE-BANDWIDTH", ""), told.get("BANDWIDTH", "")
    if mean.isdigit() and peak.isdigit() and int(mean) > int(peak):
        found.append(f"4.4.6.2 line {number}: the average is above the peak")
    if "RESOLUTION" in told and not re.fullmatch(r"\d+x\d+", told["RESOLUTION"]):
        found.append(f"4.2 line {number}: the resolution is malformed")
    return found


def _attributes(line: str, number: int, *, needed: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    text = line.partition(":")[2]
    told: dict[str, str] = {}
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _ATTRIBUTE.match(text, at)
        if match is None:
            return told, [*found, f"4.2 line {number}: the attribute list is malformed"]
        name, value = match[1], match[2]
        if name in told:
            found.append(f"4.2 line {number}: {name} stands twice")
        if name in _QUOTED and not value.startswith('"'):
            found.append(f"4.2 line {number}: {name} is not quoted")
        if name in _INTEGERS and not value.isdigit():
            found.append(f"4.2 line {number}: {name} is no integer")
        told[name] = value.strip('"')
        at = match.end()
    found += [f"4.4 line {number}: {name} is missing" for name in needed if name not in told]
    return told, found
