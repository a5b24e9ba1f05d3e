"""The pages under /control/: objectives, alerts, drills, traces, the plan.

Each is a file with what stands inside `main`, put once under one navigation. Who looks after a deployment is turned away
last: that is when these are needed.
"""

from pathlib import Path

import msgspec

from fourplane.edge.html_page import html_page
from fourplane.edge.routes import Call, Priority, Reply, Route

STATIC = Path(__file__).parent / "static"


class Page(msgspec.Struct, frozen=True):
    """A page of control: its title, its own style sheets, its script."""

    title: str
    sheets: tuple[str, ...]
    script: str


WATCH = "/control/static/watch.css"
PAGES = {
    "objectives": Page("Objectives", (WATCH,), "/control/static/objectives.js"),
    "alerts": Page("Alerts", (WATCH,), "/control/static/alerts.js"),
    "drills": Page("Drills", (WATCH, "/control/static/drills.css"), "/control/static/drills.js"),
    "traces": Page("Traces", (WATCH,), "/control/static/traces.js"),
    "plan": Page("Plan", ("/console/plan.css",), "/console/plan.js"),
}
INSIDE = """<header class="topbar">
<a class="brand" href="/"><img src="/console/icon.svg" alt="" width="26" height="26"><span>Fourplane</span></a>
<nav aria-label="Control">{links}</nav>
</header>
<main>
{inside}</main>
<div id="toast" class="toast" role="alert" hidden></div>
"""


def page(name: str, folder: Path = STATIC) -> Route:
    """The route of a page whose inside is `name`.html in `folder`."""
    whole = whole_page(name, (folder / f"{name}.html").read_text(encoding="utf-8")).encode()

    async def shown(_: Call[None]) -> Reply:
        return Reply(whole)

    return Route("GET", f"/control/{name}", shown, f"The page {name}", priority=Priority.CRITICAL)


def whole_page(name: str, inside: str) -> str:
    """The page, `inside` under the navigation with this page marked."""
    known = PAGES[name]
    links = "".join(
        f'<a href="/control/{other}"{" aria-current=page" if other == name else ""}>{one.title}</a>'
        for other, one in PAGES.items()
    )
    marked = INSIDE.format(links=links, inside=inside)
    return html_page(f"{known.title} · Fourplane", marked, script=known.script, sheets=known.sheets)
