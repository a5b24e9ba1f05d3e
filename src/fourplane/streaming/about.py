"""What people want to know of a title before they press play, and where and when it may be shown.

A series is the sum of its episodes: titles that name it with season and number. Regions and dates are the licence's: a title
outside of them is neither listed nor played there. Stored as JSON beside the title, its schema number first.
"""

import msgspec

from fourplane.foundation.errors import Forbidden, Rejected

WORDS_MAX = 100
LIST_MAX = 40
YEARS = (1880, 2200)


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a title in fields; empty ones are unknown."""

    schema: int = 1
    series: str = ""
    season: int = 0
    episode: int = 0
    year: int = 0
    genres: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    rating: str = ""  # of a youth board, such as 12 or PG
    regions: tuple[str, ...] = ()  # empty: everywhere
    from_us: int = 0  # UTC; 0: since ever
    until_us: int = 0  # 0: for ever

    def check(self) -> "About":
        """The same, tidied; raises Rejected for what cannot be true."""
        lists = {name: _tidy(getattr(self, name), name) for name in ("genres", "cast", "regions")}
        series, rating = " ".join(self.series.split()), " ".join(self.rating.split())
        if len(series) > WORDS_MAX or len(rating) > 20:
            raise Rejected("the name of a series or a rating is too long", code="bad_about")
        if self.year and not YEARS[0] <= self.year <= YEARS[1]:
            raise Rejected(f"a year lies between {YEARS[0]} and {YEARS[1]}", code="bad_about")
        if not (0 <= self.season <= 1_000 and 0 <= self.episode <= 10_000):
            raise Rejected("a season or an episode has no such number", code="bad_about")
        if self.from_us < 0 or self.until_us < 0 or (self.until_us and self.until_us <= self.from_us):
            raise Rejected("a title is shown from one moment until a later one", code="bad_about")
        return msgspec.structs.replace(self, series=series, rating=rating, **lists)

    def may_be_seen(self, region: str, now_us: int) -> bool:
        """Whether the licence covers this region now."""
        return (not self.regions or region in self.regions) and self.from_us <= now_us < (self.until_us or 1 << 62)

    def admit(self, region: str, now_us: int) -> None:
        """Raise Forbidden with the reason when it does not."""
        if self.regions and region not in self.regions:
            raise Forbidden("this title is not shown in your region", code="not_in_region")
        if now_us < self.from_us:
            raise Forbidden("this title is not out yet", code="not_yet")
        if self.until_us and now_us >= self.until_us:
            raise Forbidden("this title is no longer shown", code="no_longer")


def decode(stored: str) -> About:
    """What was stored; an empty text is a title that nobody described."""
    return msgspec.json.decode(stored, type=About) if stored else About()


def _tidy(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))
    if len(kept) > LIST_MAX or any(len(word) > WORDS_MAX for word in kept):
        raise Rejected(f"{name} has too many or too long entries", code="bad_about")
    return kept
