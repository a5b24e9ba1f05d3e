import stat

import pytest
from tests.unit.service.test_accounts import StillClock

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt, Rejected, Unauthenticated
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer


def test_token_carries_its_claims_to_its_audience_only():
    signer = Signer(KeyRing.in_memory())
    token = signer.sign("media", {"title": "ttl_1", "user": "ä"}, 60)
    assert signer.verify("media", token) == {"title": "ttl_1", "user": "ä"}
    with pytest.raises(Unauthenticated):
        signer.verify("socket", token)


def test_changed_token_is_refused_whatever_is_changed():
    signer = Signer(KeyRing.in_memory())
    token = signer.sign("media", {"a": "b"}, 60)
    for place in range(len(token)):
        if token[place] != "." and place != len(token) - 1:  # the last letter holds two unused bits
            changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            with pytest.raises(Unauthenticated):
                signer.verify("media", changed)


@pytest.mark.parametrize("rubbish", ["", ".", "..", "a.b.c", "ä.ö.ü", "x" * 5000, "a" * 100])
def test_rubbish_is_no_token(rubbish):
    with pytest.raises(Unauthenticated):
        Signer(KeyRing.in_memory()).verify("media", rubbish)


def test_token_lapses():
    still = StillClock()
    with clock.installed(still):
        signer = Signer(KeyRing.in_memory())
        token = signer.sign("media", {}, 10)
        still.s += 9
        signer.verify("media", token)
        still.s += 2
        with pytest.raises(Unauthenticated) as lapsed:
            signer.verify("media", token)
        assert lapsed.value.reason == "token_expired"
        with pytest.raises(Rejected):
            signer.sign("media", {}, 0)


def test_rotated_key_signs_and_the_old_one_still_verifies_until_it_is_retired(tmp_path):
    still = StillClock()
    with clock.installed(still):
        path = tmp_path / "secrets" / "tokens.json"
        ring = KeyRing.open(path)
        other_worker = Signer(KeyRing.open(path))
        old = Signer(ring).sign("media", {}, 100)
        assert other_worker.verify("media", old) == {}
        still.s += 50
        ring.rotate()
        new = Signer(ring).sign("media", {}, 100)
        assert Signer(ring).verify("media", old) == {}
        assert other_worker.verify("media", new) == {}, "an unknown key is looked up in the file"
        assert ring.retire(older_than_s=20) == 1
        with pytest.raises(Unauthenticated):
            Signer(ring).verify("media", old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(KeyRing.open(path)) == 1


def test_broken_key_file_is_corrupt(tmp_path):
    path = tmp_path / "tokens.json"
    path.write_bytes(b'{"schema": 1, "keys"')
    with pytest.raises(Corrupt):
        KeyRing.open(path)
    path.write_bytes(b'{"schema": 9, "keys": []}')
    with pytest.raises(Corrupt):
        KeyRing.open(path)
