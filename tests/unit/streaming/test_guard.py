"""Who may have a segment: addresses that were signed, for this title, and have not lapsed."""

import pytest

from fourplane.foundation.errors import Forbidden, Unauthenticated
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer
from fourplane.streaming.playback import AUDIENCE, MediaGuard

CLAIMS = {"path": "/v/t/v/", "session": "s"}


@pytest.fixture
def signer(tmp_path):
    return Signer(KeyRing.open(tmp_path / "keys.json"))


def address(token, path="/v/t/v/360p/0.m4s"):
    return f"/t/{token}{path}".encode()


def test_a_signed_address_leads_to_its_object(signer):
    guard = MediaGuard(signer)
    for _ in range(2):  # verified, then remembered
        assert guard(address(signer.sign(AUDIENCE, CLAIMS, 60.0)) + b"?CMCD=x") == b"/v/t/v/360p/0.m4s"


def test_forged_lapsed_and_foreign_tokens_are_refused(signer, tmp_path):
    guard, good = MediaGuard(signer), signer.sign(AUDIENCE, CLAIMS, 60.0)
    other = Signer(KeyRing.open(tmp_path / "others.json")).sign(AUDIENCE, CLAIMS, 60.0)
    wrong = [good[:-2] + "xx", good + "x", other, signer.sign(AUDIENCE, CLAIMS, 1e-6)]
    wrong += [signer.sign("another audience", CLAIMS, 60.0), "", "x" * 5_000]
    for token in wrong:
        with pytest.raises(Unauthenticated):
            guard(address(token))
    assert guard.refused == len(wrong)


@pytest.mark.parametrize(
    "path", ["/v/u/v/360p/0.m4s", "/v/t/w/360p/0.m4s", "/v/t/v/../../u/v/0.m4s", "/v/t/v/x/../y", "/"]
)
def test_a_token_of_another_title_opens_nothing(signer, path):
    with pytest.raises(Forbidden) as refused:
        MediaGuard(signer)(address(signer.sign(AUDIENCE, CLAIMS, 60.0), path))
    assert refused.value.reason == "other_title"


def test_an_address_without_a_token_opens_nothing(signer):
    with pytest.raises(Forbidden) as refused:
        MediaGuard(signer)(b"/v/t/v/360p/0.m4s")
    assert refused.value.reason == "no_token"
