"""Put a cache in front of any origin: RFC 9111 and 9213, TLS, stale answers while the origin is down, purges by URL and tag."""

import argparse
import asyncio
import re
import signal
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_operator import CacheOperator
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.certificate import ensure_certificate, server_context
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import ids
from fourplane.foundation.errors import Rejected, Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry

_SIZE = re.compile(r"(\d{1,12})([kKmMgGtT]?)")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--origin", required=True, metavar="URL", help="what is cached: http://host:port or https://host"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8180, help="the port to listen on (default 8180)")
    parser.add_argument(
        "--operator-port", type=int, default=8181, metavar="PORT", help="purges, figures (default 8181)"
    )
    parser.add_argument("--folder", type=Path, default=Path("cache"), metavar="DIR", help="bodies, token, certificate")
    parser.add_argument("--size", default="1G", help="the most bytes kept, such as 500M (default 1G)")
    parser.add_argument(
        "--tls", action="store_true", help="serve TLS with a certificate of its own, made in the folder"
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="serve TLS with this certificate")
    parser.add_argument("--key", type=Path, metavar="FILE", help="and this key")
    parser.add_argument("--keep-host", action="store_true", help="ask the origin for the client's Host, not the URL's")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted; exit code 0."""
    _runner()(_serve(options))
    return 0


def origin_of(url: str, *, keep_host: bool = False) -> OriginSettings:
    """Where an address leads; raises Rejected for anything but http://host[:port] or https://host[:port]."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise Rejected(f"{url} has no valid port", code="bad_origin") from None
    plain = not (parts.query or parts.fragment or parts.username) and parts.path in {"", "/"}
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise Rejected("an origin is http://host:port or https://host, without a path", code="bad_origin")
    secure = parts.scheme == "https"
    host_header = "" if keep_host else parts.netloc
    return OriginSettings(
        host=parts.hostname, port=port or (443 if secure else 80), secure=secure, host_header=host_header
    )


def size_of(text: str) -> int:
    """Bytes of 500M, 2G, 1048576; raises Rejected."""
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise Rejected(f"{text!r} is no size: write 500M or 2G", code="bad_size")
    return int(found[1]) << _UNITS[found[2].lower()]


def token_in(folder: Path) -> str:
    """The operator's token of a cache folder, made once and readable for its owner only."""
    file = folder / "operator-token"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(ids.capability() + "\n", encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if (options.certificate is None) != (options.key is None):
        raise Rejected("--certificate and --key belong together", code="bad_arguments")
    if options.certificate is not None:
        return server_context(options.certificate, options.key)
    return server_context(*ensure_certificate(options.folder / "tls")) if options.tls else None


async def _serve(options: argparse.Namespace) -> None:
    registry = Registry()
    lifecycle = Lifecycle(registry)
    settings = CacheNodeSettings(
        listener=ListenerSettings(host=options.host, port=options.port),
        origin=origin_of(options.origin, keep_host=options.keep_host),
        folder=options.folder / "objects",
        bytes_max=size_of(options.size),
    )
    tls, token = _tls(options), token_in(options.folder)
    node = CacheNode(settings, registry=registry, tls=tls)
    operator = CacheOperator(node, port=options.operator_port, token=token, registry=registry)
    lifecycle.add("cache", node)
    lifecycle.add("operator", operator)
    try:
        await lifecycle.start()
    except OSError as error:
        await lifecycle.stop()
        raise Unavailable(f"the cache cannot listen: {error.strerror or error}", code="port_busy") from error
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    where = f"{'http' if tls is None else 'https'}://{options.host}:{node.port}"
    if options.json:
        told = {"address": where, "operator": f"http://127.0.0.1:{operator.port}", "token_file": "operator-token"}
        print(msgspec.json.encode(told).decode(), flush=True)
    else:
        print(f"{where} caches {options.origin} ({len(node.store)} objects kept)", flush=True)
        print(
            f"Purge and figures: http://127.0.0.1:{operator.port}, token in {options.folder / 'operator-token'}",
            flush=True,
        )
    await over.wait()
    await lifecycle.drain()
    await lifecycle.stop()
    seen = node.statistics()
    if not options.json:
        print(f"{seen.requests} requests, {seen.hits} hits, {seen.entries} objects kept", flush=True)


def _runner() -> Callable[[Coroutine[Any, Any, None]], object]:
    """The faster loop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - optional, and only this verb's own loop
    except ImportError:
        return asyncio.run
    run: Callable[[Coroutine[Any, Any, None]], object] = uvloop.run
    return run
