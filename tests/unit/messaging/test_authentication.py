"""SCRAM against the examples of the RFCs, and every way to get it wrong."""

import base64
import hashlib
import hmac

import pytest

from fourplane.messaging.authentication import SaslError, Scram, parse_plain
from fourplane.service.passwords import derive_scram

# RFC 7677, section 3
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SALT = base64.b64decode(b"W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="


def exchange(mechanism="SCRAM-SHA-256", first=FIRST, binding=b"", *, plus_offered=False):
    scram = Scram(mechanism, binding, plus_offered=plus_offered)
    scram.first(first)
    keys = derive_scram("SCRAM-SHA-256", b"pencil", SALT, 4_096)
    return scram, scram.challenge(keys, base64.b64decode(b"AAAA"))


def proof(first_bare, challenge, header=b"n,,", password=b"pencil"):
    fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
    without = b"c=" + base64.b64encode(header) + b",r=" + fields[b"r"]
    salted = hashlib.pbkdf2_hmac("sha256", password, SALT, 4_096)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client_key).digest()
    signature = hmac.digest(stored, first_bare + b"," + challenge + b"," + without, "sha256")
    return without + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))


def test_the_example_of_rfc_7677_is_reproduced(monkeypatch):
    keys = derive_scram("SCRAM-SHA-256", b"pencil", SALT, 4_096)
    scram = Scram("SCRAM-SHA-256", None, plus_offered=False)
    assert scram.first(FIRST) == "user"
    monkeypatch.setattr(
        base64, "b64encode", lambda raw, _real=base64.b64encode: NONCE if raw == b"nonce" else _real(raw)
    )
    challenge = scram.challenge(keys, b"nonce")
    assert challenge == b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert scram.finish(FINAL) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_a_right_proof_passes_and_a_wrong_password_does_not():
    scram, challenge = exchange()
    assert scram.finish(proof(FIRST[3:], challenge)).startswith(b"v=")
    scram, challenge = exchange()
    with pytest.raises(SaslError) as caught:
        scram.finish(proof(FIRST[3:], challenge, password=b"pencils"))
    assert caught.value.condition == "not-authorized"


def test_channel_binding_covers_the_certificate():
    first = b"p=tls-server-end-point,,n=user,r=abc"
    header = b"p=tls-server-end-point,,"
    scram, challenge = exchange("SCRAM-SHA-256-PLUS", first, b"cert", plus_offered=True)
    assert scram.finish(proof(b"n=user,r=abc", challenge, header + b"cert"))
    scram, challenge = exchange("SCRAM-SHA-256-PLUS", first, b"cert", plus_offered=True)
    with pytest.raises(SaslError):
        scram.finish(proof(b"n=user,r=abc", challenge, header + b"other"))


def test_a_removed_offer_of_channel_binding_is_noticed():
    with pytest.raises(SaslError):
        exchange(first=b"y,,n=user,r=abc", plus_offered=True)
    exchange(first=b"y,,n=user,r=abc", plus_offered=False)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=user",
        b"n,,r=x",
        b"n,,n=,r=x",
        b"n,,n=a=b,r=x",
        b"n,,m=1,n=u,r=x",
        b"x,,n=u,r=x",
        b"\xff" * 9,
    ],
)
def test_malformed_first_messages_are_named(first):
    with pytest.raises(SaslError) as caught:
        exchange(first=first)
    assert caught.value.condition == "malformed-request"


def test_escapes_in_names_are_undone():
    scram = Scram("SCRAM-SHA-1", None, plus_offered=False)
    assert scram.first(b"n,,n=a=2Cb=3D,r=x") == "a,b="


def test_plain_takes_name_and_password():
    assert parse_plain(b"\0user\0secret") == ("user", "secret")
    for wrong in (b"", b"\0user", b"\0\0x", b"other\0user\0x", b"\0\xff\0x"):
        with pytest.raises(SaslError):
            parse_plain(wrong)
