"""The runner of experiments on running deployments: order of things, halting, renewals, a journal Chaos Toolkit takes."""

import asyncio

import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, Unavailable
from fourplane.simulator import drill_report
from fourplane.simulator import loop as simulated
from fourplane.simulator.crowds import Plan, Target
from fourplane.simulator.experiment import validate
from fourplane.simulator.live import LiveRun, check_possible

JOURNAL_KEYS = {
    "chaoslib-version", "platform", "node", "experiment", "start", "status", "deviated", "steady_states", "run",
    "rollbacks", "end", "duration",
}  # fmt: skip


def activity(kind, func, module="faults", tolerance=None, **arguments):
    raw = {
        "type": kind, "name": func,
        "provider": {"type": "python", "module": f"fourplane.simulator.{module}", "func": func, "arguments": arguments},
    }  # fmt: skip
    return raw | ({} if tolerance is None else {"tolerance": tolerance})


def experiment(*method, least=0.9):
    served = activity("probe", "availability", "probes", {"type": "range", "range": [least, 1.0]}, window_s=2.0)
    return {
        "title": "a test", "description": "a test",
        "steady-state-hypothesis": {"title": "served", "probes": [served]},
        "method": list(method), "rollbacks": [activity("action", "undo_all")],
        "extensions": [{"name": "x-fourplane", "system": "commerce", "people": 3, "duration_s": 8.0, "warm_up_s": 3.0}],
    }  # fmt: skip


class Deployment:
    """Something to break: it serves unless a fault is on, and keeps what it was told."""

    def __init__(self, *, broken=False):
        self.orders, self.faults, self.broken, self.values = [], set(), broken, {"a.knob": 0.0}

    async def order(self, what, arguments):
        if what == "incident":  # a question, not an order
            return {"values": self.values, "usual": {"a.knob": 0.0}}
        self.orders.append(what)
        match what:
            case "begin" if arguments["kind"] == "change":
                self.values = {"a.knob": arguments["arguments"]["value"]}
                return {"ids": []}
            case "begin":
                self.faults.add(arguments["kind"])
                return {"ids": [arguments["kind"]]}
            case "undo_all":
                ended, self.faults = len(self.faults), set()
                return {"ended": ended}
        return {"renewed": len(arguments["ids"])}

    async def drive(self, _target, plan, tally, _progress):
        while True:
            await clock.sleep(1 / plan.rate_per_s)
            if self.faults or self.broken:
                tally.failed("unavailable")
            else:
                tally.done("buy", 0.01)


def ran(deployment, raw, **options):
    async def main(_world):
        run = LiveRun(
            validate(raw), Target(), order=deployment.order, crowd=lambda: deployment, plan=Plan(rate_per_s=10.0),
            told=lambda _: None, **options,
        )  # fmt: skip
        return await run.run()

    return simulated.run(main, 1).result


def test_a_fault_that_ends_leaves_a_steady_state_and_a_journal():
    deployment = Deployment()
    result = ran(deployment, experiment(activity("action", "partition", duration_s=3.0)), halt_below=0.0)
    assert (result.status, deployment.faults) == ("completed", set())
    assert deployment.orders[0] == "begin"
    assert deployment.orders.count("renew") >= 2
    assert result.felt["failed"] > 20
    assert [span.name for span in result.spans] == ["partition"]
    assert any(failed for _, failed, _ in result.seconds.values())
    assert result.journal["steady_states"]["during"]


def test_a_system_that_is_not_steady_is_left_alone():
    deployment = Deployment(broken=True)
    result = ran(deployment, experiment(activity("action", "partition", duration_s=3.0)))
    assert (result.status, result.deviated) == ("failed", True)
    assert deployment.orders == ["undo_all", "undo_all"]


def test_a_run_is_halted_when_too_little_is_served_and_the_rest_is_not_done():
    deployment = Deployment()
    method = (activity("action", "partition", duration_s=60.0), activity("action", "latency", latency_s=1.0))
    method[0]["pauses"] = {"after": 20}
    result = ran(deployment, experiment(*method), halt_below=0.5)
    assert result.status == "interrupted"
    assert ("note", f"halted: {result.violations[0]}") in [
        (kind, text) for _, kind, text in drill_report.timeline(result)
    ]
    assert len(result.journal["run"]) == 1
    assert deployment.faults == set()


class Away(Deployment):
    """Nobody takes orders to begin anything for so many seconds after the first."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.asked_s = seconds, None

    async def order(self, what, arguments):
        if what == "begin":
            self.asked_s = self.asked_s or clock.monotonic_s()
            if clock.monotonic_s() - self.asked_s < self.seconds:
                raise Unavailable("no deployment is running", code="not_running")
        return await super().order(what, arguments)


def test_who_takes_orders_is_waited_for_a_while():
    result = ran(Away(6.0), experiment(activity("action", "partition", duration_s=2.0)), halt_below=0.0)
    assert (result.status, len(result.spans)) == ("completed", 1)


def test_a_drill_that_could_not_be_done_does_not_say_that_anything_healed():
    result = ran(Away(1e9), experiment(activity("action", "partition", duration_s=2.0)))
    assert (result.status, result.deviated, result.spans) == ("failed", False, [])
    assert result.violations == ["partition could not be done: no deployment is running"]
    assert drill_report.verdict(result) == "was not carried out"
    assert [(kind, text) for _, kind, text in drill_report.timeline(result)] == [("note", result.violations[0])]


def test_a_change_ends_when_it_was_taken_back_and_not_when_it_would_have_lapsed():
    deployment = Deployment()
    raw = experiment(activity("action", "change", "live_only", name="a.knob", value=1.0, duration_s=60.0))

    async def main(_world):
        run = LiveRun(
            validate(raw), Target(), order=deployment.order, crowd=lambda: deployment, plan=Plan(rate_per_s=10.0),
            told=lambda _: None,
        )  # fmt: skip
        running = asyncio.ensure_future(run.run())
        while not deployment.values["a.knob"]:
            await clock.sleep(0.1)
        await clock.sleep(3.0)
        deployment.values = {"a.knob": 0.0}
        return await running

    (span,) = simulated.run(main, 1).result.spans
    assert 3.0 <= span.ended_s - span.began_s <= 6.0


def test_a_crowd_that_gave_up_as_a_group_comes_back():
    class Fragile(Deployment):
        gave_up = 0

        async def drive(self, target, plan, tally, progress):
            async with asyncio.TaskGroup() as group:
                group.create_task(super().drive(target, plan, tally, progress))
                group.create_task(self.hang_up())

        async def hang_up(self):
            while not self.faults:
                await clock.sleep(0.1)
            if not self.gave_up:
                self.gave_up += 1
                raise Unavailable("the feed hung up", code="hung_up")

    deployment = Fragile()
    result = ran(deployment, experiment(activity("action", "partition", duration_s=2.0)), halt_below=0.0)
    assert deployment.gave_up == 1
    assert (result.status, result.felt["errors"]["hung_up"]) == ("completed", 1)


def test_a_storm_is_more_of_the_same_people():
    calm, storm = Deployment(), Deployment()
    before = ran(calm, experiment(activity("action", "retry_storm", factor=1.001, duration_s=5.0))).felt["served"]
    after = ran(storm, experiment(activity("action", "retry_storm", factor=10.0, duration_s=5.0))).felt["served"]
    assert after > before + 300


def test_a_step_only_a_simulated_world_can_take_is_refused_before_anything_is_done():
    with pytest.raises(Rejected, match="leader_alone"):
        check_possible(validate(experiment(activity("action", "leader_alone"))))
    check_possible(validate(experiment(activity("action", "zone_loss", zone="eu-a"))))


def test_the_journal_has_what_chaos_toolkit_writes():
    journal = ran(Deployment(), experiment(activity("action", "partition", duration_s=2.0)), halt_below=0.0).journal
    assert set(journal) >= JOURNAL_KEYS
    assert [entry["status"] for entry in journal["run"] + journal["rollbacks"]] == ["succeeded", "succeeded"]
