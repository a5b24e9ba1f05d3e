"""The gateway's own doors: log in, log out, who am I, and the one-time link that `up` prints for the operator."""

from typing import TYPE_CHECKING

import msgspec

from fourplane.edge.gate_checks import session_cookie, session_token
from fourplane.edge.routes import Call, Identity, Priority, Reply, Route

if TYPE_CHECKING:
    from fourplane.service.accounts import Accounts

SESSION_AGE_S = 14 * 86_400


class Login(msgspec.Struct, frozen=True):
    """Name and password of an account."""

    name: str
    password: str


class WhoAmI(msgspec.Struct, frozen=True):
    """The caller as the session proves it; `logged_in` False for a visitor."""

    logged_in: bool
    account_id: str = ""
    name: str = ""
    roles: tuple[str, ...] = ()


class SessionRoutes:
    """Handlers over the accounts service."""

    def __init__(self, accounts: "Accounts", *, secure: bool) -> None:
        self._accounts = accounts
        self._secure = secure

    def routes(self) -> list[Route]:
        """The four doors."""
        return [
            Route(
                method="POST",
                path="/api/session",
                handler=self.log_in,
                summary="Log in: sets the session cookie",
                body=Login,
                answer=WhoAmI,
                body_max=8_192,
                rate_per_s=5.0,
            ),
            Route(method="GET", path="/api/session", handler=self.who_am_i, summary="Who am I?", answer=WhoAmI),
            Route(method="DELETE", path="/api/session", handler=self.log_out, summary="Log out"),
            Route(
                method="GET",
                path="/api/operator",
                handler=self.redeem,
                summary="Become the operator by the one-time link that `fourplane up` prints (?token=...)",
                priority=Priority.CRITICAL,
                rate_per_s=5.0,
            ),
        ]

    async def log_in(self, call: Call[Login]) -> Reply:
        account = await self._accounts.verify_password(call.body.name, call.body.password)
        token = await self._accounts.open_session(account)
        told = _told(Identity(account.id, account.name, account.roles))
        return Reply(
            msgspec.json.encode(told),
            media_type="application/json",
            headers={"set-cookie": self._cookie(token, SESSION_AGE_S), "cache-control": "no-store"},
        )

    async def who_am_i(self, call: Call[None]) -> WhoAmI:
        return WhoAmI(logged_in=False) if call.identity is None else _told(call.identity)

    async def log_out(self, call: Call[None]) -> Reply:
        token = session_token(call.headers.get("cookie"), call.headers.get("authorization"))
        if token is not None:
            await self._accounts.close_session(token)
        return Reply(status=204, headers={"set-cookie": self._cookie("", 0)})

    async def redeem(self, call: Call[None]) -> Reply:
        token = await self._accounts.redeem(call.query.get("token", ""))
        headers = {
            "set-cookie": self._cookie(token, SESSION_AGE_S),
            "location": "/",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        return Reply(status=303, headers=headers)

    def _cookie(self, token: str, age_s: int) -> str:
        return session_cookie(token, secure=self._secure, age_s=age_s)


def _told(identity: Identity) -> WhoAmI:
    return WhoAmI(
        logged_in=True, account_id=str(identity.account_id), name=identity.name, roles=tuple(sorted(identity.roles))
    )
