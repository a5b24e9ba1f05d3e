"""Ids that keep the stored messages of one owner (a person or a room) in the order in which they came.

Records sort by id, and ids carry the wall clock, which may be set back while the process is down: what came later would be read
first. So each owner goes on behind the largest id it has stored, as a hybrid logical clock does (Kulkarni and others, 2014,
"Logical Physical Clocks"): the time while it runs forward, one more than the last otherwise. The persisted half of that
clock is the records themselves; whoever loads an owner reads its last key. Ids are unique inside their owner's partition,
which is all that XEP-0359 promises. While the clock is behind, an id says a later time than it was; the record has the
true one.
"""

from fourplane.foundation.ids import IdGenerator

ID_MAX = (1 << 63) - 1


def next_id(ids: IdGenerator, last: int) -> int:
    """An id larger than `last`."""
    found = ids.next()
    return found if found > last else last + 1
