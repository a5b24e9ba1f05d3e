"""Files that people send each other: a slot to put one, an address to get it (XEP-0363).

The slot is a signed token naming what may be put (place, size, type), good for `SLOT_S`; nothing is stored until the file comes,
and a place is written once. The place is `day-random`: 128 random bits nobody can guess, and a day that tells without a look
into the store when the file is over. Whoever knows the address may read it, as XEP-0363 means it; a browser is told to
show nothing but pictures, sound and film, and to run nothing at all.
"""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import msgspec

from fourplane.edge.routes import Call, Door, Reply, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Rejected, TooLarge, Unauthenticated
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import INFO, ITEMS, Request
from fourplane.messaging.stanzas import escape
from fourplane.messaging.xml_stream import IQ
from fourplane.service.tokens import Signer
from fourplane.state.contracts import Blobs

UPLOAD = "urn:xmpp:http:upload:0"
AUDIENCE = "messaging-upload"
FOLDER = "media"
SLOT_S = 300.0
DAY_US = 86_400_000_000
SWEEP_S = 3_600.0
NAME_MAX = 200
CHUNK_MAX = 1 << 20
SHOWN = ("image/", "audio/", "video/")
UNSHOWN = ("image/svg",)
_PLACE = re.compile(r"(\d{5,7})-[0-9a-f]{32}\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9._\-]+")
_TYPE = re.compile(r"[a-z0-9.+\-]{1,60}/[a-z0-9.+\-]{1,60}\Z")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


class MediaCounts(msgspec.Struct):
    """What was put and fetched since the start."""

    slots: int = 0
    stored: int = 0
    stored_bytes: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    refused: int = 0
    expired: int = 0


class Media:
    """Answers for the upload domain and for the two HTTP doors behind its slots."""

    def __init__(self, router: Router, domain: str, *, blobs: Blobs, signer: Signer, registry: Registry) -> None:
        self.domain = domain
        self.counts = MediaCounts()
        self._router = router
        self._blobs = blobs
        self._signer = signer
        self._registry = registry
        self._settings = router.settings

    def start(self, tasks: Tasks) -> None:
        """Remove what is over, once an hour."""
        tasks.start(self._sweep(), "media-sweep")

    def receive(self, delivery: Delivery) -> None:
        """A stanza to the upload domain: what it offers, or a request for a slot."""
        stanza = delivery.stanza
        if stanza.name != IQ:
            self._router.bounce(delivery, "service-unavailable")
            return
        if stanza.attributes["type"] in {"result", "error"}:
            return
        if len(stanza.children) != 1:
            raise Rejected("an iq request has exactly one child", code="bad_request")
        name = stanza.children[0]
        request = Request(self._router, delivery, None)
        if stanza.attributes["type"] == "set" or name not in {INFO, ITEMS, f"{UPLOAD} request"}:
            request.refuse("service-unavailable")
        elif name == INFO:
            request.answer(self._description())
        elif name == ITEMS:
            request.answer(b"<query xmlns='http://jabber.org/protocol/disco#items'/>")
        else:
            self._give_slot(request)

    def doors(self) -> list[Door]:
        """PUT into a slot, GET what was put."""
        path, most = "/messaging/media/{place}/{name}", self._settings.upload_max
        return [
            Route("PUT", path, self._put, "Put a file into a slot", body=bytes, body_max=most),
            Route("GET", path, self._get, "A file somebody sent; ranges are served"),
        ]

    def _description(self) -> bytes:
        fields = f"<field var='FORM_TYPE' type='hidden'><value>{UPLOAD}</value></field>"
        fields += f"<field var='max-file-size'><value>{self._settings.upload_max}</value></field>"
        return (
            "<query xmlns='http://jabber.org/protocol/disco#info'><identity category='store' type='file' name='Media'/>"
            f"<feature var='http://jabber.org/protocol/disco#info'/><feature var='{UPLOAD}'/>"
            f"<x xmlns='jabber:x:data' type='result'>{fields}</x></query>"
        ).encode()

    def _give_slot(self, request: Request) -> None:
        delivery, element = request.delivery, request.element
        if delivery.sender.domain not in self._router.domains:
            request.refuse("forbidden", "only users of this server may put files here")
            return
        if not self._router.switches.media.on:
            request.refuse("service-unavailable", "the media service was stopped by an operator")
            return
        size = element.get("size", "")
        if not size.isdecimal() or len(size) > 15 or not element.get("filename"):
            raise Rejected("a slot needs a file name and a size", code="bad_request")
        if int(size) > self._settings.upload_max:
            self.counts.refused += 1
            most = self._settings.upload_max
            extra = f"<file-too-large xmlns='{UPLOAD}'><max-file-size>{most}</max-file-size></file-too-large>"
            request.refuse("not-acceptable", f"a file may have {most} bytes", extra=extra.encode())
            return
        media_type = element.get("content-type", "").lower()
        if not _TYPE.match(media_type):
            media_type = "application/octet-stream"
        place = f"{clock.now_us() // DAY_US}-{clock.token_bytes(16).hex()}"
        name = _file_name(element.get("filename", ""))
        claims = {"place": place, "size": size, "type": media_type}
        token = self._signer.sign(AUDIENCE, claims, SLOT_S)
        url = f"{self._settings.web_address}/messaging/media/{place}/{quote(name)}"
        self.counts.slots += 1
        put = f"<put url='{escape(f'{url}?slot={token}')}'/>"
        request.answer(f"<slot xmlns='{UPLOAD}'>{put}<get url='{escape(url)}'/></slot>".encode())

    async def _put(self, call: Call[bytes]) -> Reply:
        claims = self._signer.verify(AUDIENCE, call.query.get("slot", ""))
        place, name = call.params["place"], _file_name(call.params["name"])
        if claims["place"] != place:
            raise Unauthenticated("the slot is for another file", code="bad_token")
        if len(call.body) != int(claims["size"]):
            self.counts.refused += 1
            raise TooLarge(f"the slot is for {claims['size']} bytes", code="wrong_size")
        if await self._blobs.keys(f"{FOLDER}/{place}/", limit=1):
            raise Conflict("the slot was used", code="slot_used")
        await self._blobs.put(f"{FOLDER}/{place}/{name}", call.body, media_type=claims["type"])
        self.counts.stored += 1
        self.counts.stored_bytes += len(call.body)
        return Reply(status=201)

    async def _get(self, call: Call[None]) -> Reply:
        place, name = call.params["place"], _file_name(call.params["name"])
        matched = _PLACE.match(place)
        if matched is None or self._is_over(int(matched.group(1))):
            raise NotFound("there is no such file, or it is over")
        key = f"{FOLDER}/{place}/{name}"
        info = await self._blobs.info(key)
        if info is None:
            raise NotFound("there is no such file, or it is over")
        shown = info.media_type.startswith(SHOWN) and not info.media_type.startswith(UNSHOWN)
        headers = {
            "accept-ranges": "bytes",
            "etag": f'"{place}"',
            "cache-control": "private, max-age=86400, immutable",
            "content-disposition": "inline" if shown else "attachment",
            "content-security-policy": "default-src 'none'; sandbox",
            "x-content-type-options": "nosniff",
        }
        if call.headers.get("if-none-match") == headers["etag"]:
            return Reply(status=304, headers=headers)
        start, end = wanted_range(call.headers.get("range", ""), info.size)
        if start >= end and info.size:
            headers["content-range"] = f"bytes */{info.size}"
            return Reply(status=416, headers=headers)
        status = 200
        if end - start != info.size:
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{info.size}"
        self.counts.fetched += 1
        self.counts.fetched_bytes += end - start
        body: bytes | AsyncIterator[bytes]
        if end - start <= CHUNK_MAX:
            body = await self._blobs.get(key, start=start, end=end)
        else:
            headers["content-length"] = str(end - start)
            body = self._blobs.stream(key, start=start, end=end)
        return Reply(body, status, info.media_type, headers)

    def _is_over(self, day: int) -> bool:
        return (day + 1) * DAY_US + int(self._settings.upload_s * 1e6) < clock.now_us()

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(SWEEP_S)
            await self.sweep()

    async def sweep(self) -> int:
        """Remove files whose time is over; how many."""
        gone = 0
        while True:
            keys = await self._blobs.keys(f"{FOLDER}/", limit=100)
            over = [key for key in keys if self._is_over(_day(key))]
            for key in over:
                await self._blobs.delete(key)
            gone += len(over)
            if len(over) < len(keys) or not keys:
                self.counts.expired += gone
                return gone


def wanted_range(header: str, size: int) -> tuple[int, int]:
    """First and past-last byte that a Range header asks for; everything for none or one that is not understood."""
    matched = _RANGE.match(header.replace(" ", ""))
    if matched is None or matched.group(0) == "bytes=-":
        return 0, size
    first, last = matched.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return 0, size
    return int(first), min(size, int(last) + 1) if last else size


def _file_name(text: str) -> str:
    """`text` as it may stand in a key and an address: its last part, plain letters, no leading dot."""
    return _UNSAFE.sub("_", text.rsplit("/", 1)[-1])[-NAME_MAX:].lstrip(".") or "file"


def _day(key: str) -> int:
    matched = _PLACE.match(key.split("/")[1])
    return int(matched.group(1)) if matched is not None else 0
