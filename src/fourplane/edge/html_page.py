"""The frame of a page whose script draws it: head, what stands inside, foot.

What control and the systems share in their pages stands here, in one place; how they look stands in the console's style sheet,
which comes before their own.
"""

from collections.abc import Sequence

SHEET = '<link rel="stylesheet" href="{}">'
FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/console/icon.svg" type="image/svg+xml">
{sheets}
</head>
<body{kind}>
{inside}<noscript>
<p class="card">This page needs JavaScript. The API works without: <a href="/openapi.json">/openapi.json</a></p>
</noscript>
<script type="module" src="{script}"></script>
</body>
</html>
"""


def html_page(title: str, inside: str, *, script: str, sheets: Sequence[str] = (), kind: str = "") -> str:
    """A whole page; `inside` is markup, `kind` the class of its body. Raises nothing: all of it is ours."""
    links = "\n".join(SHEET.format(sheet) for sheet in ("/console/style.css", *sheets))
    named = f' class="{kind}"' if kind else ""
    return FRAME.format(title=title, sheets=links, kind=named, inside=inside, script=script)
