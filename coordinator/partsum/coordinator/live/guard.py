"""Who may look at the live page.

On loopback everybody, if the browser meant this host (a page elsewhere may have its name point
here: DNS rebinding). Beyond it an operator, by a token, or by a cookie that was given for one. The
cookie opens this page and nothing else: it holds no token, and ends with the one it was given for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

import grpc

from partsum.coordinator.access import Access
from partsum.coordinator.members import token_digest
from partsum.coordinator.rates import RateLimits
from partsum.coordinator.visitor import Denied, Doorman, Visitor
from partsum.shared.config import ServerConfig
from partsum.shared.config.trust import LOOPBACK
from partsum.shared.errors import RefusedError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_COOKIE_SECONDS = 12 * 3600
_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE = 1.0, 20.0
_BEARER = "Bearer "
_WORDS = {
    grpc.StatusCode.PERMISSION_DENIED: "403 Forbidden",
    grpc.StatusCode.ABORTED: "503 Service Unavailable",
}


class TurnedAway(RefusedError):
    """``status`` is HTTP's; ``login`` tells whether a token would help."""

    def __init__(self, status: str, message: str, login: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.login = login


class Guard:
    """Asks who looks; safe in any thread.

    Args:
        access: the register of members; None: there is none.
        config: where HTTP listens.
        count: told of each one turned away, with gRPC's word for why.
        now: Unix seconds.
    """

    def __init__(
        self,
        access: Access | None,
        config: ServerConfig,
        count: Callable[[str], None] = lambda reason: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._loopback = config.metrics_host in LOOPBACK
        self._open = self._loopback or (access is None and config.insecure)
        self._doorman = Doorman(access, None, now, "token") if access else None
        self._secret = _secret(access) if access else b""
        self._count = count
        self._now = now
        self._refusals = RateLimits(_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE)
        self._counting = threading.Lock()  # requests come in threads

    def advice(self) -> str:
        """What whoever set this up should know; empty where there is nothing."""
        if self._open or self._doorman is None:
            return ""
        return (
            "the live page asks for an operator's token, which comes in the clear over plain HTTP: "
            "put TLS in front of it, or come through a tunnel to loopback (docs/live.md)"
        )

    def check(self, environ: WSGIEnvironment) -> None:
        """Whether this request may see the run. Raises TurnedAway."""
        if self._open:
            self._check_host(environ.get("HTTP_HOST", ""))
            return
        shown = environ.get("HTTP_AUTHORIZATION", "")
        if shown.startswith(_BEARER):
            self._ask(environ, token_digest(shown.removeprefix(_BEARER).strip()))
        elif digest := self._digest_in_cookie(environ):
            self._ask(environ, digest)
        else:
            raise self._stranger()

    def cookie(self, environ: WSGIEnvironment, token: str) -> str:
        """A Set-Cookie value for whoever shows an operator's token. Raises TurnedAway."""
        if self._open or self._doorman is None:
            raise TurnedAway("404 Not Found", "nobody needs to log in here")
        digest = token_digest(token.strip())
        self._ask(environ, digest)
        until = int(self._now() + _COOKIE_SECONDS)
        secure = "; Secure" if environ.get("HTTP_X_FORWARDED_PROTO") == "https" else ""
        value = f"{digest}.{until}.{self._seal(digest, until)}"
        return (
            f"{_cookie_name(environ)}={value}; Max-Age={_COOKIE_SECONDS}; Path=/; HttpOnly; "
            f"SameSite=Strict{secure}"
        )

    def _check_host(self, given: str) -> None:
        """The name that the browser asked for must be one that nobody else can give away."""
        name = given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given
        name = name.strip("[]").rstrip(".").lower()
        known = LOOPBACK if self._loopback else LOOPBACK | {socket.gethostname().lower()}
        if name in known or (_is_address(name) and not (self._loopback and _is_remote(name))):
            return
        raise TurnedAway(
            "421 Misdirected Request",
            f"this page is for those who ask for {' or '.join(sorted(known))}, not for "
            f"{given[:100]!r}",
        )

    def _ask(self, environ: WSGIEnvironment, digest: str) -> None:
        if self._doorman is None:
            raise self._stranger()
        address = str(environ.get("REMOTE_ADDR", ""))
        try:
            self._doorman.ask_again(Visitor(f"{address}:0", "operator", digest))
        except Denied as error:
            self._count(error.code.name)
            with self._counting:
                wait = self._refusals.take(address, time.monotonic())
            if wait > 0:
                raise TurnedAway("429 Too Many Requests", "too many wrong tokens: wait") from None
            status = _WORDS.get(error.code, "401 Unauthorized")
            raise TurnedAway(status, str(error), login=True) from error

    def _stranger(self) -> TurnedAway:
        if self._doorman is not None:
            return TurnedAway("401 Unauthorized", "this page needs an operator's token", login=True)
        return TurnedAway(
            "403 Forbidden",
            'beyond loopback this page needs an operator\'s token, and with auth = "none" nobody '
            'has one: set auth = "tokens" or "certificates" under [server], or come through a '
            "tunnel to loopback (ssh -L)",
        )

    def _digest_in_cookie(self, environ: WSGIEnvironment) -> str:
        """Of the token that a cookie was given for; empty where there is no good one."""
        try:
            found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(_cookie_name(environ))
        except CookieError:
            return ""
        digest, until, seal = [*(found.value if found else "").split("."), "", ""][:3]
        if not until.isdecimal() or len(until) > 12 or int(until) < self._now():
            return ""
        own = self._seal(digest, int(until)).encode()  # as bytes: text must be ASCII for this
        return digest if hmac.compare_digest(seal.encode(), own) else ""

    def _seal(self, digest: str, until: int) -> str:
        return hmac.new(self._secret, f"{digest}.{until}".encode(), hashlib.sha256).hexdigest()


def _secret(access: Access) -> bytes:
    """What cookies are sealed with: the same after a restart, and known to nobody else."""
    key = access.folder.pair("server").key.encode()
    return hmac.new(key, b"partsum live page", hashlib.sha256).digest()


def _cookie_name(environ: WSGIEnvironment) -> str:
    """Cookies know no port, and two coordinators may share a host."""
    return f"partsum_live_{environ.get('SERVER_PORT', '')}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_remote(name: str) -> bool:
    return not ipaddress.ip_address(name).is_loopback
