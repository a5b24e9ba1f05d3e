"""The API for people: one page that lists every door, made once from the same routes as the OpenAPI description."""

import html
from collections.abc import Sequence

from fourplane.edge.routes import Route

ACCESS = {"public": "everyone", "user": "logged in", "operator": "operator"}
STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;vertical-align:top;"
    "border-bottom:1px solid color-mix(in srgb,currentColor 15%,transparent)}code{font-family:ui-monospace,monospace;"
    "overflow-wrap:anywhere}th{font-weight:600}h2{margin-top:2rem}"
)


def page(routes: Sequence[Route]) -> bytes:
    """All routes by their first path segment, as one HTML page."""
    groups: dict[str, list[Route]] = {}
    for route in routes:
        groups.setdefault(route.path.strip("/").split("/")[0] or "start page", []).append(route)
    sections = "".join(_section(name, group) for name, group in sorted(groups.items()))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The API</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="stylesheet" href="/console/style.css"><style>{STYLE}</style></head><body><main><h1>The API</h1>'
        f'<p>{len(routes)} doors. For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{sections}</main></body></html>"
    ).encode()


def _section(name: str, routes: Sequence[Route]) -> str:
    rows = "".join(
        f"<tr><td><code>{route.method}</code></td><td><code>{html.escape(route.path)}</code></td>"
        f"<td>{html.escape(route.summary)}</td><td>{ACCESS[route.access]}</td></tr>"
        for route in sorted(routes, key=lambda route: (route.path, route.method))
    )
    head = "<tr><th>Verb</th><th>Path</th><th>What</th><th>For</th></tr>"
    return f"<h2>{html.escape(name)}</h2><table><thead>{head}</thead><tbody>{rows}</tbody></table>"
