"""One run as a page: what was wrong when, what users felt, which promises broke. No server, no script, no other file."""

from html import escape
from typing import Any

from fourplane.simulator.experiments import Result
from fourplane.simulator.stage import Span

WIDTH, LEFT, RIGHT = 960, 52, 12
BARS, WAITS, ROW = 150, 70, 24
VIOLATIONS_SHOWN = 50
STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--fg:#1d2226;--muted:#6a737b;--line:#e2e5e8;--ok:#1f8f4e;--bad:#cc2b2b;
--wait:#0066cc;--fault:#ff8800;--on:#fff}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--fg:#e4e7ea;--muted:#98a1a9;--line:#30363c;--ok:#4cc27d;
--bad:#ff6b61;--wait:#5aa9ff;--fault:#ffa640;--on:#10130f}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:2rem 1rem 4rem;
color:var(--fg);background:var(--bg)}h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}h2{font-size:1rem;margin:2rem 0 .6rem}
p{margin:.4rem 0}.muted{color:var(--muted)}.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem}.verdict{display:inline-block;padding:.1rem .7rem;border-radius:99px;font-weight:600;
color:var(--on);background:var(--ok)}
.verdict.bad{background:var(--bad)}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));
gap:.7rem;margin:1rem 0}.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.6rem .9rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{color:var(--muted);font-size:.85rem}
code,pre{font:13px/1.5 ui-monospace,monospace}pre{overflow-x:auto;margin:0}ul{margin:0;padding-left:1.2rem}
.chart{overflow-x:auto}
svg{width:100%;min-width:40rem;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--muted)}svg .name{fill:var(--fg)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{text-align:left;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid var(--line);font-weight:400}th{color:var(--muted);font-size:.85rem}td.n{text-align:right}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}.key{display:inline-block;width:.7em;height:.7em;
border-radius:2px;margin:0 .35em 0 .9em}"""


def page(result: Result, command: str = "") -> str:
    """The whole page as text."""
    told = result.journal["experiment"]
    title = escape(str(told["title"]))
    verdict = "kept every promise" if result.passed else "broke a promise" if result.violations else "did not recover"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{title}</title><style>{STYLE}</style>",
        f"<span class='verdict{'' if result.passed else ' bad'}'>{verdict}</span><h1>{title}</h1>",
        f"<p class=muted>{escape(str(told['description']))}</p>{_tiles(result)}",
    ]
    if result.violations:
        shown = "".join(f"<li>{escape(text)}" for text in result.violations[:VIOLATIONS_SHOWN])
        rest = len(result.violations) - VIOLATIONS_SHOWN
        more = f"<p class=muted>and {rest} more</p>" if rest > 0 else ""
        parts.append(f"<h2>Broken</h2><div class=card><ul>{shown}</ul>{more}</div>")
    if command:
        parts.append(f"<h2>Repeat it</h2><div class=card><pre>{escape(command)}</pre></div>")
    parts.append(
        f"<h2>What users felt, second by second</h2><div class=card>{legend()}<div class=chart>{picture(result)}</div></div>"
    )
    parts.append(f"<div class=two>{actions(result)}{steady(result)}</div>{_ended(result)}")
    digest = f"Digest <code>{result.digest}</code>: the same seed gives the same, to the message."
    parts.append(f"<p class=muted style='margin-top:2rem'>{digest}</p>")
    return "".join(parts) + "</html>\n"


def _tiles(result: Result) -> str:
    felt = result.felt
    tried = felt["served"] + felt["failed"]
    tiles = [
        (str(result.seed), "seed"),
        (f"{result.virtual_s:,.1f} s", "virtual time"),
        (f"{tried:,}", "actions of users"),
        (f"{felt['served'] / tried:.1%}" if tried else "none", "served"),
        (f"{result.messages:,}", "messages"),
        (str(len(result.spans)), "faults"),
    ]
    tiles += [(f"{count:,}", str(fact)) for fact, count in felt["facts"].items()]
    shown = (f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return f"<div class=tiles>{''.join(shown)}</div>"


def legend() -> str:
    keys = (("--ok", "served"), ("--bad", "failed"), ("--wait", "slowest answer"), ("--fault", "fault"))
    return "<p>" + "".join(f"<i class=key style='background:var({c})'></i>{escape(n)}" for c, n in keys) + "</p>"


def picture(result: Result) -> str:
    """Served and failed actions per second, the slowest answer below, and the faults as bands behind and rows beneath."""
    end = max([*result.seconds, *(int(span.ended_s) for span in result.spans), 1]) + 1
    scale = (WIDTH - LEFT - RIGHT) / end
    foot = BARS + 14 + WAITS
    height = foot + 30 + ROW * len(result.spans)
    drawn = [f"<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='served and failed per second, and the faults'>"]
    for span in result.spans:
        x, width = LEFT + span.began_s * scale, max(2.0, (span.ended_s - span.began_s) * scale)
        drawn.append(f"<rect x={x:.1f} y=8 width={width:.1f} height={foot - 8} fill='var(--fault)' opacity=.12></rect>")
    drawn += _bars(result, scale) + _waits(result, scale)
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3_600) if step * 12 >= end or step == 3_600)
    drawn += [
        f"<text x={LEFT + second * scale:.1f} y={foot + 16} text-anchor=middle>{second} s</text>"
        for second in range(0, end, step)
    ]
    drawn += [_row(span, scale, foot + 26 + number * ROW) for number, span in enumerate(result.spans)]
    return "".join(drawn) + "</svg>"


def _bars(result: Result, scale: float) -> list[str]:
    top = max((served + failed for served, failed, _ in result.seconds.values()), default=1) or 1
    drawn = [_line(BARS), f"<text x={LEFT - 8} y=18 text-anchor=end>{top}/s</text>"]
    for at, (served, failed, _) in result.seconds.items():
        tall, low = (BARS - 10) * served / top, (BARS - 10) * failed / top
        x, width = LEFT + at * scale, max(1.0, scale - 1)
        said = f"<title>second {at}: {served} served, {failed} failed</title>"
        drawn.append(
            f"<rect x={x:.1f} y={BARS - tall:.1f} width={width:.1f} height={tall:.1f} fill='var(--ok)'>{said}</rect>"
        )
        if failed:
            drawn.append(
                f"<rect x={x:.1f} y={BARS - tall - low:.1f} width={width:.1f} height={low:.1f} fill='var(--bad)'>{said}</rect>"
            )
    return drawn


def _waits(result: Result, scale: float) -> list[str]:
    """A line through the seconds in which somebody was answered; it breaks where nobody was."""
    slowest = {at: waited for at, (_, _, waited) in result.seconds.items() if waited > 0}
    top = max(slowest.values(), default=1.0)
    foot = BARS + 14 + WAITS
    drawn, before = list[str](), -2
    for at, waited in slowest.items():
        place = f"{LEFT + (at + 0.5) * scale:.1f} {foot - (WAITS - 6) * waited / top:.1f}"
        drawn.append(f"L{place}" if at == before + 1 else f"M{place}h.1")
        before = at
    label = f"{top:.1f} s" if top >= 1 else f"{top * 1e3:.0f} ms"
    return [
        _line(foot),
        f"<text x={LEFT - 8} y={BARS + 26} text-anchor=end>{label}</text>",
        f"<path d='{''.join(drawn)}' fill=none stroke='var(--wait)' stroke-width=2 stroke-linecap=round></path>",
    ]


def _line(y: float) -> str:
    return f"<line x1={LEFT} y1={y} x2={WIDTH - RIGHT} y2={y} stroke='var(--line)'></line>"


def _row(span: Span, scale: float, y: float) -> str:
    x, width = LEFT + span.began_s * scale, max(2.0, (span.ended_s - span.began_s) * scale)
    text = f"{span.name}, {span.began_s:.1f} to {span.ended_s:.1f} s"
    on_left = x + width + 7 * len(text) > WIDTH
    place = f"x={x - 6:.1f} text-anchor=end" if on_left else f"x={x + width + 6:.1f}"
    bar = f"<rect x={x:.1f} y={y} width={width:.1f} height={ROW - 8} rx=3 fill='var(--fault)'></rect>"
    return f"{bar}<text class=name {place} y={y + 12}>{escape(text)}</text>"


def actions(result: Result) -> str:
    felt = result.felt
    rows = "".join(f"<tr><td>{escape(str(name))}<td class=n>{_took(took)}" for name, took in felt["p99_ms"].items())
    errors = "".join(f"<tr><td>{escape(str(code))}<td class=n>{count:,}" for code, count in felt["errors"].items())
    failed = f"<h2>Errors</h2><table>{errors}</table>" if errors else "<h2>Errors</h2><p class=muted>none</p>"
    return f"<div><h2>99 of 100 answers within</h2><table>{rows}</table></div><div>{failed}</div>"


def _took(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.1f} s" if milliseconds >= 1_000 else f"{milliseconds:.0f} ms"


def steady(result: Result) -> str:
    states: dict[str, Any] = result.journal["steady_states"]
    rows = ""
    for when in ("before", "after"):
        for probe in (states.get(when) or {}).get("probes", []):
            met = "met" if probe["tolerance_met"] else "<b style='color:var(--bad)'>not met</b>"
            rows += f"<tr><td>{when}<td>{escape(str(probe['activity']['name']))}<td>{_value(probe['output'])}<td>{met}"
    return f"<div><h2>Steady state</h2><table>{rows}</table></div>"


def _value(output: Any) -> str:
    """What a probe said, as people write it; shares are between 0 and 1."""
    match output:
        case bool():
            return "yes" if output else "no"
        case float() if 0 <= output <= 1:
            return f"{output:.1%}"
    return escape(str(output))


def _ended(result: Result) -> str:
    if not result.ended:
        return ""
    return "<h2>Processes that ended by themselves</h2><div class=card><ul>" + "".join(
        f"<li>{escape(text)}" for text in result.ended
    ) + "</ul></div>"  # fmt: skip
