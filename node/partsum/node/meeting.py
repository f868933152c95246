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
        host: this node's address, as other nodes reach it.
        say: sends a control message if the node is connected.
    """

    def __init__(self, host: str, say: Callable[[pb.ControlRequest], None]) -> None:
        self.host = host
        self._say = say
        self._gang = ""
        self._address: asyncio.Future[str] | None = None

    def opened(self, gang: str, port: int) -> None:
        """This node's worker waits for the others on that port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._say(control.gang_opened(gang, f"{host}:{port}"))

    def told(self, gang: str, address: str) -> None:
        """The coordinator says where a gang meets."""
        future = self._of(gang)
        if not future.done():
            future.set_result(address)

    async def address(self, place: GangPlace) -> str:
        """Where to meet; empty for rank 0, which is where the others come to.

        Raises GangError where rank 0 does not say it in time.
        """
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
    """This host's address on the way to the coordinator; other nodes most likely reach it there."""
    host, port = split_address(coordinator)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"  # no way there now; a gang is far off
