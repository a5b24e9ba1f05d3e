import asyncio
import ssl

import pytest
from tests.unit.edge.serving import echo_app, serving

from fourplane.edge.certificate import client_context, ensure_certificate, server_context
from fourplane.edge.http_client import HttpClient
from fourplane.foundation.errors import Misconfigured, Unavailable


def test_a_certificate_is_made_once_with_a_private_key(tmp_path):
    first = ensure_certificate(tmp_path / "secrets")
    before = first[0].read_bytes()
    assert ensure_certificate(tmp_path / "secrets") == first
    assert first[0].read_bytes() == before
    assert first[1].stat().st_mode & 0o777 == 0o600


def test_https_works_with_the_pinned_certificate_and_not_without(tmp_path):
    certificate, key = ensure_certificate(tmp_path)

    async def main():
        async with serving(echo_app, tls=server_context(certificate, key)) as server:
            client = HttpClient("127.0.0.1", server.port, client_context(certificate))
            found = await client.request("POST", "/x", body=b"secret" * 100_000)
            client.close()
            stranger = HttpClient("127.0.0.1", server.port, client_context())
            with pytest.raises(Unavailable):
                await stranger.request("GET", "/")
            plain = HttpClient("127.0.0.1", server.port)
            with pytest.raises(Unavailable):
                await plain.request("GET", "/")
            return found

    found = asyncio.run(main())
    assert found.status == 200
    assert len(found.body) > 600_000


def test_old_protocols_are_refused(tmp_path):
    context = server_context(*ensure_certificate(tmp_path))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_broken_files_are_named(tmp_path):
    certificate, key = ensure_certificate(tmp_path)
    key.write_text("nonsense")
    with pytest.raises(Misconfigured, match="tls-certificate"):
        server_context(certificate, key)
    certificate.write_text("nonsense")
    with pytest.raises(Misconfigured, match="not a certificate"):
        ensure_certificate(tmp_path)
