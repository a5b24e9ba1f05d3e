"""Plans over HTTP, for the page `/control/plan`."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from fourplane.control.plan import report
from fourplane.control.plan.demand import ASSUMPTIONS, System
from fourplane.control.plan.figures import figures
from fourplane.control.plan.prices import Prices
from fourplane.control.plan.results import measured_scalability
from fourplane.control.plan.sizing import Plan, plan
from fourplane.control.plan.studies import USERS
from fourplane.edge.routes import Call, Priority, Reply, Route
from fourplane.foundation.errors import Rejected

NOT_HABITS = frozenset({"system", "users", "regions", "zones"})


def doors(results: Callable[[], Mapping[str, Mapping[str, Any]]]) -> list[Route]:
    """`results` reads what `bench` measured; it is asked for each plan, so a new benchmark counts at once."""

    def computed(call: Call[None]) -> Plan:
        system = next((one for one in get_args(System) if one == call.query.get("system", "messaging")), None)
        if system is None:
            raise Rejected(f"there are plans of {', '.join(ASSUMPTIONS)}", code="unknown_system")
        found = results()
        return plan(
            system,
            _whole(call, "users", USERS[system]),
            figures=figures(found),
            prices=Prices(),
            regions=_whole(call, "regions", 0),
            zones=_whole(call, "zones", 0),
            habits={name: _number(name, text) for name, text in call.query.items() if name not in NOT_HABITS},
            scalability=measured_scalability(found),
        )

    async def as_json(call: Call[None]) -> dict[str, object]:
        found = computed(call)
        return {
            "plan": found,
            "headline": report.headline(found),
            "remarks": report.remarks(found),
            "head": report.HEAD,
            "rows": report.rows(found),
            "study_head": report.STUDY_HEAD,
        }

    async def as_page(call: Call[None]) -> Reply:
        name = f"plan-{call.query.get('system', 'messaging')}.html"
        return Reply(
            report.html(computed(call)).encode(), headers={"content-disposition": f'attachment; filename="{name}"'}
        )

    return [
        Route("GET", "/control/api/plan", as_json, "What so many users would take", priority=Priority.DEGRADED),
        Route("GET", "/control/api/plan.html", as_page, "The same as a page to keep", priority=Priority.DEGRADED),
    ]


def _whole(call: Call[None], name: str, default: int) -> int:
    return int(_number(name, call.query.get(name, str(default))))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Rejected(f"{name} is a number, not {text[:40]!r}", code="bad_plan") from None
