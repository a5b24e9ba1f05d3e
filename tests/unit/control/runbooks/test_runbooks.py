"""Runbooks in virtual time: the studies' chains, what happens when they do not help, and what is left when a process dies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourplane.control.alerts.model import Alert
from fourplane.control.runbooks import course
from fourplane.control.runbooks.desk import PREFIX, Runbooks
from fourplane.control.runbooks.model import LIBRARY, Action, Question, Run, Runbook, load, parse
from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import loop as simulated
from fourplane.state.embedded.blobs import EmbeddedBlobs

DARK = Alert("RegionDark", "streaming", "page", {"region": "us"}, 0.0, "no node of us answers", "firing")
OVER = Alert("RegionDark", "streaming", "page", {"region": "us"}, 0.0, "no node of us answers", "resolved")
KONG = next(book for book in load(LIBRARY) if book.name == "kong")


class Hands:
    """Abilities whose answers a test decides; it remembers what was done."""

    def __init__(self, answers):
        self.answers = answers
        self.done = []
        self.questions = {ask: self._question(ask) for ask in ("regions_up", "nodes_up", "steered_well")}
        self.actions = {do: self._action(do) for do in ("evacuate", "take_back", "page")}

    def check(self, asks, does):
        assert set(asks) <= set(self.questions)
        assert set(does) <= set(self.actions)

    def _question(self, ask):
        async def answer(_arguments):
            value = self.answers[ask]
            value = value() if callable(value) else value
            if value is None:
                raise Unavailable("nobody answers")
            return float(value)

        return answer

    def _action(self, do):
        async def act(arguments):
            self.done.append((do, arguments.get("region", "")))
            if self.answers.get(do) == "refused":
                raise Unavailable("refused")
            return "done"

        return act


def lived(tmp_path, main, answers, books=(KONG,)):
    """Run `main(desk, hands)` with a started desk in virtual time; its answer and the hands."""

    async def whole(_world):
        hands = Hands({"regions_up": 2, "nodes_up": 0, "steered_well": 1} | answers)
        desk = Runbooks(
            books, registry=Registry(), blobs=await EmbeddedBlobs(tmp_path).open(), abilities=lambda _: hands
        )
        lifecycle = Lifecycle(Registry())
        lifecycle.add("runbooks", desk)
        await lifecycle.start()
        try:
            return await main(desk, hands), hands.done
        finally:
            await lifecycle.stop()

    return simulated.run(whole, 1).result


def test_a_dark_region_is_evacuated_and_taken_back_when_it_is_whole(tmp_path):
    async def main(desk, hands):
        desk.hear(DARK)
        await clock.sleep(5.0)
        before = list(hands.done)
        desk.hear(OVER)
        await clock.sleep(1.0)
        run = desk.runs()[0]
        return before, run.outcome, [(step.kind, step.ok) for step in run.steps]

    (before, outcome, steps), done = lived(tmp_path, main, {})
    assert (before, done) == ([("evacuate", "us")], [("evacuate", "us"), ("take_back", "us")])
    assert outcome == "recovered"
    assert steps == [(kind, True) for kind in ("alert", "check", "check", "action", "verify", "alert", "undo")]


def test_a_verification_that_holds_later_is_waited_for(tmp_path):
    async def main(desk, _hands):
        began = clock.monotonic_s()
        desk.abilities.answers["steered_well"] = lambda: clock.monotonic_s() - began > 12
        desk.hear(DARK)
        await clock.sleep(20.0)
        return desk.runs()[0].outcome

    assert lived(tmp_path, main, {})[0] == "recovered"


@pytest.mark.parametrize(
    ("answers", "done", "steps"),
    [
        ({"regions_up": 0}, ["page"], ["alert", "check", "escalate"]),
        ({"regions_up": None}, ["page"], ["alert", "check", "escalate"]),
        (
            {"evacuate": "refused"},
            ["evacuate", "take_back", "page"],
            ["alert", "check", "check", "action", "undo", "escalate"],
        ),
        (
            {"steered_well": 0},
            ["evacuate", "take_back", "page"],
            ["alert", "check", "check", "action", "verify", "undo", "escalate"],
        ),
    ],
)
def test_what_does_not_help_is_undone_and_a_person_is_paged(tmp_path, answers, done, steps):
    async def main(desk, _hands):
        desk.hear(DARK)
        await clock.sleep(60.0)
        run = desk.runs()[0]
        return run.outcome, [step.kind for step in run.steps]

    (outcome, told), did = lived(tmp_path, main, answers)
    assert (outcome, [name for name, _ in did], told) == ("escalated", done, steps)


def test_one_alert_is_one_run_and_a_loop_that_acts_for_ever_asks_a_person(tmp_path):
    async def main(desk, _hands):
        for _ in range(KONG.per_hour_max + 3):
            desk.hear(DARK)
            desk.hear(DARK)
            await clock.sleep(5.0)
            desk.hear(OVER)
            await clock.sleep(30.0)
        pages = list(desk.conditions(clock.now_us() / 1e6))
        return len(desk.runs()), [page.name for page in pages]

    (runs, pages), _ = lived(tmp_path, main, {})
    assert runs == KONG.per_hour_max
    assert set(pages) == {"PersonWanted"}


def test_a_run_goes_on_after_the_process_died_and_does_nothing_twice(tmp_path):
    async def first(desk, _hands):
        desk.hear(DARK)
        await clock.sleep(5.0)

    async def second(desk, _hands):
        await clock.sleep(1.0)
        desk.hear(OVER)
        await clock.sleep(1.0)
        return desk.runs()[0].outcome, len(await desk._blobs.keys(f"{PREFIX}/"))

    assert lived(tmp_path, first, {})[1] == [("evacuate", "us")]
    assert lived(tmp_path, second, {}) == (("recovered", 1), [("take_back", "us")])


@pytest.mark.parametrize(
    "text",
    [
        "name = 1",
        'name = "a"\ntitle = "b"\nalert = "("',
        'name = "a"\ntitle = "b"\nalert = "c"\nwrong = 1',
        'name = "a"\ntitle = "b"\nalert = "c"\n[[checks]]\nname = "x"\nask = "y"',
        'name = "a"\ntitle = "b"\nalert = "c"\nper_hour_max = 0',
    ],
)
def test_a_runbook_that_is_wrong_says_where(text):
    with pytest.raises(Misconfigured, match="runbook a"):
        parse(text, "a.toml")


def test_the_four_chains_of_the_studies_come_along():
    assert {book.study for book in load(LIBRARY)} == {
        "Monkey > page", "Gorilla > dashboard", "Kong > runbook", "Latency > rollback",
    }  # fmt: skip


QUESTION = Question("q", "q", at_least=1)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)),
    st.booleans(),
    st.lists(st.booleans()),
    st.booleans(),
)
def test_every_way_through_a_runbook_ends_and_does_nothing_twice(sizes, verify, answers, resolved):
    checks, actions, undo = sizes
    book = Runbook(
        "b", "t", "a", checks=(QUESTION,) * checks, actions=tuple(Action(f"a{n}", "do") for n in range(actions)),
        verify=Question("v", "v", at_least=1, within_s=3.0) if verify else None,
        undo=tuple(Action(f"u{n}", "do") for n in range(undo)), undo_when_over=True, escalate=(Action("e", "page"),),
        hold_s=10.0,
    )  # fmt: skip
    run, now_s, given_answers = Run("r", "b", "t", DARK, 0.0), 0.0, iter(answers)
    for _ in range(60):
        effect = course.due(book, run, now_s)
        if effect is None:
            break
        now_s += 1.0
        if isinstance(effect, course.Wait):
            run.resolved = resolved
            now_s += effect.seconds
        elif isinstance(effect, course.Ask):
            course.answered(book, run, now_s, value=float(next(given_answers, True)), told="")
        else:
            course.done(book, run, now_s, ok=next(given_answers, True), told="")
    assert run.over
    course.check(book, run)
