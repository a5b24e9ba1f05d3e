"""Which events a client wants (XEP-0115): its presence carries a digest of its features, and whoever does not know it asks once.

A digest is asked of the first client that shows it, by an iq from the user's own bare address; the answer counts for every
client with the same digest only if it really has that digest (SHA-1 over the sorted features, XEP-0115 section 5.1), so that one
client cannot speak for others. Remembered: the nodes wanted (`node+notify`), for `DIGESTS_MAX` digests.
"""

import base64
import hashlib
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from fourplane.messaging import stanzas
from fourplane.messaging.xml_stream import Stanza

if TYPE_CHECKING:
    from fourplane.messaging.user_session import UserSession

DISCO_INFO = "http://jabber.org/protocol/disco#info"
CAPS = "http://jabber.org/protocol/caps c"
DIGESTS_MAX = 5_000
FEATURES_MAX = 500
WAITING_MAX = 1_000
NOTIFY = "+notify"
NOTHING: frozenset[str] = frozenset()  # one for all sessions
_CAPS = re.compile(rb"<c\s[^>]*xmlns=['\"]http://jabber\.org/protocol/caps['\"][^>]*>")
_PART = re.compile(rb"\s(hash|node|ver)=(?:'([^'<&]{1,300})'|\"([^\"<&]{1,300})\")")


class EntityCaps:
    """Digests of one process and what they stand for."""

    def __init__(self) -> None:
        self._wanted: dict[str, frozenset[str]] = {}
        self._asked: dict[str, tuple[str, str, UserSession]] = {}  # by the id of the question
        self._number = 0

    def look(self, session: "UserSession", stanza: Stanza) -> frozenset[str] | None:
        """The nodes this client wants to hear of; None while it has to be asked, and `answered` will tell."""
        found = _CAPS.search(stanza.raw) if CAPS in stanza.children else None
        if found is None:
            return NOTHING
        parts = {key.decode(): (single or double).decode() for key, single, double in _PART.findall(found.group())}
        ver, node = parts.get("ver", ""), parts.get("node", "")
        if not ver or parts.get("hash") != "sha-1":
            return NOTHING
        known = self._wanted.get(ver)
        if known is None:
            self._ask(session, ver, node)
        return known

    def answered(self, session: "UserSession", stanza: Stanza) -> frozenset[str] | None:
        """A client answered a question of ours: the nodes it wants; None when it was no such answer."""
        asked = self._asked.get(stanza.attributes.get("id", ""))
        if asked is None or asked[2] is not session:
            return None
        del self._asked[stanza.attributes["id"]]
        if stanza.attributes.get("type") != "result":
            return NOTHING
        query = stanzas.tree(stanza).find(f"{{{DISCO_INFO}}}query")
        if query is None:
            return NOTHING
        features = [feature.get("var", "") for feature in query.findall(f"{{{DISCO_INFO}}}feature")][:FEATURES_MAX]
        wanted = frozenset(name.removesuffix(NOTIFY) for name in features if name.endswith(NOTIFY))
        if digest_of(query) == asked[0]:
            if len(self._wanted) >= DIGESTS_MAX:
                self._wanted.clear()
            self._wanted[asked[0]] = wanted
        return wanted

    def _ask(self, session: "UserSession", ver: str, node: str) -> None:
        if len(self._asked) >= WAITING_MAX:  # those who are gone will not answer
            self._asked = {key: asked for key, asked in self._asked.items() if asked[2].stream is not None}
        if len(self._asked) >= WAITING_MAX:
            self._asked.clear()
        self._number += 1
        name = f"caps{self._number}"
        self._asked[name] = (ver, node, session)
        addresses = stanzas.attribute("from", session.user.address.bare) + stanzas.attribute("to", session.address.full)
        about = stanzas.escape(f"{node}#{ver}")
        query = f" id='{name}'><query xmlns='{DISCO_INFO}' node='{about}'/></iq>".encode()
        session.send(b"<iq type='get'" + addresses + query)


def digest_of(query: ET.Element) -> str:
    """The verification string of a disco#info result (XEP-0115 section 5.1), forms included."""
    space = f"{{{DISCO_INFO}}}"
    text = ""
    identities = []
    for one in query.findall(f"{space}identity"):
        language = one.get("{http://www.w3.org/XML/1998/namespace}lang", "")
        identities.append(f"{one.get('category', '')}/{one.get('type', '')}/{language}/{one.get('name', '')}<")
    text += "".join(sorted(identities))
    text += "".join(sorted(f"{one.get('var', '')}<" for one in query.findall(f"{space}feature")))
    forms = []
    for form in query.findall("{jabber:x:data}x"):
        fields = {}
        for field in form.findall("{jabber:x:data}field"):
            fields[field.get("var", "")] = sorted(value.text or "" for value in field.findall("{jabber:x:data}value"))
        kind = "".join(fields.pop("FORM_TYPE", [""])[:1])
        listed = "".join(f"{name}<" + "".join(f"{value}<" for value in fields[name]) for name in sorted(fields))
        forms.append(f"{kind}<{listed}")
    text += "".join(sorted(forms))
    return base64.b64encode(hashlib.sha1(text.encode(), usedforsecurity=False).digest()).decode()
