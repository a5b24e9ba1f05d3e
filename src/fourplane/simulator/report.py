"""One run as a page: what was wrong when, what users felt, which promises broke. No server, no script, no other file."""

from html import escape

from fourplane.simulator.experiments import Result

WIDTH, ROW, CHART = 900, 22, 160
STYLE = """body{font:15px system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222;background:#fff}
code{background:#8882;padding:.1em .3em}svg{width:100%;height:auto}text{font:12px system-ui;fill:currentColor}
.ok{color:#0a0}.bad{color:#c00}td,th{text-align:left;padding:.15rem 1rem .15rem 0}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}}"""


def page(result: Result, command: str = "") -> str:
    """The whole page as text."""
    title = escape(str(result.journal["experiment"]["title"]))
    verdict = '<b class="ok">kept every promise</b>' if result.passed else '<b class="bad">failed</b>'
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{STYLE}</style><h1>{title}</h1><p>{escape(str(result.journal['experiment']['description']))}</p>",
        (
            f"<p>Seed {result.seed}: {verdict}. {result.virtual_s:.1f} virtual seconds, {result.messages} messages, "
            f"digest <code>{result.digest}</code>.</p>"
        ),
    ]
    if command:
        parts.append(f"<p>Repeat it: <code>{escape(command)}</code></p>")
    if result.violations:
        parts.append("<h2>Broken</h2><ul>" + "".join(f"<li>{escape(text)}" for text in result.violations) + "</ul>")
    parts.append(f"<h2>What users felt</h2>{_picture(result)}{_table(result)}")
    return "".join(parts) + "</html>\n"


def _picture(result: Result) -> str:
    """Served and failed actions per second as bars, faults as bands below."""
    end = max([*result.seconds, *(int(span.ended_s) for span in result.spans), 1]) + 1
    scale = WIDTH / end
    top = max((served + failed for served, failed, _ in result.seconds.values()), default=1)
    height = CHART + 24 + ROW * len(result.spans)
    drawn = [f"<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='served and failed per second, and the faults'>"]
    for at, (served, failed, _) in result.seconds.items():
        tall, low = CHART * served / top, CHART * failed / top
        x, width = at * scale, max(1.0, scale - 1)
        drawn.append(f"<rect x={x:.1f} y={CHART - tall:.1f} width={width:.1f} height={tall:.1f} fill='#0a0'/>")
        drawn.append(f"<rect x={x:.1f} y={CHART - tall - low:.1f} width={width:.1f} height={low:.1f} fill='#c00'/>")
    drawn += [
        f"<text x={second * scale:.1f} y={CHART + 16}>{second} s</text>" for second in range(0, end, max(1, end // 10))
    ]
    for row, span in enumerate(result.spans):
        y = CHART + 24 + row * ROW
        x, width = span.began_s * scale, max(2.0, (span.ended_s - span.began_s) * scale)
        drawn.append(f"<rect x={x:.1f} y={y} width={width:.1f} height={ROW - 4} fill='#f80'/>")
        drawn.append(f"<text x={x + width + 6:.1f} y={y + 14}>{escape(span.name)}</text>")
    return "".join(drawn) + "</svg>"


def _table(result: Result) -> str:
    felt = result.felt
    rows = [("served", felt["served"]), ("failed", felt["failed"]), *felt["errors"].items(), *felt["facts"].items()]
    rows += [(f"p99 of {name}, ms", took) for name, took in felt["p99_ms"].items()]
    return "<table>" + "".join(f"<tr><td>{escape(str(name))}<td>{value}" for name, value in rows) + "</table>"
