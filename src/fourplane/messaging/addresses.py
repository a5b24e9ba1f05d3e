"""XMPP addresses (RFC 7622): local@domain/resource, prepared once and remembered.

Preparing costs up to 17 us through PRECIS and 1 us for plain ASCII, so a bounded table keeps what was seen; when it is
full it is dropped whole, which is cheaper on the hot path than any order of eviction.
"""

import re
from functools import lru_cache

from precis_i18n import get_profile

from fourplane.foundation.errors import Rejected

PART_BYTES_MAX = 1_023
REMEMBERED_MAX = 100_000
_FORBIDDEN_LOCAL = frozenset("\"&'/:<>@ ")
_PLAIN_LOCAL = re.compile(r"[a-z0-9._\-+]{1,255}\Z")
_PLAIN_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.\-]{0,250}[a-z0-9])?\Z")
_PLAIN_RESOURCE = re.compile(r"[A-Za-z0-9._\-+=]{1,255}\Z")


class Address:
    """A prepared address; `bare` and `full` are texts ready to compare. Never built by hand: use `parse`."""

    __slots__ = ("bare", "domain", "full", "local", "resource")

    def __init__(self, local: str, domain: str, resource: str) -> None:
        self.local = local
        self.domain = domain
        self.resource = resource
        self.bare = f"{local}@{domain}" if local else domain
        self.full = f"{self.bare}/{resource}" if resource else self.bare

    @classmethod
    def beside(cls, base: "Address", resource: str) -> "Address":
        """The address of one device of `base`, sharing its texts."""
        made = cls.__new__(cls)
        made.local, made.domain, made.bare = base.local, base.domain, base.bare
        made.resource = resource
        made.full = f"{base.bare}/{resource}"
        return made

    def __repr__(self) -> str:
        return f"Address({self.full!r})"


_seen: dict[str | None, Address] = {}
seen = _seen.get  # the prepared address if a text was prepared before: the hot path's first look


def parse(text: str) -> Address:
    """The prepared address; raises Rejected (`jid_malformed`) when it is none."""
    found = _seen.get(text)
    if found is not None:
        return found
    address = _prepare(text)
    if len(_seen) >= REMEMBERED_MAX:
        _seen.clear()
    _seen[address.full if address.full == text else text] = address
    return address


def try_parse(text: str) -> Address | None:
    """The prepared address, or None when it is none."""
    try:
        return parse(text)
    except Rejected:
        return None


def prepare_local(text: str) -> str:
    """A user's name as it is stored and compared; raises Rejected."""
    if _PLAIN_LOCAL.match(text):
        return text
    try:
        local: str = get_profile("UsernameCaseMapped").enforce(text)
    except (UnicodeError, ValueError):
        raise Rejected(f"not a user name: {text[:60]!r}", code="jid_malformed") from None
    if not local or not _FORBIDDEN_LOCAL.isdisjoint(local) or len(local.encode()) > PART_BYTES_MAX:
        raise Rejected(f"not a user name: {text[:60]!r}", code="jid_malformed")
    return local


def prepare_resource(text: str) -> str:
    """A resource as it is stored and compared; raises Rejected."""
    if _PLAIN_RESOURCE.match(text):
        return text
    try:
        resource: str = get_profile("OpaqueString").enforce(text)
    except (UnicodeError, ValueError):
        raise Rejected(f"not a resource: {text[:60]!r}", code="jid_malformed") from None
    if not resource or len(resource.encode()) > PART_BYTES_MAX:
        raise Rejected(f"not a resource: {text[:60]!r}", code="jid_malformed")
    return resource


@lru_cache(maxsize=1_024)
def prepare_domain(text: str) -> str:
    """A domain in lower case with internationalised labels decoded; raises Rejected."""
    lowered = text.rstrip(".").lower()
    if _PLAIN_DOMAIN.match(lowered) and "xn--" not in lowered:
        return lowered
    if lowered.startswith("[") and lowered.endswith("]") and re.fullmatch(r"\[[0-9a-f:.]{2,45}\]", lowered):
        return lowered
    try:
        decoded = lowered.encode("idna").decode("idna")
    except (UnicodeError, ValueError):
        raise Rejected(f"not a domain: {text[:60]!r}", code="jid_malformed") from None
    if not decoded or any(letter in decoded for letter in " \"&'/:<>@"):
        raise Rejected(f"not a domain: {text[:60]!r}", code="jid_malformed")
    return decoded


def _prepare(text: str) -> Address:
    bare, slash, resource = text.partition("/")
    base = _seen.get(bare) if slash and resource else None
    if base is not None and not base.resource:
        return Address.beside(base, prepare_resource(resource))
    local, at, domain = bare.partition("@")
    if not at:
        local, domain = "", bare
    elif not local:
        raise Rejected(f"an address without a name before its @: {text[:60]!r}", code="jid_malformed")
    if not domain or (slash and not resource):
        raise Rejected(f"not an address: {text[:60]!r}", code="jid_malformed")
    return Address(
        prepare_local(local) if local else "",
        prepare_domain(domain),
        prepare_resource(resource) if resource else "",
    )
