"""Who makes a call, and whether the register lets them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from partsum.coordinator.access import Access
from partsum.coordinator.members import Key, Kind, Members, certificate_digest, token_digest
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.credentials import Role
from partsum.shared.errors import RefusedError, StateError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = object

log = logging.getLogger(__name__)

_BEARER = "Bearer "


class Denied(RefusedError):
    """Turned away at the gate; ``code`` is gRPC's word for it."""

    def __init__(self, code: grpc.StatusCode, message: str, retry: bool = False) -> None:
        super().__init__(message, retry)
        self.code = code


@dataclass
class Visitor:
    """Who makes a call: a member by ``name``, or, where nobody is asked, just an address."""

    address: str  # with its port
    role: Role  # that the call is for
    digest: str = ""  # of what was shown
    name: str = ""
    key: Key | None = None
    members: Members | None = None  # the register that said so

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.address.rpartition(":")[0]

    def speaks(self, request: object) -> None:
        """A member speaks in its own name only. Raises Denied."""
        name = _claimed(request)
        if self.name and name is not None and name != self.name:
            raise Denied(
                grpc.StatusCode.PERMISSION_DENIED,
                f"these are the credentials of node {self.name}, which cannot speak for "
                f"{name[:64]!r}",
            )


def _claimed(request: object) -> str | None:
    """The node that a message says it is from."""
    match request:
        case pb.PullRequest() | pb.OfferRequest():
            return request.node
        case pb.ControlRequest() if request.HasField("hello"):
            return request.hello.node
        case pb.PushRequest() if request.HasField("offer"):
            return request.offer.node
    return None


class Doorman:
    """Asks visitors who they are.

    Args:
        access: the register; None asks nobody.
        allow: the nodes that may join; None: all.
        now: Unix seconds.
        kind: what they show; by default what the register's config asks for.
    """

    def __init__(
        self,
        access: Access | None,
        allow: list[str] | None,
        now: Callable[[], float],
        kind: Kind | None = None,
    ) -> None:
        self._access = access
        self._kind = kind or (access.kind if access else "token")
        self._allow = allow
        self._now = now

    def ask(self, visitor: Visitor, context: Context) -> None:
        """Find out who it is. Raises Denied."""
        if self._access is None:
            return
        shown = _token(context) if self._kind == "token" else _certificate(context)
        if not shown:
            raise Denied(
                grpc.StatusCode.UNAUTHENTICATED,
                f"this coordinator asks for a {self._kind}, and none was shown: give "
                "--credentials FILE with one",
            )
        visitor.digest = shown
        self.ask_again(visitor)

    def ask_again(self, visitor: Visitor) -> None:
        """Whether that still holds: somebody may have been revoked meanwhile. Raises Denied."""
        if self._access is None:
            return
        now = self._now()
        try:
            members = self._access.folder.members()
            if members is visitor.members and visitor.key and visitor.key.holds(now):
                return
            member, key = members.find(self._kind, visitor.digest, now)
        except StateError as error:
            log.error("nobody can come in: %s", error)
            sentence = "the coordinator cannot read its register of members"
            raise Denied(grpc.StatusCode.ABORTED, sentence, retry=True) from error
        except RefusedError as error:
            raise Denied(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
        if member.role != visitor.role:
            sentence = (
                f"{member.name} has the role {member.role}, and this takes the role {visitor.role}"
            )
            raise Denied(grpc.StatusCode.PERMISSION_DENIED, sentence)
        if member.role == "node" and self._allow is not None and member.name not in self._allow:
            sentence = f"node {member.name} is not among those that this run allows (server.allow)"
            raise Denied(grpc.StatusCode.PERMISSION_DENIED, sentence)
        visitor.name, visitor.key, visitor.members = member.name, key, members


def _token(context: Context) -> str:
    """The digest of the token that was shown; empty where there was none."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and value.startswith(_BEARER):
            return token_digest(value.removeprefix(_BEARER))
    return ""


def _certificate(context: Context) -> str:
    """The digest of the certificate that TLS has verified; empty where there was none."""
    found = list(context.auth_context().get("x509_pem_cert", ()))
    return certificate_digest(found[0].decode()) if found else ""
