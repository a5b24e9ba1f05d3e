"""The four systems by name, and what to say to a name that is none of them."""

from collections.abc import Sequence

from fourplane.foundation import config
from fourplane.foundation.errors import Rejected

SYSTEMS = ("streaming", "dispatch", "commerce", "messaging")


def chosen(asked: Sequence[str], known: Sequence[str] = SYSTEMS, kind: str = "system") -> tuple[str, ...]:
    """The names asked for, in the order of `known`, all of them for none; raises Rejected with the nearest right name."""
    for name in asked:
        if name not in known:
            near = config.nearest(name, list(known)) or f"; there are {', '.join(known)}"
            raise Rejected(f"unknown {kind} {name!r}{near}", code=f"unknown_{kind}")
    return tuple(name for name in known if not asked or name in asked)
