"""Reading and decoding the body of one request, never past its bound."""

from collections.abc import Mapping
from typing import Any

import msgspec

from fourplane.edge.asgi import Receive
from fourplane.edge.exchange import ClientGone
from fourplane.foundation.errors import Rejected, TooLarge


def decode(raw: bytes, decoder: "msgspec.json.Decoder[Any] | None") -> object:
    """The body as the route's type; raises Rejected with the place (`at`) of the first wrong field."""
    assert decoder is not None
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `")
        raise Rejected(text, code="invalid", at=at.rstrip("`") or "$") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"the body is not JSON: {error}", code="not_json") from None


def of_whole(body: bytes, body_max: int) -> bytes:
    """A body that is here already; raises TooLarge past its bound."""
    if len(body) > body_max:
        raise TooLarge("the body is too large", limit_bytes=body_max)
    return body


async def read_body(receive: Receive, headers: Mapping[str, str], body_max: int) -> bytes:
    """The whole body; raises TooLarge as soon as it is clear that it is past the bound."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 19 and int(declared) > body_max:
        raise TooLarge("the body is too large", limit_bytes=body_max)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        return of_whole(body, body_max)
    parts, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body", False):
        message = await receive()
        piece = message.get("body", b"")
        parts.append(piece)
        size += len(piece)
        if size > body_max:
            raise TooLarge("the body is too large", limit_bytes=body_max)
    if message["type"] != "http.request":
        raise ClientGone("the peer left before its body was whole")
    return b"".join(parts)
