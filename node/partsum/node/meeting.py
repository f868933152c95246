"""Where a gang meets: rank 0's node says it, the coordinator passes it on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from partsum.node import control
from partsum.node.process import GangError
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.messages import GangPlace
from partsum.shared.transport import split_address


class Meeting:
    """The daemon's side of one gang after the other.

    Args:
        find_host: finds this node's address, as other nodes reach it; may take its time.
        say: sends a control message if the node is connected.
    """

    def __init__(
        self, find_host: Callable[[], str], say: Callable[[pb.ControlRequest], None]
    ) -> None:
        self.host = ""  # for the gang at hand: hosts may move
        self._find_host = find_host
        self._say = say
        self._gang = ""
        self._address: asyncio.Future[str] | None = None
        self._said: pb.ControlRequest | None = None  # where this node's own gang meets
        self._broken = ""  # the last gang that broke

    def opened(self, gang: str, port: int) -> None:
        """This node's worker waits for the others on that port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._said = control.gang_opened(gang, f"{host}:{port}")
        self._say(self._said)

    def say_again(self, gang: str) -> None:
        """Where that gang meets, once more: the coordinator may not have heard it, or forgotten."""
        if self._said is not None and self._said.gang_opened.gang == gang:
            self._say(self._said)

    def broke(self, gang: str) -> None:
        """Nobody can meet in that gang any more."""
        self._broken = gang

    def told(self, gang: str, address: str) -> None:
        """The coordinator says where a gang meets."""
        future = self._of(gang)
        if not future.done():
            future.set_result(address)

    async def address(self, place: GangPlace) -> str:
        """Where to meet; empty for rank 0, which is where the others come to.

        This node's own is in ``host`` then. Raises GangError where rank 0 does not say it in time,
        or the gang broke already, which a coordinator that was away does not know.
        """
        if place.id == self._broken:
            raise GangError(f"gang {place.id} has broken already")
        self.host = await asyncio.to_thread(self._find_host)
        if place.rank == 0:
            return ""
        try:
            async with asyncio.timeout(place.timeout_seconds):
                return await asyncio.shield(self._of(place.id))
        except TimeoutError:
            raise GangError(
                f"rank 0 of gang {place.id} has not said within {place.timeout_seconds:g} s where "
                "to meet"
            ) from None

    def _of(self, gang: str) -> asyncio.Future[str]:
        if self._address is None or self._gang != gang:
            self._gang, self._address = gang, asyncio.get_running_loop().create_future()
        return self._address


def own_address(coordinator: str) -> str:
    """This host's address on the way to the coordinator; other nodes most likely reach it there.

    Raises GangError where there is no way there now.
    """
    host, port = split_address(coordinator)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise GangError(
            f"this node does not find its address on the way to {coordinator}: {error}. Say it "
            "with --gang-host"
        ) from error
