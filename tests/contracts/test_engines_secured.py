"""Engines behind TLS: trusted when the URL names who signed, refused otherwise; wrong passwords are told and not repeated."""

import asyncio
import datetime as dt
import importlib.util
import ipaddress
import os
import shutil
import ssl
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Unavailable
from fourplane.state.contracts import Statement
from fourplane.state.engines.postgres import PostgresSql
from fourplane.state.engines.redis import RedisCache
from fourplane.state.engines.s3 import S3Blobs, S3Settings

_spec = importlib.util.spec_from_file_location("contract_servers", Path(__file__).with_name("conftest.py"))
servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(servers)
QUICK = S3Settings(retry_s=0.1, retries_max=0)


def signed(name, key, by_name, by_key, *, authority):
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(by_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def certificate():
    """Who signs, and the certificate and key of a server on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="fourplane-tls-"))
    signer, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(signed("signer", signer, "signer", signer, authority=True).public_bytes(pem))
    (folder / "server.pem").write_bytes(signed("server", key, "signer", signer, authority=False).public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    yield folder / "ca.pem", folder / "server.pem", folder / "key.pem"
    shutil.rmtree(folder)


async def eventually(work):
    for _ in range(200):
        try:
            return await work()
        except Unavailable:
            await clock.sleep(0.02)
    return await work()


def test_s3_over_tls(certificate):
    async def body(url):
        blobs = await S3Blobs.open(f"{url}&ca={certificate[0]}", name="tls")
        await blobs.put("a", b"secret")
        assert await blobs.get("a") == b"secret"
        with pytest.raises(Misconfigured) as told:
            await S3Blobs.open(url, name="tls", settings=QUICK)
        assert told.value.reason == "certificate"
        with pytest.raises(Misconfigured):
            await S3Blobs.open(f"{url}&ca=/nowhere", name="tls")

    for server in servers.running(servers.new_s3(*certificate[1:])):
        asyncio.run(body(server.url))


def test_redis_over_tls(certificate):
    server = servers.new_redis()
    authority, found, key = certificate
    at = server.argv.index("--port")
    server.argv[at : at + 2] = [
        *("--port", "0", "--tls-port", str(server.port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(found), "--tls-key-file", str(key)),
    ]
    server._ready = servers.listens(server.port)

    async def body(url):
        safe = url.replace("redis://", "rediss://")
        cache = await RedisCache.open(f"{safe}?ca={authority}")
        await cache.set("a", b"1", ttl_s=10)
        assert await cache.get("a") == b"1"
        await cache.close()
        for wrong, error in ((safe, Misconfigured), (f"{safe}?ca=/nowhere", Misconfigured), (url, Unavailable)):
            with pytest.raises(error):
                await RedisCache.open(wrong)

    for running in servers.running(server):
        asyncio.run(body(running.url))


def test_postgres_over_tls_with_a_password(certificate):
    server = servers.new_postgres()
    authority, found, key = certificate
    for source, name in ((found, "server.crt"), (key, "server.key")):
        target = server.folder / name
        shutil.copy(source, target)
        target.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(target, "nobody", "nogroup")
    for name, value in (("ssl", "on"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")):
        server.argv += ["-c", f"{name}={server.folder / value if '.' in value else value}"]

    async def guard(url):
        sql = await PostgresSql.open(url, schema="tls")
        await sql.commit([Statement("CREATE ROLE shop LOGIN SUPERUSER PASSWORD 'right one'")])
        await sql.close()

    async def body(url):
        safe = url.replace("fourplane@", "shop:right%20one@") + f"?sslmode=verify-full&sslrootcert={authority}"
        sql = await eventually(lambda: PostgresSql.open(safe, schema="tls"))
        assert await sql.read("SELECT ssl FROM pg_stat_ssl WHERE pid=pg_backend_pid()") == [(True,)]
        await sql.close()
        with pytest.raises(Misconfigured) as told:
            await PostgresSql.open(safe.replace("right%20one", "wrong-one"), schema="tls")
        assert "wrong-one" not in str(told.value)
        with pytest.raises((Unavailable, Misconfigured, ssl.SSLError)):
            await PostgresSql.open(safe.replace(str(authority), "/nowhere"), schema="tls")

    for running in servers.running(server):
        asyncio.run(guard(running.url))
        rules = running.folder / "data" / "pg_hba.conf"
        rules.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        running.kill()
        running._ready = servers.listens(running.port)
        running.start()
        asyncio.run(body(running.url))
