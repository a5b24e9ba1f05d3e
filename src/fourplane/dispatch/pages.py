"""The pages under /dispatch/: the live map, the rider's, the driver's and operations. Files of `static/`, served as they are."""

from pathlib import Path

from fourplane.edge.routes import Call, Door, Reply, Route, StaticFolder

STATIC = Path(__file__).parent / "static"
PAGES = {
    "/dispatch/": "map.html",
    "/dispatch/ride": "map.html",
    "/dispatch/drive": "drive.html",
    "/dispatch/operations": "operations.html",
}


def page_doors() -> list[Door]:
    """One route per page and the folder behind them."""
    doors: list[Door] = [Route("GET", path, _page(name), f"The page {name}") for path, name in PAGES.items()]
    return [*doors, StaticFolder("/dispatch/static/", STATIC)]


def _page(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a handler
    body = (STATIC / name).read_bytes()

    async def handler(_call: Call[None]) -> Reply:
        return Reply(body)

    return handler
