"""See the alerts of a running deployment, silence some for a while, or say that you look after one.

Without an option it lists what fires; --silence takes matchers as Alertmanager's users write them: service="commerce".
"""

import argparse
from typing import Any

import msgspec

from fourplane.foundation.errors import Rejected
from fourplane.verbs import deployment
from fourplane.verbs.table import table

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--silence", nargs="+", default=[], metavar="MATCHER", help='such as service="commerce"')
    parser.add_argument("--for", dest="duration", default="1h", metavar="TIME", help="how long: 30s, 15m, 4h, 2d (1h)")
    parser.add_argument("--comment", default="", metavar="TEXT", help="why nobody needs to be told")
    parser.add_argument("--expire", default="", metavar="ID", help="end a silence now")
    parser.add_argument("--ack", default="", metavar="FINGERPRINT", help="look after an alert: nobody is told again")
    parser.add_argument("--history", action="store_true", help="list what is over, too")
    deployment.add(parser)


def run(options: argparse.Namespace) -> int:
    """Exit code 0, or 1 when the list has an alert that pages."""
    folder = deployment.folder(options)
    order: dict[str, Any] = {"order": "list"}
    if options.silence:
        order = {
            "order": "silence", "matchers": options.silence, "duration_s": seconds(options.duration),
            "comment": options.comment,
        }  # fmt: skip
    elif options.expire:
        order = {"order": "expire", "id": options.expire}
    elif options.ack:
        order = {"order": "acknowledge", "fingerprint": options.ack}
    answer = deployment.ask_now(folder, "alerts", order)
    if options.json:
        print(msgspec.json.encode(answer).decode())
    elif order["order"] == "silence":
        print(f"silenced until {options.duration} from now; end it with --expire {answer['id']}")
    elif order["order"] == "expire":
        print("the silence has ended")
    elif order["order"] == "acknowledge":
        print(f"you look after it: {answer['summary']}")
    else:
        print(_told(answer, history=options.history))
    firing = answer.get("active", []) if order["order"] == "list" else []
    return 1 if any(one["alert"]["severity"] == "page" for one in firing) else 0


def seconds(text: str) -> float:
    """A time such as 15m. Raises Rejected for what is none."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.replace(".", "", 1).isdigit():
        raise Rejected(f"{text!r} is no time; write for example 30s, 15m, 4h or 2d", code="bad_arguments")
    return float(number) * UNITS[unit]


def _told(view: dict[str, Any], *, history: bool) -> str:
    parts = []
    rows = [
        (one["fingerprint"], one["alert"]["severity"], one["alert"]["service"], one["alert"]["summary"], _quiet(one))
        for one in view["active"]
    ]
    parts.append(table(("alert", "severity", "service", "what", ""), rows) if rows else "nothing is wrong")
    if view["silences"]:
        told = [(one["id"], _matchers(one["matchers"]), one["by"], one["comment"]) for one in view["silences"]]
        parts.append(table(("silence", "matchers", "by", "why"), told))
    for one in view["receivers"]:
        trouble = f", {one['last_error']}" if one["last_error"] else ""
        parts.append(f"{one['name']} ({one['kind']}): {one['delivered']} told, {one['waiting']} waiting{trouble}")
    if history:
        over = [
            (one["alert"]["service"], one["alert"]["summary"], f"{one['ended_s'] - one['alert']['started_s']:.0f} s")
            for one in view["history"]
        ]
        parts.append(table(("over", "what", "lasted"), over) if over else "no alert has ended yet")
    return "\n\n".join(parts)


def _quiet(one: dict[str, Any]) -> str:
    if one["acknowledged_by"]:
        return f"looked after by {one['acknowledged_by']}"
    return "silenced" if one["silenced_by"] else ""


def _matchers(matchers: list[dict[str, str]]) -> str:
    return ", ".join(f'{one["label"]}{one["operator"]}"{one["text"]}"' for one in matchers)
