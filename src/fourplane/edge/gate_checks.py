"""What the gateway looks at before a handler runs: hosts, origins, tokens, request ids. Pure functions over header values.

Host: a page of another name that resolves to this machine (DNS rebinding) carries a Host we do not know. Origin: a browser
tells which page an unsafe request or a WebSocket comes from; it has to be ours. Both are checked before identity, because a
cookie proves who the browser belongs to, not which page asked.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from fourplane.foundation import clock

COOKIE = "fourplane_session"
KNOWN_MAX = 64
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def host_name(host: str) -> str:
    """The name in a Host value, without port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")


class HostCheck:
    """The hosts this deployment answers to; `*` allows all."""

    __slots__ = ("_allowed", "_everything", "_known")

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._everything = "*" in self._allowed
        self._known: set[str] = set()

    def passes(self, host: str) -> bool:
        """Whether a request for this Host is meant for us."""
        if host in self._known or self._everything:
            return True
        if host_name(host) not in self._allowed:
            return False
        if len(self._known) < KNOWN_MAX:  # ports differ, so the set is bounded
            self._known.add(host)
        return True


def origin_passes(origin: str | None, host: str, allowed: frozenset[str]) -> bool:
    """Whether a page of `origin` may act here: no browser, the same host and port, or an origin that is listed."""
    if origin is None:
        return True
    if origin in allowed:
        return True
    try:
        return origin.lower() != "null" and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def session_token(cookie: str | None, authorization: str | None) -> str | None:
    """The session token of a request: a bearer header wins over a cookie."""
    if authorization is not None and authorization[:7].lower() == "bearer ":
        return authorization[7:].strip() or None
    if cookie is None or COOKIE not in cookie:
        return None
    for part in cookie.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"') or None
    return None


def session_cookie(token: str, *, secure: bool, age_s: int) -> str:
    """A Set-Cookie value that keeps (or with an empty token, removes) the session."""
    tail = "; Secure" if secure else ""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={age_s}{tail}"


def request_id(given: str | None) -> str:
    """The caller's id for this request if it is a sane one, otherwise a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"{clock.random().getrandbits(64):016x}"
