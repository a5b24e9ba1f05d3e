"""Telling other programs what happened: an endpoint, a signature, a post, and how long to wait after a refusal.

A system keeps its endpoints and what they have not heard in a store of its own, in the commit that makes it true; what
goes over the wire is the same for all, and stands here. Anything but a 2xx answer within `timeout_s` is a refusal; the pause
before the next try doubles from `retry_s` up to `retry_s_max`, spread by a quarter so that endpoints that failed together do
not come back together, and after `attempts_max` refusals a delivery is given up. The receiver drops an id it has seen.

    Fourplane-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body" under the secret>

`verify` is what a receiver does; the time inside is what makes an old delivery, sent again by somebody else, fail.
"""

import hmac
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Rejected, Unauthenticated

SIGNATURE = "fourplane-signature"
TOLERANCE_S = 300
URL_MAX = 500
ANSWER_MAX = 65_536


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of deliveries."""

    endpoints_max: int = 20
    batch: int = 100
    poll_s: float = 0.5
    timeout_s: float = 5.0
    retry_s: float = 1.0
    retry_s_max: float = 3_600.0
    attempts_max: int = 12

    def pause_s(self, attempts: int) -> float:
        """How long to wait after so many refusals in a row."""
        pause_s = min(self.retry_s_max, self.retry_s * 2.0 ** max(0, attempts - 1))
        return pause_s * (0.75 + 0.5 * clock.random().random())


class Endpoint(msgspec.Struct, frozen=True):
    """Somebody who wants to hear; the secret is shown once, at registration."""

    id: str
    url: str
    secret: str = ""

    def without_secret(self) -> "Endpoint":
        """As it is listed."""
        return msgspec.structs.replace(self, secret="")


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads."""

    host: str
    port: int
    path: str
    secure: bool


def sign(secret: str, body: bytes, now_s: int) -> str:
    """The signature header of a body sent now."""
    return f"t={now_s},v1={hmac.new(secret.encode(), b'%d.' % now_s + body, 'sha256').hexdigest()}"


def verify(secret: str, header: str, body: bytes, now_s: int) -> None:
    """Raise Unauthenticated unless this body was signed with the secret within the last five minutes."""
    parts = dict(part.partition("=")[::2] for part in header.split(",")[:10])
    stamp = parts.get("t", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12):
        raise Unauthenticated("the signature has no time", code="bad_signature")
    wanted = sign(secret, body, int(stamp)).partition("v1=")[2]
    if not hmac.compare_digest(wanted.encode(), parts.get("v1", "").encode()):
        raise Unauthenticated("the signature does not fit", code="bad_signature")
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        raise Unauthenticated("the delivery is too old", code="stale_signature")


def target_of(url: str) -> Target:
    """Where to post; raises Rejected for anything but a plain http or https address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Rejected("that is no address", code="bad_url") from None
    plain = len(url) <= URL_MAX and url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise Rejected("a webhook is an http or https address without a password", code="bad_url")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.hostname, port or (443 if secure else 80), path, secure)


class Line:
    """A connection to one endpoint, kept for as many deliveries as there are now."""

    def __init__(self, endpoint: Endpoint, tls: Callable[[], ssl.SSLContext], timeout_s: float) -> None:
        self._endpoint, self._target, self._timeout_s = endpoint, target_of(endpoint.url), timeout_s
        self._client = HttpClient(
            self._target.host, self._target.port, tls() if self._target.secure else None,
            settings=HttpClientSettings(connections_max=1, body_bytes_max=ANSWER_MAX),
        )  # fmt: skip

    async def post(self, body: bytes) -> bool:
        """Whether the endpoint took it."""
        headers = {
            "content-type": "application/json",
            SIGNATURE: sign(self._endpoint.secret, body, clock.now_us() // 1_000_000),
        }
        try:
            answer = await self._client.request(
                "POST", self._target.path, body=body, headers=headers, timeout_s=self._timeout_s, body_max=ANSWER_MAX
            )
        except (FourplaneError, OSError):
            return False
        return 200 <= answer.status < 300

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class Sender:
    """Opens lines to endpoints; certificates are read when the first of them wants TLS."""

    def __init__(
        self, settings: WebhookSettings, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    ) -> None:
        self._settings, self._make_tls = settings, tls
        self._tls: ssl.SSLContext | None = None

    def line(self, endpoint: Endpoint) -> Line:
        """A line to this endpoint; close it."""
        return Line(endpoint, self._context, self._settings.timeout_s)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._make_tls()
        return self._tls
