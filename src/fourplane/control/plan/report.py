"""A plan for people: as text for a terminal, as one HTML page that can be saved and sent."""

from collections.abc import Sequence
from html import escape

from fourplane.control.plan.sizing import Line, Plan, digits

PLANES = {"edge": "#0066CC", "service": "#00AA00", "state": "#FF8800", "control": "#CC0000"}
HEAD = (
    "component",
    "peak",
    "one core does",
    "basis",
    "cores",
    "machines",
    "kind",
    "stored",
    "moved/month",
    "cost/month",
)
STUDY_HEAD = ("component", "technology", "scale", "cost/month", "promise")


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """The lines as cells of a table, under `HEAD`."""
    return [_cells(line, plan.currency) for line in plan.lines]


def headline(plan: Plan) -> str:
    """The answer in one sentence."""
    return (
        f"{plan.system} for {plan.users:,} users: phase {plan.phase}, {_count(plan.machines, 'machine')} in "
        f"{_count(plan.regions, 'region')} of {_count(plan.zones, 'zone')}, {money(plan.cost, plan.currency)} a month "
        f"({money(plan.cost_per_user, plan.currency)} a user)"
    )


def remarks(plan: Plan) -> list[str]:
    """What must be read with the table."""
    law, down = plan.scalability, _minutes(plan.down_minutes_a_month)
    measured = sum(one.basis == "measured" for one in plan.figures)
    return [
        f"phase {plan.phase}: {plan.why}",
        f"next: {plan.next_phase}",
        f"availability of the topology alone {plan.availability * 100:.4f} % ({down} down a month) [derived]",
        f"a core more is worth less: contention {law.contention:.3g}, coherence {law.coherence:.3g} [{plan.scalability_basis}]",
        f"{measured} of {len(plan.figures)} capacities were measured on this machine; ./fourplane bench measures the rest",
        "habits of users and prices are assumptions: --assume NAME=VALUE, --write-prices FILE",
    ]


def html(plan: Plan) -> str:
    """One page without anything outside."""
    body = [f"<h1>{escape(headline(plan))}</h1>", _html_table(HEAD, rows(plan), [line.plane for line in plan.lines])]
    body.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in remarks(plan)) + "</ul>")
    body.append(f"<h2>The case study, {plan.study_users:,} users</h2>" + _html_table(STUDY_HEAD, plan.study, []))
    figures = [(one.name, digits(one.value), one.unit, one.basis, one.source) for one in plan.figures]
    body.append("<h2>What one core does</h2>" + _html_table(("figure", "value", "unit", "basis", "from"), figures, []))
    habits = [(one.name, f"{one.value:,.12g}", one.what) for one in plan.assumptions]
    body.append("<h2>Habits assumed</h2>" + _html_table(("name", "value", "what"), habits, []))
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Plan: {plan.system}</title>{STYLE}{''.join(body)}"


def money(amount: float, currency: str) -> str:
    """An amount in as many digits as it deserves."""
    sign = "$" if currency == "USD" else f"{currency} "
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if amount >= size:
            return f"{sign}{amount / (1e3 if letter == 'K' else size):.3g}{letter}"
    return f"{sign}{amount:,.0f}" if amount >= 10 or not amount else f"{sign}{amount:.2g}"


def _cells(line: Line, currency: str) -> tuple[str, ...]:
    return (
        line.component,
        f"{digits(line.peak)} {line.unit}".strip() if line.peak else "",
        digits(line.per_core) if line.per_core else "",
        line.basis,
        f"{line.cores:,.2f}" if 0 < line.cores < 10 else f"{line.cores:,.0f}" if line.cores else "",
        f"{line.machines:,}" if line.machines else "",
        line.machine,
        _bytes(line.stored_gb),
        _bytes(line.moved_gb),
        money(line.cost, currency),
    )


def _bytes(gigabytes: float) -> str:
    for size, unit in ((1e6, "PB"), (1e3, "TB"), (1.0, "GB")):
        if gigabytes >= size:
            return f"{gigabytes / size:,.3g} {unit}"
    return f"{gigabytes * 1e3:,.3g} MB" if gigabytes > 0 else ""


def _minutes(minutes: float) -> str:
    return f"{minutes:,.1f} minutes" if minutes >= 1 else f"{minutes * 60:,.0f} seconds"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _html_table(head: tuple[str, ...], cells: Sequence[tuple[str, ...]], planes: list[str]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = []
    for number, row in enumerate(cells):
        mark = f' style="border-left:4px solid {PLANES.get(planes[number], "#888")}"' if planes else ""
        body.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


STYLE = """<meta name=viewport content="width=device-width"><style>
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem}
h1{font-size:1.35rem}h2{font-size:1.05rem;margin-top:2rem}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;text-align:left;border-bottom:1px solid #8884;white-space:nowrap}th{font-weight:600}
td{font-variant-numeric:tabular-nums}li{margin:.2rem 0}</style>"""
