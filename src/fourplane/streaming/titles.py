"""The catalog of titles: what can be watched, and which version of it is current.

A title points to one version; publishing is one UPDATE of that pointer, so a re-import replaces a title at once for new
players and never for those who watch. The older version is deleted after its last signed URL has lapsed.
"""

import contextlib

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Row, Sql, Statement
from fourplane.streaming.about import About, decode
from fourplane.streaming.packaging import TitleIndex

NAME_MAX = 200
DESCRIPTION_MAX = 4_000
LISTED_MAX = 500
STORE_PLAYS_S = 2.0
_SELECT = (
    "SELECT id, name, description, version, duration_s, height, rungs, bytes, plays, created_us, published_us, about"
    " FROM titles"
)
_INSERT = (
    "INSERT INTO titles (id, name, description, version, duration_s, height, rungs, bytes, plays, created_us,"
    " published_us, about) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
)


class Title(msgspec.Struct, frozen=True):
    """One title as it stands in the catalog; `version` is empty while nothing is published."""

    id: str
    name: str
    description: str
    version: str
    duration_s: float
    height: int
    rungs: int
    bytes: int
    plays: int
    created_us: int
    published_us: int
    about: About = About()


class Titles:
    """Titles in the sql store."""

    def __init__(self, sql: Sql, ids: IdGenerator) -> None:
        self._sql = sql
        self._ids = ids
        self._plays: dict[str, int] = {}  # counted and not stored yet
        self.reads = 0

    async def create(self, name: str, description: str = "") -> Title:
        """A new title without a version; raises Rejected for an empty or overlong name."""
        name = " ".join(name.split())
        if not name or len(name) > NAME_MAX or len(description) > DESCRIPTION_MAX:
            raise Rejected(f"a title has a name of 1 to {NAME_MAX} letters", code="bad_name")
        title = Title(self._ids.text("title"), name, description, "", 0.0, 0, 0, 0, 0, clock.now_us(), 0)
        await self._sql.commit([Statement(_INSERT, (*msgspec.structs.astuple(title)[:11], ""))])
        return title

    async def get(self, title_id: str) -> Title:
        """The title; raises NotFound."""
        self.reads += 1
        rows = await self._sql.read(_SELECT + " WHERE id = ?1", title_id)
        if not rows:
            raise NotFound("there is no such title", code="no_such_title")
        return _title(rows[0])

    async def by_name(self, name: str, about: About = About()) -> Title | None:
        """The newest title of this name, so that a re-import replaces instead of adding; an episode only replaces itself."""
        wanted = " ".join(name.split())
        rows = await self._sql.read(_SELECT + " WHERE name = ?1 ORDER BY created_us DESC LIMIT ?2", wanted, LISTED_MAX)
        place = (about.series, about.season, about.episode)
        for title in map(_title, rows):
            if not about.series or (title.about.series, title.about.season, title.about.episode) == place:
                return title
        return None

    async def all(self) -> list[Title]:
        """Titles, the most recently published first."""
        self.reads += 1
        rows = await self._sql.read(_SELECT + f" ORDER BY published_us DESC, created_us DESC LIMIT {LISTED_MAX}")
        return [_title(row) for row in rows]

    async def publish(self, index: TitleIndex, stored_bytes: int) -> str:
        """Make a version the current one; returns the version it replaces (empty for none)."""
        before = await self.get(index.title)
        top = index.video[-1].height if index.video else 0
        await self._sql.commit(
            [
                Statement(
                    "UPDATE titles SET version = ?2, duration_s = ?3, height = ?4, rungs = ?5, bytes = ?6,"
                    " published_us = ?7 WHERE id = ?1",
                    (
                        index.title,
                        index.version,
                        index.duration_s,
                        top,
                        len(index.video),
                        stored_bytes,
                        clock.now_us(),
                    ),
                    expect_rows=1,
                    label="publish",
                )
            ]
        )
        return before.version

    async def describe(self, title_id: str, name: str, description: str, about: About) -> Title:
        """Change what people read of a title; raises Rejected for what cannot be true, NotFound."""
        name = " ".join(name.split())
        if not name or len(name) > NAME_MAX or len(description) > DESCRIPTION_MAX:
            raise Rejected(f"a title has a name of 1 to {NAME_MAX} letters", code="bad_name")
        stored = msgspec.json.encode(about.check()).decode()
        await self.get(title_id)
        update = "UPDATE titles SET name = ?2, description = ?3, about = ?4 WHERE id = ?1"
        await self._sql.commit([Statement(update, (title_id, name, description, stored), expect_rows=1)])
        return await self.get(title_id)

    def count_play(self, title_id: str) -> None:
        """One more play, what popularity is made of; stored a little later, so that a start waits for no disk."""
        self._plays[title_id] = self._plays.get(title_id, 0) + 1

    async def store_plays(self) -> None:
        """Write the plays counted since the last time; after a crash those of the last seconds are missing."""
        counted, self._plays = self._plays, {}
        update = "UPDATE titles SET plays = plays + ?2 WHERE id = ?1"
        if counted:
            try:
                await self._sql.commit([Statement(update, (title, plays)) for title, plays in counted.items()])
            except FourplaneError:
                for title, plays in counted.items():
                    self._plays[title] = self._plays.get(title, 0) + plays
                raise

    async def keep_plays(self) -> None:
        """Store plays every few seconds until cancelled."""
        while True:
            await clock.sleep(STORE_PLAYS_S)
            with contextlib.suppress(FourplaneError):  # they are kept and written the next time
                await self.store_plays()

    async def remove(self, title_id: str) -> None:
        """Take a title out of the catalog."""
        await self._sql.commit([Statement("DELETE FROM titles WHERE id = ?1", (title_id,))])


def _title(row: Row) -> Title:
    fields: dict[str, object] = dict(zip(Title.__struct_fields__, row, strict=True))
    fields["about"] = decode(str(row[-1] or ""))
    return msgspec.convert(fields, Title)
