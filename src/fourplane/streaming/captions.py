"""Text tracks: which files beside a film are its captions, what their languages are called, and WebVTT in pieces.

A sidecar is named like its film with a language between: `film.en.vtt`, `film.de.srt`; without a language it is `film.srt`.
A text track is kept as one WebVTT file; the pieces that HLS lists are cut from it when they are asked for: a piece holds
every cue that is seen in its time, so a cue across a border stands in both (RFC 8216bis 3.1.4).
"""

import re
from pathlib import Path

import msgspec

SUFFIXES = frozenset({".vtt", ".srt"})
SIDECAR_MAX = 4 << 20
PIECE_S = 60.0
_CUE = re.compile(r"(?:(\d+):)?(\d\d):(\d\d)[.,](\d{3})\s+-->\s+(?:(\d+):)?(\d\d):(\d\d)[.,](\d{3})")
LANGUAGES = {
    "ar": ("ara", "العربية"),
    "cs": ("ces", "Čeština"),
    "da": ("dan", "Dansk"),
    "de": ("deu", "Deutsch"),
    "el": ("ell", "Ελληνικά"),
    "en": ("eng", "English"),
    "es": ("spa", "Español"),
    "fi": ("fin", "Suomi"),
    "fr": ("fra", "Français"),
    "he": ("heb", "עברית"),
    "hi": ("hin", "हिन्दी"),
    "hu": ("hun", "Magyar"),
    "it": ("ita", "Italiano"),
    "ja": ("jpn", "日本語"),
    "ko": ("kor", "한국어"),
    "nl": ("nld", "Nederlands"),
    "no": ("nor", "Norsk"),
    "pl": ("pol", "Polski"),
    "pt": ("por", "Português"),
    "ro": ("ron", "Română"),
    "ru": ("rus", "Русский"),
    "sv": ("swe", "Svenska"),
    "tr": ("tur", "Türkçe"),
    "uk": ("ukr", "Українська"),
    "zh": ("zho", "中文"),
}
_SHORT = {long: short for short, (long, _) in LANGUAGES.items()} | {"ger": "de", "fre": "fr", "dut": "nl", "chi": "zh"}


class CaptionFile(msgspec.Struct, frozen=True):
    """A finished text track."""

    language: str
    path: Path


class Cue(msgspec.Struct, frozen=True):
    """One caption: seen from `start_s` to `end_s`; `block` is its text with its own line of times."""

    start_s: float
    end_s: float
    block: str


def language_tag(language: str) -> str:
    """The shortest tag of a language (RFC 5646): `en` for `eng`; `und` where nobody knows."""
    low = language.lower()
    return _SHORT.get(low, low) or "und"


def language_name(language: str) -> str:
    """What its speakers call it; the tag itself for one that is not listed."""
    tag = language_tag(language)
    return LANGUAGES[tag][1] if tag in LANGUAGES else {"und": "Unknown"}.get(tag, tag)


def sidecars(film: Path) -> list[tuple[str, Path]]:
    """(language, file) of the text files beside a film, in the order of their names."""
    if not film.parent.is_dir():
        return []
    found = []
    for path in sorted(film.parent.iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.name.startswith(film.stem) or not path.is_file():
            continue
        between = path.name[len(film.stem) : -len(path.suffix)].strip(".").lower()
        if (not between or re.fullmatch(r"[a-z]{2,3}", between)) and path.stat().st_size <= SIDECAR_MAX:
            found.append((between, path))
    return found


def read_cues(text: str) -> list[Cue]:
    """The cues of a WebVTT file in the order in which they are written; what is no cue is left out."""
    found = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        times = _CUE.search(block)
        if times is not None and not block.lstrip().startswith(("NOTE", "STYLE", "REGION")):
            start_s, end_s = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
            if end_s > start_s:
                found.append(Cue(start_s, end_s, block.strip("\n")))
    return found


def piece(text: str, number: int) -> str:
    """The part of a WebVTT file that HLS calls segment `number`."""
    from_s, to_s = number * PIECE_S, (number + 1) * PIECE_S
    blocks = [cue.block for cue in read_cues(text) if cue.start_s < to_s and cue.end_s > from_s]
    return "\n\n".join(["WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0", *blocks]) + "\n"


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts)
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
