"""What a run does next: a pure machine. Events in, one effect out; the shell (desk.py) asks, acts, waits and writes down.

Order: all checks must hold, else a person is asked (escalate); actions one after the other; the verification is asked
until it holds or its time is over; a run that acted then waits for the end of its alert and undoes what was only for the
meantime. When the verification fails, what was done is undone and a person is asked. An action that fails is a failed
verification.

Invariants: an action is done at most once in a run; whoever acted either verified or undid; a run that is over stays over; every
way out is at most `hold_s` away once the last answer is in.
"""

import msgspec

from fourplane.control.runbooks.model import Action, Phase, Question, Run, Runbook, Step, StepKind

ASK_AGAIN_S = 1.0


class Ask(msgspec.Struct, frozen=True):
    """Put this question and come back with the answer."""

    question: Question


class Do(msgspec.Struct, frozen=True):
    """Do this and come back with how it went."""

    action: Action


class Wait(msgspec.Struct, frozen=True):
    """Come back after this time, or earlier when the alert is over."""

    seconds: float


Effect = Ask | Do | Wait | None


def due(book: Runbook, run: Run, now_s: float) -> Effect:
    """What the run needs now; None when it is over. Moves it over phases that have nothing (left) to do."""
    while not run.over:
        effect = _pending(book, run, now_s)
        if effect is not None:
            return effect
        _advance(book, run, now_s)
    return None


def answered(book: Runbook, run: Run, now_s: float, *, value: float | None, told: str) -> Effect:
    """The answer to a question (None: it could not be asked). Gives a Wait when it is to be put again."""
    question = book.checks[run.place] if run.phase == "checks" else book.verify
    assert question is not None
    kind: StepKind = "check" if run.phase == "checks" else "verify"
    holds = value is not None and question.holds(value)
    if not holds and kind == "verify" and now_s + ASK_AGAIN_S <= run.until_s:
        return Wait(ASK_AGAIN_S)
    _tell(run, now_s, kind, question.name, told, ok=holds)
    if kind == "check":
        if holds:
            run.place += 1
        else:
            _enter(run, "escalate")
    elif holds:
        run.outcome = "recovered"
        _hold(book, run, now_s)
    else:
        _failed(book, run)
    return None


def done(book: Runbook, run: Run, now_s: float, *, ok: bool, told: str) -> None:
    """How an action went."""
    kinds: dict[str, StepKind] = {"actions": "action", "undo": "undo", "escalate": "escalate"}
    _tell(run, now_s, kinds[run.phase], _actions(book, run.phase)[run.place].name, told, ok=ok)
    run.place += 1
    if run.phase == "actions":
        run.acted = True
        if not ok:
            _failed(book, run)


def check(book: Runbook, run: Run) -> None:
    """Assert the invariants."""
    did = [step.name for step in run.steps if step.kind == "action"]
    assert len(did) == len(set(did)) <= len(book.actions)
    assert not run.over or run.outcome
    if run.over and run.acted and book.verify is not None:
        assert any(step.kind in {"verify", "undo", "escalate"} for step in run.steps)


def _pending(book: Runbook, run: Run, now_s: float) -> Effect:
    """What this phase still needs."""
    match run.phase:
        case "checks" if run.place < len(book.checks):
            return Ask(book.checks[run.place])
        case "verify" if book.verify is not None:
            return Ask(book.verify)
        case "holding" if not run.resolved and now_s < run.until_s:
            return Wait(run.until_s - now_s)
    actions = _actions(book, run.phase)
    return Do(actions[run.place]) if run.place < len(actions) else None


def _advance(book: Runbook, run: Run, now_s: float) -> None:
    """On to the next phase."""
    match run.phase:
        case "checks":
            _enter(run, "actions")
        case "actions":
            _enter(run, "verify")
            run.until_s = now_s + (book.verify.within_s if book.verify is not None else 0.0)
        case "verify":
            _hold(book, run, now_s)
        case "holding" if not run.resolved:
            _tell(run, now_s, "note", "the alert still fires", "waited long enough", ok=False)
            _enter(run, "escalate")
        case "holding" if book.undo_when_over:
            _enter(run, "undo")
        case "undo" if run.outcome == "failed":
            _enter(run, "escalate")
        case "escalate":
            run.outcome = "escalated"
            _over(run, now_s)
        case _:
            _over(run, now_s)


def _actions(book: Runbook, phase: Phase) -> tuple[Action, ...]:
    return {"actions": book.actions, "undo": book.undo, "escalate": book.escalate}.get(phase, ())


def _failed(book: Runbook, run: Run) -> None:
    run.outcome = "failed"
    _enter(run, "undo" if book.undo else "escalate")


def _hold(book: Runbook, run: Run, now_s: float) -> None:
    run.outcome = run.outcome or ("recovered" if run.acted else "nothing to do")
    _enter(run, "holding")
    run.until_s = now_s + book.hold_s


def _enter(run: Run, phase: Phase) -> None:
    run.phase = phase
    run.place = 0


def _over(run: Run, now_s: float) -> None:
    run.phase, run.ended_s = "over", now_s
    run.outcome = run.outcome or "nothing to do"


def _tell(run: Run, now_s: float, kind: StepKind, name: str, told: str, *, ok: bool) -> None:
    run.steps.append(Step(now_s, kind, name, told[:500], ok))
