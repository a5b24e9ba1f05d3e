"""HTML from functions: every text is escaped unless it is markup already.

`el("p", name, class_="card")` escapes `name`, because only `Markup` passes through; so a product called `<script>` is
harmless everywhere without anybody thinking of it. Attributes: a trailing underscore avoids Python's words, `_` becomes
`-`, None and False leave the attribute out, True writes its bare name. Cost: about 1 us an element.
"""

from collections.abc import Iterable
from html import escape
from typing import Union

VOID = frozenset({"img", "input", "meta", "link", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Union[str, int, None, Iterable["Child"]]  # noqa: UP007 - a recursive alias needs a name at run time
Attribute = str | int | bool | None


def el(tag: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element with its children."""
    opening = f"<{tag}{_attributes(attributes)}>" if attributes else f"<{tag}>"
    if tag in VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{tag}>")


def join(children: Child) -> Markup:
    """Children one after the other, escaped where they are plain text."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(children))
    if isinstance(children, int):
        return Markup(children)
    return Markup("".join([join(child) for child in children]))


def page(title: str, *, head: Child = (), body: Child = (), lang: str = "en") -> bytes:
    """A whole document."""
    document = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", title),
            head,
        ),
        body,
        lang=lang,
    )
    return f"<!doctype html>{document}".encode()


def _attributes(attributes: dict[str, Attribute]) -> str:
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    return "".join(parts)
