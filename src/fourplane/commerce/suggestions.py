"""What somebody who has typed a few letters may mean, and which words mean the same.

`Suggestions` holds the catalog's own phrases (departments, styles, product names) sorted by their folded words, each with a
weight; a prefix is two bisections and a look at the heaviest among at most `look_max` of them. Every word of a phrase is an
entry, so "pot" finds "coffee pot". `Synonyms` are groups of words: a product found by one is found by all, because its document
gets the others as aliases when it is indexed; so a query costs nothing more.

Pure; a look-up about 20 us with 100,000 phrases.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from itertools import islice, pairwise

WORDS_IN_PHRASE = 6


def folded(text: str) -> str:
    """Lower case without accents, one space between words."""
    plain = unicodedata.normalize("NFKD", text)
    return " ".join("".join(letter for letter in plain if not unicodedata.combining(letter)).lower().split())


class Suggestions:
    """Phrases by any of their words' beginnings."""

    __slots__ = ("_keys", "_phrases", "_weights")

    def __init__(self, phrases: Mapping[str, int], *, most: int) -> None:
        """The heaviest `most` phrases; equal ones in different spelling count as one."""
        best: dict[str, tuple[int, str]] = {}
        for phrase, weight in phrases.items():
            key = folded(phrase)
            if key and weight > best.get(key, (-1, ""))[0]:
                best[key] = (weight, phrase)
        kept = nlargest(most, best.items(), key=lambda one: (one[1][0], one[0]))
        entries = []
        for key, (weight, phrase) in kept:
            words = key.split(" ")[:WORDS_IN_PHRASE]
            entries += [(" ".join(words[at:]), weight if at == 0 else weight // 2, phrase) for at in range(len(words))]
        entries.sort()
        self._keys = tuple(
            key for key, _, _ in entries
        )  # tuples: the garbage collector need not walk what cannot change
        self._weights = tuple(weight for _, weight, _ in entries)
        self._phrases = tuple(phrase for _, _, phrase in entries)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, typed: str, *, limit: int = 8, look_max: int = 2_000) -> list[str]:
        """The heaviest phrases with a word that begins like this, best first."""
        prefix = folded(typed)
        if not prefix:
            return []
        first = bisect_left(self._keys, prefix)
        behind = bisect_left(self._keys, f"{prefix}\U0010ffff", lo=first)
        among = islice(range(first, behind), look_max)
        best = sorted(
            nlargest(limit * 3, among, key=self._weights.__getitem__), key=lambda at: (-self._weights[at], at)
        )
        return list(dict.fromkeys(self._phrases[at] for at in best))[:limit]


class Synonyms:
    """Groups of words that mean the same; a group's words may be phrases."""

    __slots__ = ("_groups",)

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        self._groups: dict[str, tuple[str, ...]] = {}
        for group in groups:
            words = tuple(dict.fromkeys(folded(word) for word in group))
            for word in words:
                others = (other for other in words if other != word)
                self._groups[word] = tuple(dict.fromkeys((*self._groups.get(word, ()), *others)))

    def of(self, text: str) -> list[str]:
        """What else could be said for the words and pairs of words of a text."""
        words = folded(text).replace("-", " ").split(" ")
        pairs = [f"{one} {two}" for one, two in pairwise(words)]
        found: dict[str, None] = {}
        for word in (*words, *pairs):
            single = word[:-1] if word.endswith("s") and word[:-1] in self._groups else word
            found.update(dict.fromkeys(self._groups.get(word, self._groups.get(single, ()))))
        return [word for word in found if word not in words]
