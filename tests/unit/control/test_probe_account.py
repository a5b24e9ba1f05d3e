"""The account that probes use, also where the database is older than the folder of the secrets."""

from tests.unit.service.running import run_with_sql, started

from fourplane.control.observability import _guest
from fourplane.foundation.ids import IdGenerator
from fourplane.service.accounts import Accounts, AccountSettings
from fourplane.service.passwords import ScryptCost

QUICK = AccountSettings(scrypt=ScryptCost(n=16), threads=1)


def test_probes_can_log_in_again_when_their_secret_is_another_one(tmp_path):
    async def body(sql):
        accounts = Accounts(sql, ids=IdGenerator(), settings=QUICK)
        lifecycle = await started(accounts)
        try:
            before = await _guest(accounts, tmp_path / "lost")
            for secrets in ("lost", "new", "new"):
                guest = await _guest(accounts, tmp_path / secrets)
                assert (await accounts.verify_password(guest.name, guest.password)).name == guest.name
            assert guest.password != before.password
            assert (tmp_path / "new" / "probe").stat().st_mode & 0o777 == 0o600
        finally:
            await lifecycle.stop()

    run_with_sql(body)
