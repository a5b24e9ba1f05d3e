"""TLS for a door: a context with today's defaults, and a certificate made on the first start.

The certificate is self-signed, for local use and for peers that pin it; a real one is placed at the same two files. The key
is written with mode 0600 before the certificate, both by rename, so a cut-off start leaves nothing half made.
"""

import datetime as dt
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured

VALID_DAYS = 825
RENEW_DAYS = 30


def ensure_certificate(folder: Path, names: Sequence[str] = ("localhost", "127.0.0.1", "::1")) -> tuple[Path, Path]:
    """Paths of certificate and key in `folder`, made when absent or about to expire; 3 ms, once."""
    certificate, key = folder / "tls-certificate.pem", folder / "tls-key.pem"
    if certificate.exists() and key.exists() and not _own_and_expiring(certificate):
        return certificate, key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = ec.generate_private_key(ec.SECP256R1())
    _write(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        mode=0o600,
    )
    _write(certificate, _self_signed(private, names).public_bytes(serialization.Encoding.PEM), mode=0o644)
    return certificate, key


def server_context(certificate: Path, key: Path, *, alpn: Sequence[str] = ("http/1.1",)) -> ssl.SSLContext:
    """A server's TLS context: 1.2 and 1.3, no compression, no renegotiation; raises Misconfigured on bad files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"the TLS certificate {certificate} cannot be used: {error}", file=certificate) from error
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def client_context(trusted: Path | None = None) -> ssl.SSLContext:
    """A client's TLS context; `trusted` is a certificate that is believed besides the system's."""
    context = ssl.create_default_context()
    if trusted is not None:
        context.load_verify_locations(trusted)
    return context


def _own_and_expiring(path: Path) -> bool:
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise Misconfigured(f"{path} is not a certificate: {error}", file=path) from error
    ends_s = found.not_valid_after_utc.timestamp()
    return found.issuer == found.subject and ends_s - clock.now_us() / 1e6 < RENEW_DAYS * 86_400


def _self_signed(private: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fourplane on this machine")])
    began = dt.datetime.fromtimestamp(clock.now_us() // 1_000_000, tz=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(int.from_bytes(clock.token_bytes(16), "big") >> 1 | 1)
        .not_valid_before(began - dt.timedelta(days=1))
        .not_valid_after(began + dt.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(private, hashes.SHA256())


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
