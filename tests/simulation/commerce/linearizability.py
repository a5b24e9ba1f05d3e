"""Is a history of concurrent operations on one register explained by some order in which they happened one at a time?

Wing and Gong's search with Lowe's memory of (what is placed, state): take any operation that was called before every other
unplaced one returned, try it next, go back when nothing fits. Histories are checked per key, since a store of registers is
linearizable exactly if each register is (Herlihy and Wing 1990, locality). An operation whose outcome nobody heard may
take effect at any time after its call, or never. Exponential in the number of truly concurrent operations only.
"""

from collections.abc import Callable, Hashable, Sequence

import msgspec

NEVER = float("inf")


class Operation(msgspec.Struct, frozen=True):
    """`outcome` None means unknown; then `returned` is NEVER."""

    called: float
    returned: float
    kind: str
    argument: int
    outcome: object


# The state after an operation, or None where its outcome is impossible in this state.
Step = Callable[[Hashable, Operation], Hashable | None]


def explain(history: Sequence[Operation], start: Hashable, step: Step) -> list[Operation] | None:
    """One order that explains the history, or None when there is none."""
    order = sorted(history, key=lambda operation: operation.called)
    needed = sum(1 << index for index, operation in enumerate(order) if operation.outcome is not None)
    seen: set[tuple[int, Hashable]] = set()
    path: list[int] = []
    stack = [(0, start, iter(_candidates(order, 0)))]
    while stack:
        placed, state, choices = stack[-1]
        if placed & needed == needed:
            return [order[index] for index in path]
        for index in choices:
            after = step(state, order[index])
            key = (placed | 1 << index, after)
            if after is not None and key not in seen:
                seen.add(key)
                path.append(index)
                stack.append((key[0], after, iter(_candidates(order, key[0]))))
                break
        else:
            stack.pop()
            if path:
                path.pop()
    return None


def _candidates(order: Sequence[Operation], placed: int) -> list[int]:
    """Unplaced operations called before any other unplaced one returned."""
    left = [index for index in range(len(order)) if not placed >> index & 1]
    horizon = min((order[index].returned for index in left), default=NEVER)
    return [index for index in left if order[index].called <= horizon]


def stock(state: Hashable, operation: Operation) -> Hashable | None:
    """A shelf: buying takes what is there or is refused, giving back adds, reading tells the level."""
    assert isinstance(state, int)
    match operation.kind, operation.outcome:
        case "buy", "sold" | None:
            return state - operation.argument if state >= operation.argument else None
        case "buy", "refused":
            return state if state < operation.argument else None
        case "return", _:
            return state + operation.argument
        case "read", level:
            return state if level == state else None
    raise AssertionError(operation)
