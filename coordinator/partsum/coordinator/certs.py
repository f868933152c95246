"""Certificates: a small authority of the coordinator's own, and what it signs.

ECDSA on P-256 throughout; gRPC's TLS takes no Ed25519 (tried with 1.85).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from partsum.shared.credentials import Role
from partsum.shared.errors import StateError
from partsum.shared.transport import SERVER_NAME

AUTHORITY_DAYS = 3650
_AHEAD = timedelta(minutes=10)  # by which another host's clock may be behind
_NAME_LETTERS = 64  # of a common name in X.509; who it is, the fingerprint tells


@dataclass(frozen=True)
class Signed:
    """A certificate and its private key, both in PEM."""

    certificate: str
    key: str = field(repr=False)


def make_authority(now: float) -> Signed:
    """The authority that signs all others; valid for ten years from ``now`` (Unix seconds)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("partsum authority")
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(builder, key, key)


def make_server(authority: Signed, hosts: Iterable[str], now: float, days: int) -> Signed:
    """The coordinator's own. Nodes look for SERVER_NAME; ``hosts`` are for other TLS tools."""
    names = {SERVER_NAME, "localhost", "127.0.0.1", "::1", *hosts}
    alternative = x509.SubjectAlternativeName([_host(name) for name in sorted(names)])
    return _leaf(
        authority, "coordinator", ExtendedKeyUsageOID.SERVER_AUTH, now, days, (alternative,)
    )


def make_member(authority: Signed, name: str, role: Role, now: float, days: int) -> Signed:
    """A node's or an operator's; it cannot pose as the coordinator."""
    common_name = f"{role} {name}"[:_NAME_LETTERS]
    return _leaf(authority, common_name, ExtendedKeyUsageOID.CLIENT_AUTH, now, days)


def expires(certificate: str) -> float:
    """The end of a PEM certificate's validity, Unix seconds. Raises StateError where it is none."""
    try:
        return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp()
    except ValueError as error:
        raise StateError(f"not a certificate: {error}") from error


def _leaf(
    authority: Signed,
    common_name: str,
    purpose: x509.ObjectIdentifier,
    now: float,
    days: int,
    extensions: Iterable[x509.ExtensionType] = (),
) -> Signed:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signer = serialization.load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise StateError("the authority's key is not an elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(_name(common_name), issuer.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(signer_id, critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return _signed(builder, key, signer)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: float, days: int
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, UTC)
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _AHEAD)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> Signed:
    certificate = builder.sign(signer, hashes.SHA256())
    return Signed(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(
    digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
