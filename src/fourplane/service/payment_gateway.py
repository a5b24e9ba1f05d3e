"""What every system may ask of whoever moves the money.

A payment is authorised (the money is held), then captured (in part or whole, once) or voided, and what was captured can be
refunded (in parts). Two-phase commit maps onto it: authorise = prepare, capture = commit, void = abort. Every call carries an
idempotency key: the same key with the same request answers what it answered the first time, also when the first answer was lost;
the same key with another request is refused with Conflict (`key_reused`).

    (none) --authorise--> authorised --capture--> captured --refund--> captured ... --> refunded
       |                      `--void--> voided
       `--authorise--> declined
"""

from typing import Literal, Protocol

import msgspec

from fourplane.foundation.money import Money

PaymentState = Literal["authorised", "declined", "captured", "voided", "refunded"]


class Authorisation(msgspec.Struct, frozen=True):
    """The gateway's answer to "may we have this money?"; `id` also exists for a declined one."""

    id: str
    state: Literal["authorised", "declined"]
    reason: str = ""


class Payment(msgspec.Struct, frozen=True):
    """What became of one authorisation. `captured` and `refunded` are totals."""

    id: str
    state: PaymentState
    authorised: Money
    captured: Money
    refunded: Money
    reason: str = ""


class Capture(msgspec.Struct, frozen=True):
    """One of many captures: all that is held of an authorisation, under its own key."""

    key: str
    authorisation_id: str


class Notice(msgspec.Struct, frozen=True):
    """What the gateway tells afterwards (a webhook): at least once, so the receiver drops an `id` it has seen."""

    id: str
    payment_id: str
    state: PaymentState


class PaymentGateway(Protocol):
    """Errors: Conflict for a key with another request or a wrong state, NotFound, Rejected for an amount, Unavailable."""

    async def authorise(self, key: str, amount: Money, method: str) -> Authorisation:
        """Hold this much on a payment method."""

    async def capture(self, key: str, authorisation_id: str, amount: Money | None = None) -> Payment:
        """Take all or a part of what is held, once; the rest is released."""

    async def capture_many(self, captures: list[Capture]) -> list[str]:
        """Each as `capture` would; the keys of those that could not be, which `capture` explains one by one."""

    async def void(self, key: str, authorisation_id: str) -> Payment:
        """Release what is held; a second void is fine, a captured payment is a Conflict."""

    async def refund(self, key: str, authorisation_id: str, amount: Money) -> Payment:
        """Give back a part of what was captured."""

    async def held(self, prefix: str) -> list[str]:
        """Keys of authorisations, of those that begin so, whose money is neither taken nor let go; oldest first."""

    async def find(self, authorisation_id: str) -> Payment | None:
        """The payment as it stands."""

    async def find_by_key(self, key: str) -> Payment | None:
        """The payment that a call with this key touched: what to ask after an answer was lost."""
