"""The pages under /control/: objectives, alerts, drills, traces, the plan.

Each is a file with what stands inside `main`, put once between one head with one navigation and one foot: what they share stands
here, in one place. Who looks after a deployment is turned away last: that is when these are needed.
"""

from pathlib import Path

import msgspec

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
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="color-scheme" content="light dark">
<title>{title} · Fourplane</title>
<link rel="icon" href="/console/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/console/style.css">
{sheets}
</head>
<body>
<header class="topbar">
<a class="brand" href="/"><img src="/console/icon.svg" alt="" width="26" height="26"><span>Fourplane</span></a>
<nav aria-label="Control">{links}</nav>
</header>
<main>
"""
FOOT = """</main>
<noscript>
<p class="card">This page needs JavaScript. The API works without: <a href="/openapi.json">/openapi.json</a></p>
</noscript>
<div id="toast" class="toast" role="alert" hidden></div>
<script type="module" src="{script}"></script>
</body>
</html>
"""


def page(name: str, folder: Path = STATIC) -> Route:
    """The route of a page whose inside is `name`.html in `folder`."""
    whole = whole_page(name, (folder / f"{name}.html").read_text(encoding="utf-8")).encode()

    async def shown(_: Call[None]) -> Reply:
        return Reply(whole)

    return Route("GET", f"/control/{name}", shown, f"The page {name}", priority=Priority.CRITICAL)


def whole_page(name: str, inside: str) -> str:
    """Head, navigation with this page marked, `inside`, foot."""
    known = PAGES[name]
    sheets = "\n".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in known.sheets)
    links = "".join(
        f'<a href="/control/{other}"{" aria-current=page" if other == name else ""}>{one.title}</a>'
        for other, one in PAGES.items()
    )
    return HEAD.format(title=known.title, sheets=sheets, links=links) + inside + FOOT.format(script=known.script)
