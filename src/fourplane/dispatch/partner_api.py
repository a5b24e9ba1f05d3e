"""Doors for other programs: webhooks (an operator's) and the sandbox."""

from typing import TYPE_CHECKING

import msgspec

from fourplane.dispatch.rider_api import GUEST_S, RIDER, Guest, RideAnswer, RiderApi
from fourplane.dispatch.sandbox import Sandbox, SandboxStatus
from fourplane.dispatch.trips import SANDBOX
from fourplane.edge.routes import Call, Route
from fourplane.edge.webhooks import Endpoint
from fourplane.foundation import ids
from fourplane.foundation.errors import Rejected

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

API = "/dispatch/api"


class NewWebhook(msgspec.Struct, frozen=True):
    url: str


class WebhookList(msgspec.Struct, frozen=True):
    webhooks: list[Endpoint]


class SandboxBody(msgspec.Struct, frozen=True):
    status: SandboxStatus


class PartnerApi:
    """Handlers over a running `Dispatch`."""

    def __init__(self, dispatch: "Dispatch", riders: RiderApi) -> None:
        self._d, self._riders, self._sandbox = dispatch, riders, Sandbox(dispatch)

    def routes(self) -> list[Route]:
        """All doors a partner needs beside a rider's."""
        return [
            Route("POST", f"{API}/webhooks", self.register, "Tell this address of every ride; the secret is shown once",
                  body=NewWebhook, answer=Endpoint, access="operator"),
            Route("GET", f"{API}/webhooks", self.listed, "Who is told", answer=WebhookList, access="operator"),
            Route("DELETE", f"{API}/webhooks/{{hook_id}}", self.remove, "Tell it no more", access="operator"),
            Route("POST", f"{API}/sandbox/guests", self.guest, "A rider whose rides move only by the sandbox", answer=Guest,
                  rate_per_s=self._d.settings.guests_per_s),
            Route("PUT", f"{API}/sandbox/requests/{{request_id}}", self.move, "Take a sandbox ride to a status",
                  body=SandboxBody, answer=RideAnswer),
        ]  # fmt: skip

    async def register(self, call: Call[NewWebhook]) -> Endpoint:
        return await self._d.webhooks.register(call.body.url)

    async def listed(self, _call: Call[None]) -> WebhookList:
        return WebhookList(self._d.webhooks.listed())

    async def remove(self, call: Call[None]) -> None:
        await self._d.webhooks.remove(call.params["hook_id"])

    async def guest(self, _call: Call[None]) -> Guest:
        rider = f"{SANDBOX}{ids.capability(8)}"
        return Guest(rider, self._d.signer.sign(RIDER, {"rider": rider}, GUEST_S))

    async def move(self, call: Call[SandboxBody]) -> RideAnswer:
        ride = await self._riders.own(call)
        if not ride.trip.sandbox:
            raise Rejected("only rides of the sandbox move by themselves", code="not_sandbox")
        await self._sandbox.move(ride, call.body.status)
        return self._riders.answer(ride)
