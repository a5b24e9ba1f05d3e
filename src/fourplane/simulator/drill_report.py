"""A drill on a running deployment as a page and as a text to be sent: the timeline, what users felt, the experiment group against
the control group, the error budget that was spent, and what it cost. No server, no script, no other file.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from fourplane.simulator.aftermath import Cost
from fourplane.simulator.experiments import Result
from fourplane.simulator.report import STYLE, actions, legend, picture, steady

LINES_MAX = 200
VERDICTS = {
    "completed": "healed",
    "failed": "did not heal",
    "interrupted": "halted",
    "undone": "was not carried out",
}
SOURCES = {"fault": "--fault", "alert": "--bad", "runbook": "--wait", "note": "--muted"}


def page(result: Result, cost: Cost) -> str:
    """The whole page."""
    told = result.journal["experiment"]
    good = result.status == "completed"
    title = escape(str(told["title"]))
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width,initial-scale=1'>",
            f"<title>{title}</title><style>{STYLE}{_MORE}</style>",
            f"<span class='verdict{'' if good else ' bad'}'>{verdict(result)}</span>",
            f"<h1>{title}</h1><p class=muted>{escape(str(told['description']))}</p>",
            f"<p class=muted>{escape(_when(result))}</p>",
            _tiles(result, cost),
            f"<h2>What happened</h2><div class=card><ol class=line>{_timeline(result)}</ol></div>",
            f"<h2>What users felt, second by second</h2><div class=card>{legend()}",
            f"<div class=chart>{picture(result)}</div></div>",
            f"<div class=two>{actions(result)}{steady(result)}</div>",
            _groups_page(result),
            f"<h2>What it cost</h2><table>{''.join(f'<tr><td>{escape(a)}<td>{escape(b)}' for a, b in costs(result, cost))}",
            "</table>",
            "</html>\n",
        ]
    )


def text(result: Result, cost: Cost) -> str:
    """The same in Markdown."""
    told = result.journal["experiment"]
    lines = [
        f"# {told['title']}: {verdict(result)}",
        "",
        str(told["description"]),
        "",
        _when(result),
        "",
        "| second | what | |",
        "|---|---|---|",
        *(f"| {at:+.1f} | {kind} | {_cell(said)} |" for at, kind, said in timeline(result)),
        "",
        "| what it cost | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in costs(result, cost)),
    ]
    groups = groups_of(result)
    if groups:
        lines += ["", "| group | requests | errors | p50 | p99 |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in groups]
    return "\n".join(lines) + "\n"


def verdict(result: Result) -> str:
    """How it ended in few words; a drill of which nothing was done says nothing about the system."""
    undone = result.status == "failed" and not result.deviated
    return VERDICTS["undone" if undone else result.status]


def timeline(result: Result) -> list[tuple[float, str, str]]:
    """Seconds since the first fault, what kind of thing, and what it was; in order."""
    ours = result.journal["x-fourplane"]
    zero_s = ours.get("first_fault_at_s") or ours.get("began_at_s", 0.0)
    rows = [(zero_s + span.began_s - _first(result), "fault", span.name) for span in result.spans]
    rows += [(zero_s + span.ended_s - _first(result), "fault", f"over: {span.name}") for span in result.spans]
    for alert in ours.get("alerts", []):
        over = "" if alert["state"] == "firing" else "over: "
        rows.append((alert["at_s"], "alert", f"{over}{alert['name']}: {alert['summary']}"))
    for run in ours.get("runs", []):
        rows += [
            (step["at_s"], "runbook", f"{run['runbook']}: {step['name']}{_told(step)}")
            for step in run["steps"]
            if step["kind"] != "alert"
        ]
        if run["ended_s"]:
            rows.append((run["ended_s"], "runbook", f"{run['runbook']}: {run['outcome']}"))
    rows += [(one["at_s"], "note", one["text"]) for one in ours.get("notes", [])]
    return [(round(at - zero_s, 1), kind, said) for at, kind, said in sorted(rows)][:LINES_MAX]


def costs(result: Result, cost: Cost) -> list[tuple[str, str]]:
    """What it cost, line by line."""
    tried = result.felt["served"] + result.felt["failed"]
    rows = [
        ("actions of users in the whole drill", f"{tried:,}"),
        ("errors users saw, of what they tried meanwhile", f"{cost.errors:,} ({cost.error_share:.2%})"),
        ("the last error", f"{cost.last_failure_s:g} s after the first fault" if cost.errors else "none"),
        ("the longest anybody waited for an answer", f"{_waited(result)[0]:.1f} s"),
        ("seconds in which nobody was answered", str(_waited(result)[1])),
        ("full outage this equals", f"{cost.minutes_down * 60:.1f} s"),
    ]
    if cost.moved_s is not None:
        rows.append(("all players had left the dark nodes after", f"{cost.moved_s:g} s"))
    rows += [(f"{_plain(name)} less than at the pace before", f"{amount:,.2f}") for name, amount in cost.lost.items()]
    if result.journal["experiment"]["extensions"][0].get("system") == "streaming":
        rows.append(("minutes of play that stood still", f"{cost.stalled_minutes:g}"))
    again = int(result.felt["facts"].get("asked_again", 0))
    if again:
        rows.append(("requests that pages sent again by themselves", f"{again:,}"))
    audit = result.journal["x-fourplane"].get("audit", {})
    if audit.get("looked_at"):
        broken = audit["broken"]
        kept = f"{len(broken)} not as they were promised: {broken[0]}" if broken else "none lost, none doubled"
        rows.append(("orders looked at afterwards", f"{audit['looked_at']:,}, {kept}"))
    rows.append(("at the study's rate of $1M a minute (assumed)", f"${cost.study_money:,.0f}"))
    for name, (before, now) in _budgets(result).items():
        bad, total = now[0] - before[0], now[1] - before[1]
        if bad > 0:
            rows.append((f"error budget of {name}", f"{bad:,.0f} bad of {total:,.0f} events"))
    return rows


def groups_of(result: Result) -> list[tuple[str, ...]]:
    """Rows of the experiment groups and their control groups."""
    rows: list[tuple[str, ...]] = []
    for fault in result.journal["x-fourplane"].get("faults", []):
        for name in ("experiment", "control"):
            group = fault[name]
            if group["requests"]:
                told = f"{fault['kind']} ({fault['told']}), {name}"
                rows.append(
                    (
                        told,
                        f"{group['requests']:,}",
                        f"{group['errors']:,}",
                        f"{group['p50_ms']:g} ms",
                        f"{group['p99_ms']:g} ms",
                    )
                )
    return rows


_MORE = """ol.line{list-style:none;margin:0;padding:0}ol.line li{display:grid;grid-template-columns:4.5rem 5.5rem 1fr;gap:.6rem;
padding:.25rem 0;border-bottom:1px solid var(--line)}ol.line li:last-child{border:0}ol.line time{text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums;color:var(--muted)}ol.line b{font-weight:600}@media(max-width:34rem){
ol.line li{grid-template-columns:4.6rem 1fr}ol.line time{text-align:left}ol.line span{grid-column:1/-1}}"""


def _tiles(result: Result, cost: Cost) -> str:
    fired = sum(alert["state"] == "firing" for alert in result.journal["x-fourplane"].get("alerts", []))
    tiles = [
        (f"{cost.error_share:.2%}", "errors users saw"),
        (f"{_waited(result)[0]:.1f} s", "the longest anybody waited"),
        (f"{cost.last_failure_s:g} s" if cost.errors else "0 s", "until the last error"),
        (str(fired), "alerts"),
        (str(len(result.journal["x-fourplane"].get("runs", []))), "runbooks that acted"),
        (f"{cost.minutes_down * 60:.1f} s", "of full outage this equals"),
    ]
    if cost.moved_s is not None:
        tiles.insert(0, (f"{cost.moved_s:g} s", "until all players had moved"))
    shown = (f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return f"<div class=tiles>{''.join(shown)}</div>"


def _waited(result: Result) -> tuple[float, int]:
    """From the first fault on: the slowest answer, and the seconds in which there was none at all."""
    began_s = min((span.began_s for span in result.spans), default=0.0)
    since = [one for second, one in result.seconds.items() if second >= int(began_s)]
    silent = sum(served + failed == 0 for served, failed, _ in since)
    return max((slowest for _, _, slowest in since), default=0.0), silent


def _timeline(result: Result) -> str:
    return "".join(
        f"<li><time>{at:+.1f} s</time><b style='color:var({SOURCES[kind]})'>{kind}</b><span>{escape(said)}</span></li>"
        for at, kind, said in timeline(result)
    )


def _groups_page(result: Result) -> str:
    rows = groups_of(result)
    if not rows:
        return ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    head = "<tr><th>group<th>requests<th>errors<th>p50<th>p99"
    return f"<h2>Who had the fault, and who had not</h2><table>{head}{body}</table>"


def _budgets(result: Result) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    kept: Mapping[str, Any] = result.journal["x-fourplane"].get("budgets", {})
    before, after = kept.get("before", {}), kept.get("after", {})
    return {name: (before[name], after[name]) for name in after if name in before}


def _first(result: Result) -> float:
    return min((span.began_s for span in result.spans), default=0.0)


def _told(step: Mapping[str, Any]) -> str:
    said = f": {step['told']}" if step["told"] else ""
    return said if step["ok"] else f"{said} (not)"


def _when(result: Result) -> str:
    began = datetime.fromtimestamp(result.journal["x-fourplane"].get("began_at_s", 0.0), UTC)
    return f"{began:%Y-%m-%d %H:%M:%S} UTC, {result.journal['duration']:.0f} s, {result.journal['node']}"


def _plain(fact: str) -> str:
    return fact.replace("sold ", "sales, ")


def _cell(said: str) -> str:
    return said.replace("|", "/").replace("\n", " ")
