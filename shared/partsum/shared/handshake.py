"""Why TLS fails: gRPC says "socket closed" for a refused certificate as for a lost cable.

A server of gRPC's that does not like a certificate closes the connection after the handshake,
without an alert. So a failed dial is looked into once more, with Python's own TLS.
"""

from __future__ import annotations

import socket
import ssl
import time

from partsum.shared.credentials import Credentials
from partsum.shared.transport import SERVER_NAME, split_address

_SECONDS = 3.0
_AGAIN_SECONDS = 0.5
_VERIFY_EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED


def refusal(address: str, credentials: Credentials | None) -> str:
    """Why the coordinator at HOST:PORT and these credentials do not go together.

    Blocks for some seconds at most; empty where the trouble is another.
    """
    try:
        if _closes(address, credentials):
            time.sleep(_AGAIN_SECONDS)  # it may have died in that very moment
            if _closes(address, credentials):
                return _unwanted(address, credentials)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _VERIFY_EXPIRED:
            return (
                f"the certificate of the coordinator at {address} has expired; on its host, "
                "`partsum certs init` makes another and a restart takes it"
            )
        return (
            f"the coordinator at {address} is not the one that these credentials are for: "
            f"{error.verify_message}"
        )
    except ssl.SSLError as error:
        if credentials is not None and error.reason == "WRONG_VERSION_NUMBER":
            return (
                f"what answers at {address} does not speak TLS, so no credentials go there; "
                'leave out --credentials if that coordinator has auth = "none"'
            )
    except OSError:
        pass
    return ""


def _closes(address: str, credentials: Credentials | None) -> bool:
    """Whether it speaks TLS with us and then has not a word for us. HTTP/2 servers speak first."""
    host, port = split_address(address)
    with (
        socket.create_connection((host.strip("[]"), port), _SECONDS) as plain,
        # What breaks in here is no refusal: so does a tunnel whose far end is not up yet.
        _context(credentials).wrap_socket(plain, server_hostname=SERVER_NAME) as secure,
    ):
        try:
            return credentials is None or not secure.recv(1)
        except (ssl.SSLEOFError, ConnectionResetError):
            return True


def _context(credentials: Credentials | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if credentials is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nothing is sent; who speaks TLS is all it asks
        return context
    context.load_verify_locations(cadata=credentials.authority)
    if credentials.certificate:
        context.load_cert_chain(credentials.path)  # a reader of PEM skips the file's other lines
    return context


def _unwanted(address: str, credentials: Credentials | None) -> str:
    if credentials is None:
        return (
            f"the coordinator at {address} asks for credentials: give --credentials FILE; on its "
            "host, `partsum certs` or `partsum tokens` makes one"
        )
    if not credentials.certificate:
        return (
            f"the coordinator at {address} asks for a certificate, and the credentials of "
            f"{credentials.name} hold a token; `partsum certs` on its host makes one"
        )
    return (
        f"the coordinator at {address} refuses the certificate of {credentials.name}, which "
        f"expires on {credentials.expires:%Y-%m-%d}: another authority signed it, or it is too "
        "old. `partsum certs renew` on the coordinator's host makes another"
    )
