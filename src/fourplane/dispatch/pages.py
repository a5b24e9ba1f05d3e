"""The pages under /dispatch/: the live map where riders ask, the driver's, operations.

Each is a file of `static/` over what all have below, in the frame all pages share; read once.
"""

from pathlib import Path

from fourplane.edge.html_page import html_page
from fourplane.edge.routes import Call, Door, Handler, Reply, Route, StaticFolder

STATIC = Path(__file__).parent / "static"
PAGES = {  # path: body of the page, its script, its title
    "/dispatch/": ("map", "the live city"),
    "/dispatch/ride": ("map", "the live city"),
    "/dispatch/drive": ("drive", "drive"),
    "/dispatch/operations": ("operations", "operations"),
}
SHEET = "/dispatch/static/dispatch.css"
BELOW = """<section id="panel" class="panel glass" aria-live="polite"></section>
<footer class="attribution">
<span id="attribution"></span><span id="smooth"></span><span id="connection" role="status"></span>
</footer>
"""


def page_doors() -> list[Door]:
    """One route per page and the folder behind them."""
    doors: list[Door] = [
        Route("GET", path, _page(name, title), f"The page of {title}") for path, (name, title) in PAGES.items()
    ]
    return [*doors, StaticFolder("/dispatch/static/", STATIC)]


def _page(name: str, title: str) -> Handler:
    body = (STATIC / f"{name}.html").read_text(encoding="utf-8")
    script = f"/dispatch/static/{name}.js"
    page = html_page(f"Dispatch: {title}", body + BELOW, script=script, sheets=[SHEET], kind=f"city {name}").encode()

    async def handler(_call: Call[None]) -> Reply:
        return Reply(page)

    return handler
