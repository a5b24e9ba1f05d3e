import hashlib
import hmac

import pytest
from tests.unit.service.running import run_with_sql, started

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Overloaded, Rejected, Unauthenticated
from fourplane.foundation.ids import IdGenerator
from fourplane.service.accounts import Accounts, AccountSettings, NewAccount
from fourplane.service.passwords import ScryptCost

QUICK = AccountSettings(scrypt=ScryptCost(n=16), threads=1)


class StillClock(clock.MachineSource):
    """The machine's randomness and a clock that tests move."""

    def __init__(self) -> None:
        super().__init__()
        self.s = 1_800_000_000.0

    def now_us(self) -> int:
        return int(self.s * 1e6)

    def monotonic_s(self) -> float:
        return self.s


def with_accounts(main):
    async def body(sql):
        accounts = Accounts(sql, ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(accounts)
        try:
            await main(accounts)
        finally:
            await lifecycle.stop()

    run_with_sql(body)


def test_password_opens_the_account_in_any_spelling_of_its_name():
    async def main(accounts):
        made = await accounts.create("Änne", "correct horse", roles=("buyer", "admin"))
        assert made.name == "änne"
        assert made.roles == {"admin", "buyer"}
        assert await accounts.verify_password("ÄNNE", "correct horse") == made
        assert await accounts.find("A\u0308nne") == made

    with_accounts(main)


def test_wrong_password_and_unknown_name_look_the_same():
    async def main(accounts):
        await accounts.create("anna", "secret")
        with pytest.raises(Unauthenticated) as wrong:
            await accounts.verify_password("anna", "guess")
        with pytest.raises(Unauthenticated) as unknown:
            await accounts.verify_password("nobody", "guess")
        with pytest.raises(Unauthenticated):
            await accounts.verify_password("no body", "guess")
        assert wrong.value.reason == unknown.value.reason == "wrong_credentials"
        assert str(wrong.value) == str(unknown.value)
        assert await accounts.find("no body") is None

    with_accounts(main)


def test_taken_name_is_a_conflict_but_not_in_another_tenant():
    async def main(accounts):
        await accounts.create("anna", "one")
        with pytest.raises(Conflict) as taken:
            await accounts.create("ANNA", "two")
        assert taken.value.reason == "name_taken"
        other = await accounts.create("anna", "two", tenant="shop")
        assert (await accounts.verify_password("anna", "two", tenant="shop")) == other

    with_accounts(main)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "x" * 300, "a/b", "tab\t", "\x00"])
def test_impossible_names_are_refused(name):
    async def main(accounts):
        with pytest.raises(Rejected) as refused:
            await accounts.create(name, "secret")
        assert refused.value.reason == "bad_name"

    with_accounts(main)


def test_scram_keys_prove_the_password_without_holding_it():
    async def main(accounts):
        await accounts.create("anna", "pencil")
        for mechanism, algorithm in (("SCRAM-SHA-256", "sha256"), ("SCRAM-SHA-1", "sha1")):
            keys = await accounts.scram_keys("Anna", mechanism)
            salted = hashlib.pbkdf2_hmac(algorithm, b"pencil", keys.salt, keys.iterations)
            client_key = hmac.digest(salted, b"Client Key", algorithm)
            assert hashlib.new(algorithm, client_key).digest() == keys.stored_key
            assert hmac.digest(salted, b"Server Key", algorithm) == keys.server_key
            assert keys.iterations >= 4096
        assert await accounts.scram_keys("nobody", "SCRAM-SHA-256") is None
        assert await accounts.scram_keys("anna", "SCRAM-MD5") is None

    with_accounts(main)


def test_scram_decoy_looks_like_keys_and_stays_the_same():
    async def main(accounts):
        decoy = accounts.scram_decoy("ghost", "SCRAM-SHA-1")
        assert decoy == accounts.scram_decoy("ghost", "SCRAM-SHA-1")
        assert decoy != accounts.scram_decoy("other", "SCRAM-SHA-1")
        assert (len(decoy.salt), len(decoy.stored_key)) == (16, 20)

    with_accounts(main)


def test_rfc7677_example_keys():
    import base64

    from fourplane.service.passwords import derive_scram

    keys = derive_scram("SCRAM-SHA-256", b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    signature = base64.b64encode(hmac.digest(keys.server_key, message.encode(), "sha256"))
    assert signature == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_accounts_made_in_bulk_may_share_derived_keys():
    async def main(accounts):
        keys = await accounts.derive_keys("shared")
        made = await accounts.create_many([NewAccount(f"user{n}", keys=keys) for n in range(1200)])
        assert len({account.id for account in made}) == 1200
        assert (await accounts.verify_password("user1199", "shared")).name == "user1199"
        with pytest.raises(Conflict):
            await accounts.create_many([NewAccount("fresh", keys=keys), NewAccount("user1", keys=keys)])
        assert await accounts.find("fresh") is None

    with_accounts(main)


def test_session_knows_its_account_until_it_is_closed():
    async def main(accounts):
        anna = await accounts.create("anna", "secret", roles=("buyer",))
        token = await accounts.open_session(anna)
        identity = await accounts.session(token)
        assert (identity.account_id, identity.name, identity.roles, identity.tenant) == (
            anna.id,
            "anna",
            {"buyer"},
            "main",
        )
        assert await accounts.session("0" * 32) is None
        assert await accounts.session("rubbish") is None
        await accounts.close_session(token)
        assert await accounts.session(token) is None

    with_accounts(main)


def test_token_of_a_session_is_not_stored():
    async def main(sql):
        accounts = Accounts(sql, ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(accounts)
        token = await accounts.open_session(await accounts.create("anna", "secret"))
        [row] = await sql.read("SELECT token_hash FROM account_sessions")
        assert row[0] == hashlib.sha256(token.encode()).digest()
        await lifecycle.stop()

    run_with_sql(main)


def test_session_lapses():
    async def main(accounts):
        still = StillClock()
        with clock.installed(still):
            token = await accounts.open_session(await accounts.create("anna", "secret"))
            assert await accounts.session(token)
            still.s += 15 * 86_400
            assert await accounts.session(token) is None

    with_accounts(main)


def test_new_password_ends_sessions_and_new_roles_are_seen_at_once():
    async def main(accounts):
        anna = await accounts.create("anna", "old")
        token = await accounts.open_session(anna)
        await accounts.session(token)
        await accounts.set_roles(anna, ["driver"])
        assert (await accounts.session(token)).roles == {"driver"}
        await accounts.set_password(anna, "new")
        assert await accounts.session(token) is None
        await accounts.verify_password("anna", "new")
        with pytest.raises(Unauthenticated):
            await accounts.verify_password("anna", "old")

    with_accounts(main)


def test_deleted_account_leaves_nothing():
    async def main(accounts):
        anna = await accounts.create("anna", "secret")
        token = await accounts.open_session(anna)
        await accounts.delete(anna)
        assert await accounts.find("anna") is None
        assert await accounts.session(token) is None
        assert await accounts.scram_keys("anna", "SCRAM-SHA-256") is None

    with_accounts(main)


def test_wrong_passwords_make_the_name_wait_and_time_forgives():
    async def main(accounts):
        still = StillClock()
        with clock.installed(still):
            await accounts.create("anna", "secret")
            for _ in range(5):
                with pytest.raises(Unauthenticated):
                    await accounts.verify_password("Anna", "guess")
            with pytest.raises(Overloaded) as waiting:
                await accounts.verify_password("anna", "secret")
            assert 0 < waiting.value.retry_after_s <= 1
            with pytest.raises(Overloaded):
                accounts.admit_login("anna")
            still.s += 1.1
            assert (await accounts.verify_password("anna", "secret")).name == "anna"
            assert accounts.statistics().throttled == 2

    with_accounts(main)


def test_operator_link_works_once():
    async def main(accounts):
        link = await accounts.operator_link()
        identity = await accounts.session(await accounts.redeem(link))
        assert identity.roles == {"operator"}
        with pytest.raises(Unauthenticated):
            await accounts.redeem(link)
        second = await accounts.redeem(await accounts.operator_link())
        assert (await accounts.session(second)).account_id == identity.account_id

    with_accounts(main)


def test_somebody_elses_account_named_operator_gets_no_operator_session():
    async def main(accounts):
        await accounts.create("operator", "mine")
        with pytest.raises(Unauthenticated):
            await accounts.redeem(await accounts.operator_link())

    with_accounts(main)
