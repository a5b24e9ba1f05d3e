"""One round trip logs in, binds and resumes (SASL2, Bind 2); a token does it without the password (FAST)."""

import base64
import hashlib
import hmac
import re

from tests.journeys.messaging.house import PASSWORD
from tests.protocol.messaging.test_client_streams import HEADER, client, in_virtual_time, settled, wire

from fourplane.foundation import clock

SASL2 = "urn:xmpp:sasl:2"
AGENT = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'><software>Tests</software></user-agent>"
FEATURES = "<enable xmlns='urn:xmpp:carbons:2'/><enable xmlns='urn:xmpp:sm:3' resume='true'/>"
BIND = f"<bind xmlns='urn:xmpp:bind:0'><tag>Tests</tag>{FEATURES}</bind>"
ASK = "<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/>"


def authenticate(mechanism, initial, more):
    text = base64.b64encode(initial).decode()
    content = f"<initial-response>{text}</initial-response>{AGENT}{more}"
    return f"<authenticate xmlns='{SASL2}' mechanism='{mechanism}'>{content}</authenticate>".encode()


async def answered(peer, pattern):
    for _ in range(200):
        found = re.search(pattern, peer.got.decode(), re.DOTALL)
        if found:
            return found
        await clock.sleep(0.05)
    raise AssertionError(peer.got)


async def by_password(here, more, name="alice"):
    peer = await wire(here, HEADER)
    bare = f"n={name},r=abcdef".encode()
    peer.transport.write(authenticate("SCRAM-SHA-256", b"n,," + bare, more))
    first = base64.b64decode((await answered(peer, f"<challenge xmlns='{SASL2}'>([^<]+)<")).group(1))
    fields = dict(part.split(b"=", 1) for part in first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=biws,r=" + fields[b"r"]
    signature = hmac.digest(hashlib.sha256(key).digest(), bare + b"," + first + b"," + without, "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
    answer = base64.b64encode(without + b",p=" + proof).decode()
    peer.transport.write(f"<response xmlns='{SASL2}'>{answer}</response>".encode())
    await answered(peer, "</success>.*</stream:features>")
    return peer


async def by_token(here, token, more, name="alice", mac=None):
    proof = mac or hmac.digest(token.encode(), b"Initiator", "sha256")
    fast = "<fast xmlns='urn:xmpp:fast:0'/>"
    return await wire(here, HEADER + authenticate("HT-SHA-256-NONE", name.encode() + b"\0" + proof, fast + more))


def test_one_exchange_binds_and_turns_features_on():
    async def work(here):
        peer = await by_password(here, BIND)
        success = re.search("<success.*</success>", peer.got.decode(), re.DOTALL).group(0)
        session = next(iter(here.messaging.router.users["alice@localhost"].sessions.values()))
        bob = await client(here, "bob")
        bob.message(session.address.full, "hello")
        await settled(bob)
        await answered(peer, "hello")
        return success, session.address.full, session.carbons, session.management is not None

    success, jid, carbons, managed = in_virtual_time(work)
    assert f"<authorization-identifier>{jid}</authorization-identifier>" in success
    assert jid.startswith("alice@localhost/Tests~")
    assert "<bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3' resume='true'" in success
    assert carbons
    assert managed


def test_a_token_logs_in_without_the_password_and_the_server_proves_itself():
    async def work(here):
        first = await by_password(here, BIND + ASK)
        token = re.search("<token [^>]*token='([^']+)'", first.got.decode()).group(1)
        again = await by_token(here, token, BIND)
        data = (await answered(again, "<additional-data>([^<]+)<")).group(1)
        assert base64.b64decode(data) == hmac.digest(token.encode(), b"Responder", "sha256")
        wrong = await by_token(here, token, BIND, mac=b"x" * 32)
        other = await by_token(here, token, BIND, name="bob")
        for peer in (wrong, other):
            await answered(peer, f"<failure xmlns='{SASL2}'><not-authorized")
        await here.accounts.set_password(await here.accounts.find("alice"), "another password")
        after = await by_token(here, token, BIND)
        await answered(after, f"<failure xmlns='{SASL2}'><not-authorized")

    in_virtual_time(work)


def test_a_token_is_over_in_time():
    async def work(here):
        first = await by_password(here, BIND + ASK)
        token = re.search("<token [^>]*token='([^']+)'", first.got.decode()).group(1)
        await clock.sleep(61)
        again = await by_token(here, token, BIND)
        await answered(again, f"<failure xmlns='{SASL2}'><not-authorized")

    in_virtual_time(work, fast_s=60.0)


def test_a_broken_session_goes_on_in_one_round_trip():
    async def work(here):
        first = await by_password(here, BIND + ASK)
        token = re.search("<token [^>]*token='([^']+)'", first.got.decode()).group(1)
        session = next(iter(here.messaging.router.users["alice@localhost"].sessions.values()))
        resume_id = session.management.resume_id
        first.transport.abort()
        await clock.sleep(0.1)
        bob = await client(here, "bob")
        bob.message(session.address.full, "while you were away")
        await settled(bob)
        resume = f"<resume xmlns='urn:xmpp:sm:3' previd='{resume_id}' h='0'/>"
        again = await by_token(here, token, resume + BIND)
        await answered(again, f"<resumed xmlns='urn:xmpp:sm:3' previd='{resume_id}'.*while you were away")
        assert session.stream is not None

    in_virtual_time(work, archive=False)
