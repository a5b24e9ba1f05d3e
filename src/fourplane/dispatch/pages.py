"""The pages under /dispatch/: the live map where riders ask, the driver's, operations.

Each is a file of `static/` between one head and one foot, read once: what they share stands here, in one place.
"""

from pathlib import Path

from fourplane.edge.routes import Call, Door, Handler, Reply, Route, StaticFolder

STATIC = Path(__file__).parent / "static"
PAGES = {  # path: body of the page, its script, its title
    "/dispatch/": ("map", "the live city"),
    "/dispatch/ride": ("map", "the live city"),
    "/dispatch/drive": ("drive", "drive"),
    "/dispatch/operations": ("operations", "operations"),
}
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="color-scheme" content="light dark">
<title>Dispatch: {title}</title>
<link rel="icon" href="/console/icon.svg">
<link rel="stylesheet" href="/console/style.css">
<link rel="stylesheet" href="/dispatch/static/dispatch.css">
</head>
<body class="city {name}">
"""
FOOT = """<section id="panel" class="panel glass" aria-live="polite"></section>
<footer class="attribution">
<span id="attribution"></span><span id="smooth"></span><span id="connection" role="status"></span>
</footer>
<noscript>
<p class="panel glass">This page needs JavaScript. The API works without: <a href="/openapi.json">/openapi.json</a></p>
</noscript>
<script type="module" src="/dispatch/static/{name}.js"></script>
</body>
</html>
"""


def page_doors() -> list[Door]:
    """One route per page and the folder behind them."""
    doors: list[Door] = [
        Route("GET", path, _page(name, title), f"The page of {title}") for path, (name, title) in PAGES.items()
    ]
    return [*doors, StaticFolder("/dispatch/static/", STATIC)]


def _page(name: str, title: str) -> Handler:
    body = (STATIC / f"{name}.html").read_text(encoding="utf-8")
    page = (HEAD.format(name=name, title=title) + body + FOOT.format(name=name)).encode()

    async def handler(_call: Call[None]) -> Reply:
        return Reply(page)

    return handler
