"""Films of a folder, and what their names and folders say: series, season, episode, year, or just a title.

    Severance.S01E02.Half Loop.mkv        Severance / Season 1 / 02 Half Loop.mkv        Severance 1x02.mp4
    Metropolis (1927).mp4                 holiday_in_porto.mp4

A name is only a proposal, people describe titles in the studio; so whatever looks like nothing known is the title itself.
"""

import re
from pathlib import Path

import msgspec

from fourplane.foundation.errors import Rejected
from fourplane.streaming.about import WORDS_MAX, YEARS, About
from fourplane.streaming.titles import NAME_MAX

SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()
)
FILES_MAX = 2_000
DEPTH_MAX = 6
_EPISODE = re.compile(
    r"^(.*?)[ ._-]*\b(?:s(\d{1,3})[ ._-]*e(\d{1,4})|(\d{1,2})x(\d{2,3}))\b[ ._-]*(.*)$", re.IGNORECASE
)
_SEASON = re.compile(r"^(?:season|series|staffel|saison|temporada|s)[ ._-]*(\d{1,3})$", re.IGNORECASE)
_NUMBERED = re.compile(r"^(?:e(?:pisode)?[ ._-]*)?(\d{1,4})(?:[ ._-]+(.*))?$", re.IGNORECASE)
_YEAR = re.compile(r"^(.+?)[ ._-]*[(\[]((?:18|19|20|21)\d\d)[)\]](.*)$")


class Named(msgspec.Struct, frozen=True):
    """What a file's name says of its film."""

    name: str
    about: About = About()


def films(folder: Path) -> list[Path]:
    """The films below a folder in the order people would read them; raises Rejected when there is none, or far too many."""
    found = [path for path in _walk(folder, 0) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise Rejected(f"no film lies in {folder.name}", code="no_films", suffixes=" ".join(sorted(SUFFIXES)))
    if len(found) > FILES_MAX:
        raise Rejected(f"{folder.name} holds more than {FILES_MAX} films", code="too_many_films")
    return sorted(found, key=lambda path: _natural(str(path.relative_to(folder))))


def named(file: Path, root: Path | None = None) -> Named:
    """Title and description from a file's name, and from its folders below `root`."""
    folders = [] if root is None else [_words(part) for part in file.parent.relative_to(root.parent).parts]
    stem = file.stem
    if episode := _EPISODE.match(stem):
        series = _words(episode[1]) or _series(folders)
        season, number = int(episode[2] or episode[4]), int(episode[3] or episode[5])
        return _episode(series, season, number, _words(episode[6]))
    season_folder = _SEASON.match(folders[-1]) if folders else None
    if season_folder is not None and (numbered := _NUMBERED.match(stem)):
        return _episode(_series(folders), int(season_folder[1]), int(numbered[1]), _words(numbered[2] or ""))
    if (dated := _YEAR.match(stem)) and YEARS[0] <= int(dated[2]) <= YEARS[1]:
        return Named(_words(dated[1])[:NAME_MAX] or "Film", About(year=int(dated[2])))
    return Named(_words(stem)[:NAME_MAX] or "Film")


def _walk(folder: Path, depth: int) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            found += _walk(path, depth + 1) if depth < DEPTH_MAX else []
        elif path.is_file():
            found.append(path)
        if len(found) > 20 * FILES_MAX:
            break
    return found


def _series(folders: list[str]) -> str:
    return next((name for name in reversed(folders) if not _SEASON.match(name)), "")


def _episode(series: str, season: int, number: int, rest: str) -> Named:
    place = f"{season}x{number:02d}"
    name = rest or (f"{series} {place}" if series else place)
    if not series:
        return Named(name[:NAME_MAX])
    return Named(name[:NAME_MAX], About(series=series[:WORDS_MAX], season=season, episode=number))


def _words(text: str) -> str:
    """`holiday_in_porto` as Holiday In Porto; what has capitals of its own keeps them."""
    spaced = text.replace("_", " ")
    if " " not in spaced.strip():
        spaced = spaced.replace(".", " ")
    words = spaced.strip(" .-").split()
    return " ".join(word.capitalize() if word.isalpha() and word.islower() else word for word in words)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.casefold()) for part in re.split(r"(\d+)", text) if part]
