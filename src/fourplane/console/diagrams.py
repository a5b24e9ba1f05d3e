"""The case studies' diagrams as data, read from the studies themselves.

`studies/<system>.md` holds the text of a study with its diagrams in mermaid. This reads the subset the studies use (graph
direction, subgraphs, nodes, arrows with labels, classes with colours) into structs that the page lays out and fills
with live figures. Anything else in a diagram is an error here, not a surprise on the page.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources

import msgspec

from fourplane.foundation.errors import Rejected

SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")
STUDIES = (*SYSTEMS, "patterns")

_NODE = re.compile(r"^(\w+)(\[\((?P<store>.*)\)\]|\[(?P<box>.*)\])$")
_ARROW = re.compile(r"^(\w+)\s+(?P<kind>-->|-\.->|--->)\s*(\|(?P<label>[^|]*)\|)?\s*(?P<target>\w+)$")
_GROUP = re.compile(r"^subgraph\s+(\w+)\[(.*)\]$")
_STYLE = re.compile(r"^classDef\s+(\w+)\s+fill:(#[0-9A-Fa-f]{6}),stroke:(#[0-9A-Fa-f]{6})")
_CLASS = re.compile(r"^class\s+([\w,\s]+?)\s+(\w+)$")


class Box(msgspec.Struct):
    """One node as drawn."""

    id: str
    label: str
    group: str
    store: bool = False
    colour: str = ""


class Arrow(msgspec.Struct):
    source: str
    target: str
    label: str = ""
    dashed: bool = False


class Group(msgspec.Struct):
    id: str
    label: str


class Diagram(msgspec.Struct):
    """One drawing of a study, in the study's own order."""

    id: str
    title: str
    direction: str
    groups: list[Group]
    boxes: list[Box]
    arrows: list[Arrow]


class Study(msgspec.Struct):
    """One case study: its title, the sentence under it, its diagrams."""

    system: str
    title: str
    claim: str
    diagrams: list[Diagram]


@cache
def study(system: str) -> Study:
    """The study of one system (or `patterns`), parsed once."""
    text = (resources.files("fourplane.console") / "studies" / f"{system}.md").read_text("utf-8")
    return parse_study(system, text)


def parse_study(system: str, text: str) -> Study:
    """Read a study's markdown; raises Rejected with the line where a diagram says something unknown."""
    lines = text.splitlines()
    title = lines[0].removeprefix("## ").strip()
    opening = lines[1 : next((at for at, line in enumerate(lines) if line.startswith("### ")), 1)]
    claim = next((line for line in opening if line), "")
    diagrams = [parse_diagram(heading, body) for heading, body in _blocks(lines)]
    return Study(system, title, claim, diagrams)


def parse_diagram(heading: str, lines: list[str]) -> Diagram:
    """Read one mermaid block."""
    direction = lines[0].split()[1] if lines and lines[0].startswith("graph ") else "TB"
    diagram = Diagram(_slug(heading), heading, direction, [], [], [])
    boxes: dict[str, Box] = {}
    colours: dict[str, str] = {}
    group = ""
    for line in lines[1:]:
        if not line or line.startswith("%%"):
            continue
        if match := _GROUP.match(line):
            group = match[1]
            diagram.groups.append(Group(group, match[2]))
        elif line == "end":
            group = ""
        elif match := _STYLE.match(line):
            colours[match[1]] = match[2]
        elif match := _CLASS.match(line):
            for name in match[1].split(","):
                if name.strip() in boxes:
                    boxes[name.strip()].colour = colours.get(match[2], "")
        else:
            _read_item(diagram, boxes, group, line)
    diagram.boxes = list(boxes.values())
    return diagram


def _read_item(diagram: Diagram, boxes: dict[str, Box], group: str, line: str) -> None:
    if match := _NODE.match(line):
        boxes[match[1]] = Box(match[1], match["store"] or match["box"], group, store=match["store"] is not None)
        return
    if " --> " in line or " -.->" in line:
        source, _, rest = line.partition(" ")
        target = rest.rsplit(" ", 1)[-1]
        for side in (source, target):
            name = side.partition("[")[0]
            if name not in boxes and not any(known.id == name for known in diagram.groups):
                boxes[name] = Box(name, name, group)
        _read_arrow(diagram, boxes, line)
        return
    raise Rejected(f"{diagram.title}: cannot read {line!r}", code="bad_diagram")


def _read_arrow(diagram: Diagram, boxes: dict[str, Box], line: str) -> None:
    # The first mention of a node may be inside an arrow: USER[iPhone App] --> CDN_US
    inline = re.match(r"^(\w+)\[([^\]]*)\](.*)$", line)
    if inline:
        boxes[inline[1]].label = inline[2]
        line = inline[1] + inline[3]
    match = _ARROW.match(line)
    if match is None:
        raise Rejected(f"{diagram.title}: cannot read {line!r}", code="bad_diagram")
    diagram.arrows.append(Arrow(match[1], match["target"], match["label"] or "", dashed=match["kind"] == "-.->"))


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    heading, inside = "", False
    block: list[str] = []
    for line in lines:
        if line.startswith("### "):
            heading = line.removeprefix("### ").strip()
        elif line.startswith("```mermaid"):
            block, inside = [], True
        elif line.startswith("```") and inside:
            inside = False
            yield heading, block
        elif inside:
            block.append(line.strip())


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
