"""The reference pages written from the code itself: settings, metrics, errors.

Settings come from the schema and the comments behind its fields; metrics and error codes from reading the source, so
that a page is complete without starting anything. The output depends on the source alone, so a test can refuse a
page that is older than the code.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import fields

from fourplane.foundation import config, errors

KINDS = ("counter", "gauge", "histogram")
WRITTEN = "<!-- Written by `./fourplane docs` from the code; change the code instead. -->\n"
_FIELD = re.compile(r"\s+(\w+):.*?#\s+(?!noqa|type:)(.*)$")


def settings_page(schema: type[msgspec.Struct]) -> str:
    """Every setting by section: name, type, default, meaning."""
    notes = dict(_notes(schema, ""))
    lines = [
        WRITTEN,
        "# Settings\n",
        "In `fourplane.toml` each section below is a table; `FOURPLANE_SECTION__NAME` in the environment wins over the",
        "file, and the file over the default. `./fourplane check-config` shows every value and where it comes from.\n",
    ]
    section = None
    for option in config.options(schema):
        head, _, name = option.key.rpartition(".")
        if head != section:
            section = head
            lines += [
                "",
                f"## [{head}]\n" if head else "## at the top\n",
                "| name | type | default | meaning |",
                "|---|---|---|---|",
            ]
        cells = (f"`{name}`", f"`{option.type}`", f"`{option.default}`", notes.get(option.key, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def metrics_page(source: Path) -> str:
    """Every metric of the code: name, kind, labels, help, where it is recorded."""
    found = sorted({(metric.name, metric) for path, tree in _trees(source) for metric in _metrics(path, tree)})
    lines = [
        WRITTEN,
        "# Metrics\n",
        "Served as Prometheus text at `/metrics`. Histograms have buckets from 1 us, right within 12.5 %.\n",
        "| metric | kind | labels | what it counts | recorded in |",
        "|---|---|---|---|---|",
    ]
    for name, metric in found:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.text} | `src/fourplane/{metric.path}` |")
    return "\n".join(lines) + "\n"


def errors_page(source: Path) -> str:
    """The tree of errors and every stable code with its HTTP status."""
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.FourplaneError)
    }
    places: dict[tuple[str, str], set[str]] = {}
    for path, tree in _trees(source):
        for kind, code in _codes(tree, set(kinds)):
            places.setdefault((code, kind), set()).add(path.partition("/")[0].removesuffix(".py"))
    drawing = "\n".join(line for line in (errors.__doc__ or "").splitlines() if line.startswith("    "))
    lines = [
        WRITTEN,
        "# Errors\n",
        'HTTP answers carry `{"error": {"code", "message", "fields"}}`. A `code` never changes; a message may.\n',
        "```",
        inspect.cleandoc(drawing),
        "```\n",
        "| code | error | HTTP | raised by |",
        "|---|---|---|---|",
    ]
    general = [(kind.code, name, kind.http_status, "any") for name, kind in kinds.items()]
    special = [
        (code, kind, kinds[kind].http_status, ", ".join(f"`{p}`" for p in sorted(found)))
        for (code, kind), found in places.items()
    ]
    lines += [f"| `{code}` | {kind} | {status} | {where} |" for code, kind, status, where in sorted(general + special)]
    return "\n".join(lines) + "\n"


class _Metric(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    path: str


def _trees(source: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(source.rglob("*.py")):
        yield path.relative_to(source).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _metrics(path: str, tree: ast.Module) -> Iterator[_Metric]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in KINDS:
            continue
        name = _text(node.args[0]) if node.args else ""
        if name.startswith("fourplane_"):
            labels = tuple(word.arg for word in node.keywords if word.arg and word.arg not in {"read", "scale"})
            text = _text(node.args[1]) if len(node.args) > 1 else ""
            yield _Metric(name, node.func.attr, labels, text.replace("|", "\\|"), path)


def _codes(tree: ast.Module, kinds: set[str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for word in node.keywords:
            if kind in kinds and word.arg == "code" and (code := _text(word.value)):
                yield kind, code


def _text(node: ast.expr) -> str:
    """A literal, or an f-string with its parts named; anything else is nothing."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return ""


def _notes(schema: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str]]:
    """The comment behind each field of a struct and of the structs inside it."""
    comments = {}
    for line in inspect.getsource(schema).splitlines():
        if match := _FIELD.match(line):
            comments[match[1]] = match[2]
    for field in fields(schema):
        yield prefix + field.encode_name, comments.get(field.name, "")
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _notes(field.type, f"{prefix}{field.encode_name}.")
