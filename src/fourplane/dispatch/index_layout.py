"""How drivers lie in memory and on the wire: the records that the kernels, the index and the feed share."""

import numpy as np

LEVEL_MAX = 14  # a cell's face, i and j must fit 31 bits

# One position as it travels: 16 bytes little endian. `sequence` grows per driver (wraps); places in 1e-7 degrees.
UPDATE = np.dtype([("driver", "<u4"), ("lat", "<i4"), ("lng", "<i4"), ("sequence", "<u4")])
# By driver number. `slot` is -1 while the driver is not on the map; `seen` counts clock ticks.
DRIVER = np.dtype([("key", "<u4"), ("slot", "<i4"), ("seen", "<u4"), ("sequence", "<u4")])
# By place in the arena, all drivers of a cell together.
SLOT = np.dtype([("driver", "<u4"), ("lat", "<i4"), ("lng", "<i4"), ("state", "<u4")])
# One cell: its chunk (8 << size slots, size -1: none yet), its middle as a unit vector, the angle to its farthest corner.
BUCKET = np.dtype(
    [
        ("key", "<i8"), ("start", "<i8"), ("count", "<i8"), ("size", "<i8"),
        ("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("radius", "<f8"),
    ]
)  # fmt: skip

# Roads as the ETA walks them: one edge, and what a search knows of a node (`seen`, `wanted`: by which search).
LINK = np.dtype([("head", "<i4"), ("cost", "<f4")])
MARK = np.dtype([("best", "<f8"), ("seen", "<i4"), ("wanted", "<i4")])
# The same for a way towards one place: seconds so far, at least so many more, and the last edge.
WAY = np.dtype([("best", "<f8"), ("rest", "<f8"), ("seen", "<i4"), ("by", "<i4")])
# A node that waits in one of a search's buckets, and the next one of that bucket.
ENTRY = np.dtype([("key", "<f8"), ("node", "<i4"), ("next", "<i4")])
BUCKET_RING = 256

# Places in the index's `meta` column.
(
    META_BUCKETS, META_ARENA_TOP, META_LIVE, META_LATE, META_JUMPS, META_WRONG, META_UNKNOWN, META_CROSSED, META_FOREIGN,
    META_WAITING,
) = range(10)  # fmt: skip
CHUNKS = 10  # here begin the heads of the lists of free chunks, one per size
META_COUNT = CHUNKS + 32

# A driver's state word: what a search filters by with `state & mask == wanted`.
AVAILABLE, RESERVED, ON_TRIP, PAUSED = 1, 2, 3, 4
STATUS_MASK = 0xF
VEHICLE_SHIFT, VEHICLE_MASK = 4, 0xF0
# In a slot the word shares its 32 bits: above it how far the driver may go before it can leave its cell (1e-7 degrees),
# and the topmost bit while a leap waits to be confirmed.
WORD_MASK, ROOM_SHIFT = 0xFF, 8
