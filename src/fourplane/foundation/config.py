"""Settings: one tree of frozen structs, filled from defaults, `fourplane.toml` and FOURPLANE_* in this order.

A section of the file is a nested struct, so the schema is ordinary typed code and nobody else reads files or the
environment. `FOURPLANE_MESSAGING__MAILBOX_MAX=9` sets `messaging.mailbox_max`, `FOURPLANE_DATA=/srv/x` sets `data`.
Everything wrong is found before anything starts and said at once, a line per mistake: where it stands, what was
expected, and for an unknown key the nearest right name. Each value remembers where it came from (`check-config`).
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import msgspec
from msgspec.structs import FieldInfo, fields

from fourplane.foundation.errors import Misconfigured

PREFIX = "FOURPLANE_"
FILE_MAX = 1 << 20
ELSEWHERE = frozenset({"FOURPLANE_CONFIG", "FOURPLANE_SHARED_DATA"})  # read by the command line and by the tests

Kind = Literal["default", "file", "environment"]
S = TypeVar("S", bound=msgspec.Struct)

_CLOSE = 0.6  # how alike two names must be (1.0 is the same) for one to be offered instead of the other
_HEADER = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_\-.\"']+)\s*=")
_SECRET = re.compile(r"(^|_)(password|secret|token|key)$")
_URL_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]+@")


class Origin(msgspec.Struct, frozen=True):
    """Where the value of one setting comes from, as `check-config` shows it; secrets are masked."""

    key: str
    value: str
    kind: Kind
    place: str = ""


class Option(msgspec.Struct, frozen=True):
    """One setting as the reference describes it."""

    key: str
    type: str
    default: str


class Loaded(NamedTuple, Generic[S]):
    """The settings and, per dotted key, where each came from."""

    settings: S
    origins: dict[str, Origin]


def load(
    schema: type[S],
    file: Path | None,
    environment: Mapping[str, str],
    *,
    aliases: Mapping[str, str] | None = None,
) -> Loaded[S]:
    """Build `schema` from its defaults, `file` (None or absent: no file) and `environment`.

    `aliases` maps names of the environment without sections to keys, such as FOURPLANE_FFMPEG to streaming.ffmpeg.
    Raises Misconfigured whose message has one line per mistake.
    """
    reader = _Reader(schema)
    known = {key for key, _ in _leaves(schema)}
    found = {}
    if file is not None and file.exists():
        found = reader.read_file(file, schema)
    found |= reader.read_environment(environment, known, aliases or {})
    settings = reader.build(schema, found, "")
    if reader.mistakes:
        raise Misconfigured("\n".join(reader.mistakes), code="bad_configuration", mistakes=len(reader.mistakes))
    assert settings is not None
    return Loaded(settings, {key: _origin(settings, key, found.get(key)) for key, _ in _leaves(schema)})


def options(schema: type[msgspec.Struct]) -> list[Option]:
    """Every setting of `schema` with its type and default, in the order of the code."""
    return [
        Option(key, _type_name(field.type), "required" if field.required else _shown(key, _default(field)))
        for key, field in _leaves(schema)
    ]


def nearest(name: str, known: "Mapping[str, object] | set[str] | list[str] | tuple[str, ...]") -> str:
    """` (did you mean "x"?)` for the closest of the known names, an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_CLOSE)
    return f' (did you mean "{close[0]}"?)' if close else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The same for a dotted key: a close name in its own section, else in a section like it, else anywhere."""
    parts = key.split(".")

    def likeness(candidate: str) -> float:
        theirs = candidate.split(".")
        last = _alike(parts[-1], theirs[-1])
        path = _alike(".".join(parts[:-1]), ".".join(theirs[:-1])) if len(parts) > 1 or len(theirs) > 1 else 1.0
        return 2 * last + path if last >= _CLOSE else 0.0

    best = max(sorted(known), key=likeness, default="")
    return best if best and likeness(best) >= 2 * _CLOSE else ""


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


class _Found(NamedTuple):
    value: Any
    kind: Kind
    place: str


class _Reader:
    """Collects what was found and what was wrong."""

    def __init__(self, schema: type[msgspec.Struct]) -> None:
        self.mistakes: list[str] = []
        keys = [key for key, _ in _leaves(schema)]
        self._names = {*keys, *(key.rpartition(".")[0] for key in keys if "." in key)}

    def read_file(self, file: Path, schema: type[msgspec.Struct]) -> dict[str, _Found]:
        try:
            if file.stat().st_size > FILE_MAX:
                self.mistakes.append(f"{file.name}: larger than {FILE_MAX} bytes")
                return {}
            text = file.read_text(encoding="utf-8")
            tree = tomllib.loads(text)
        except OSError as error:
            self.mistakes.append(f"{file}: {error.strerror}")
            return {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.mistakes.append(f"{file.name}: not valid TOML: {error}")
            return {}
        lines = _lines(text)
        found: dict[str, _Found] = {}
        self._walk(tree, schema, "", lambda key: f"{file.name}:{_line_of(lines, key)}", found)
        return found

    def _walk(
        self,
        tree: dict[str, Any],
        schema: type[msgspec.Struct],
        prefix: str,
        place: Callable[[str], str],
        found: dict[str, _Found],
    ) -> None:
        """Flatten a table into dotted keys, refusing what the schema does not have."""
        known = {field.encode_name: field for field in fields(schema)}
        for name, value in tree.items():
            key = prefix + name
            field = known.get(name)
            if field is None:
                self.mistakes.append(f'{place(key)}: unknown setting "{key}"{self._instead(key)}')
            elif (section := _section(field)) is None:
                found[key] = _Found(value, "file", place(key))
            elif isinstance(value, dict):
                self._walk(value, section, key + ".", place, found)
            else:
                self.mistakes.append(f'{place(key)}: "{key}" is a section, not a value')

    def _instead(self, key: str) -> str:
        near = nearest_key(key, self._names)
        return f' (did you mean "{near}"?)' if near else ""

    def read_environment(
        self, environment: Mapping[str, str], known: set[str], aliases: Mapping[str, str]
    ) -> dict[str, _Found]:
        names = {PREFIX + key.upper().replace(".", "__"): key for key in sorted(known)} | dict(aliases)
        found = {}
        for name in sorted(environment):
            if not name.startswith(PREFIX) or name in ELSEWHERE:
                continue
            key = names.get(name)
            if key is None:
                asked = name.removeprefix(PREFIX).lower().replace("__", ".")
                near = nearest_key(asked, known)
                offered = f' (did you mean "{PREFIX}{near.upper().replace(".", "__")}"?)' if near else ""
                self.mistakes.append(f"environment: unknown setting {name}{offered}")
            elif key in known:
                found[key] = _Found(environment[name], "environment", name)
        return found

    def build(self, schema: type[S], found: Mapping[str, _Found], prefix: str) -> S | None:
        """One struct of the tree, None when a mistake inside it was noted."""
        values: dict[str, Any] = {}
        before = len(self.mistakes)
        for field in fields(schema):
            key = prefix + field.encode_name
            section = _section(field)
            if section is not None:
                values[field.name] = self.build(section, found, key + ".")
            elif key in found:
                values[field.name] = self._value(field, key, found[key])
            elif field.required:
                self.mistakes.append(f'the setting "{key}" is missing and has no default')
        if len(self.mistakes) > before:
            return None
        try:
            return schema(**values)
        except (ValueError, TypeError, Misconfigured) as error:
            self.mistakes.append(f"{f'[{prefix[:-1]}]' if prefix else 'settings'}: {error}")
            return None

    def _value(self, field: FieldInfo, key: str, found: _Found) -> Any:
        candidates = [found.value]
        if found.kind == "environment":
            candidates += _toml_value(found.value)
        problem = ""
        for candidate in candidates:
            try:
                return msgspec.convert(
                    candidate, field.type, strict=found.kind != "environment", dec_hook=_decode_other
                )
            except msgspec.ValidationError as error:
                problem = problem or str(error).replace(" - at `$", " - at `" + key)
        said = _shown(key, found.value)
        self.mistakes.append(f'{found.place}: "{key}" = {said}: {_plain(problem)}')
        return None


def _leaves(schema: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for field in fields(schema):
        key = prefix + field.encode_name
        section = _section(field)
        if section is None:
            yield key, field
        else:
            yield from _leaves(section, key + ".")


def _section(field: FieldInfo) -> type[msgspec.Struct] | None:
    """The struct behind a field that is a section of the file; None for a plain value."""
    kind = field.type
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _default(field: FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _origin(settings: msgspec.Struct, key: str, found: _Found | None) -> Origin:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, _attribute(type(value), name))
    if found is None:
        return Origin(key, _shown(key, value), "default")
    return Origin(key, _shown(key, value), found.kind, found.place)


def _attribute(schema: type[msgspec.Struct], encoded: str) -> str:
    return next(field.name for field in fields(schema) if field.encode_name == encoded)


def _shown(key: str, value: Any) -> str:
    """A value as people read it; whatever looks like a secret is not shown."""
    if _SECRET.search(key.rpartition(".")[2]) and value:
        return "***"
    if isinstance(value, Path):
        value = str(value)
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return _URL_PASSWORD.sub(r"\1:***@", text)


def _decode_other(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected `{kind.__name__}`")


def _toml_value(text: str) -> list[Any]:
    """What a variable means as TOML (`[1, 2]`, `{a = 1}`), nothing when it means nothing."""
    try:
        return [tomllib.loads(f"value = {text}")["value"]]
    except (tomllib.TOMLDecodeError, KeyError):
        return []


def _plain(problem: str) -> str:
    return problem.replace("Expected", "expected").replace("`", "")


def _type_name(kind: Any) -> str:
    if getattr(kind, "__origin__", None) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def _lines(text: str) -> dict[str, int]:
    """The line on which each dotted key or section of a TOML text first stands."""
    section = ""
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = header[1].replace('"', "")
            seen.setdefault(section, number)
        elif key := _KEY.match(line):
            name = key[1].replace('"', "").replace("'", "")
            seen.setdefault(f"{section}.{name}" if section else name, number)
    return seen


def _line_of(lines: Mapping[str, int], key: str) -> int:
    """The line of a key, or of the nearest section around it (an inline table has one line for all its keys)."""
    while key not in lines and "." in key:
        key = key.rpartition(".")[0]
    return lines.get(key, 1)
