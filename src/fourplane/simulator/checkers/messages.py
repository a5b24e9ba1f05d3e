"""Chat: what was acknowledged arrives, nothing is shown twice in one session, and one sender's messages keep their order.

A message that was never acknowledged may be lost, and one that was shown just before a connection broke may come again in
the next session; both are what the protocol allows (XEP-0198), so neither counts.
"""


class MessageBook:
    """Every message by (sender, number); numbers of one sender and reader rise."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[str, str, int]] = {}
        self._acknowledged: set[str] = set()
        self._refused: set[str] = set()
        self._seen: dict[str, set[str]] = {}  # by session of a reader
        self._last: dict[tuple[str, str], int] = {}  # by session of a reader and sender: the highest number so far
        self._readers: dict[str, str] = {}
        self._broken: list[str] = []

    def sent(self, ident: str, sender: str, reader: str, number: int) -> None:
        self._sent[ident] = (sender, reader, number)

    def acknowledged(self, ident: str) -> None:
        """The server took responsibility for it."""
        self._acknowledged.add(ident)

    def refused(self, ident: str) -> None:
        """Its sender was told that it did not arrive, so nothing is owed."""
        self._refused.add(ident)

    def shown(self, ident: str, reader: str, session: str) -> None:
        """It arrived at a reader's session."""
        known = self._sent.get(ident)
        if known is None:
            self._broken.append(f"messages: {reader} was shown {ident}, which nobody sent")
            return
        if known[1] != reader:
            self._broken.append(f"messages: {reader} was shown {ident}, which was for {known[1]}")
        before = self._seen.setdefault(session, set())
        if ident in before:
            self._broken.append(f"messages: {reader} was shown {ident} twice in one session")
        before.add(ident)
        sender, _, number = known
        last = self._last.get((session, sender), -1)
        if last > number:
            self._broken.append(f"messages: {reader} was shown {ident} after number {last} of the same sender")
        self._last[session, sender] = max(last, number)
        self._readers[ident] = reader

    def check(self, *, settled: bool) -> list[str]:
        """What is broken; that something acknowledged is missing is known only when everything has `settled`."""
        broken = list(self._broken)
        if settled:
            owed = self._acknowledged - self._refused
            lost = sorted(owed - self._readers.keys(), key=lambda ident: self._sent[ident][2])
            broken += [f"messages: {ident} to {self._sent[ident][1]} was acknowledged and lost" for ident in lost]
        return broken

    @property
    def counts(self) -> dict[str, int]:
        return {"sent": len(self._sent), "acknowledged": len(self._acknowledged), "shown": len(self._readers)}
