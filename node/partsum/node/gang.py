"""A gang's process groups, as one of its members sees them.

The groups are made by hand and not by `torch.distributed.init_process_group`, whose one world a
process cannot leave in good order once a member has died. torchft makes its groups by hand for the
same reason. What is stuck in a broken one is left to the end of the process: the worker ends
itself after that, and the daemon starts another.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from partsum.shared.errors import PartsumError
from partsum.shared.messages import GangPlace
from partsum.shared.transport import split_address

Ranks = tuple[int, ...]
Group = Any
"""A ProcessGroupGloo or ProcessGroupNCCL; torch's stubs leave out what they do."""


class GangBrokeError(PartsumError):
    """A member is gone, or cannot be reached; nothing that this node did."""


class Gang:
    """A member's way to the others. All members call the same methods in the same order.

    Methods raise GangBrokeError where another member does not answer.

    Args:
        place: this member's.
        store: where the members find each other.
        host: this node's own address, as the others reach it.
        device: where tensors lie.
    """

    def __init__(self, place: GangPlace, store: Store, host: str, device: torch.device) -> None:
        self.place = place
        self._store = PrefixStore(f"{place.secret}/{place.id}", store)
        self._host = host
        self._device = device
        self._groups: dict[Ranks, Group] = {}

    @classmethod
    def join(
        cls,
        place: GangPlace,
        host: str,
        meet: str,
        device: torch.device,
        opened: Callable[[int], None],
    ) -> Gang:
        """Meet the others: rank 0 opens the store on ``host`` and tells its port; others dial it.

        Args:
            place: this member's.
            host: this node's own address.
            meet: HOST:PORT of rank 0's store; not looked at for rank 0.
            device: where tensors lie.
            opened: told the store's port, by rank 0.

        Raises PartsumError where ``host`` is no address of this host.
        """
        listener = _listen(host)  # by all: whoever cannot is to blame, and nobody else
        if place.rank:
            listener.close()
        with in_words("meet"):
            if place.rank == 0:
                port = int(listener.getsockname()[1])
                store = _store(place, host, port, listener.detach())
                opened(port)
            else:
                address, port = split_address(meet)
                store = _store(place, address, port)
            gang = cls(place, store, host, device)
            gang._group(tuple(range(place.size)))
        return gang

    def make_world(self) -> None:
        """Let torch's own world be this gang, for a library that knows no other.

        The process cannot leave it in good order: what it does next must be its last work.
        """
        interface = interface_of(self._host)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        with in_words("make a world"):
            distributed.init_process_group(
                self.place.backend,
                store=PrefixStore("world", self._store),
                rank=self.place.rank,
                world_size=self.place.size,
                timeout=_seconds(self.place.timeout_seconds),
            )

    def sum(self, tensor: Tensor, ranks: Ranks) -> Tensor:
        """The sum over those members, of which this is one; the same bits on all of them."""
        with in_words("add up tensors"):
            here = self._carried(tensor)
            self._group(ranks).allreduce([here]).wait()
        return here.to(tensor.device)

    def copy_of(self, tensor: Tensor, ranks: Ranks, source: int) -> Tensor:
        """What ``source``, one of those members, calls this with."""
        with in_words("copy tensors"):
            here = self._carried(tensor)
            options = distributed.BroadcastOptions()
            options.rootRank = ranks.index(source)
            self._group(ranks).broadcast([here], options).wait()
        return here.to(tensor.device)

    def gather(self, values: Sequence[int], ranks: Ranks) -> list[list[int]]:
        """Each of those members' whole numbers, by rank; all give equally many."""
        table = torch.zeros(len(ranks), len(values), dtype=torch.int64, device=self._device)
        table[ranks.index(self.place.rank)] = torch.tensor(values, dtype=torch.int64)
        rows: list[list[int]] = self.sum(table, ranks).tolist()
        return rows

    def _carried(self, tensor: Tensor) -> Tensor:
        """A copy that the backend can carry."""
        device = self._device if self.place.backend == "nccl" else torch.device("cpu")
        return tensor.detach().to(device, copy=True).contiguous()

    def _group(self, ranks: Ranks) -> Group:
        """The group of those members; made when it is first asked for, by all of them alike."""
        if ranks not in self._groups:
            store = PrefixStore("-".join(map(str, ranks)), self._store)
            rank, timeout = ranks.index(self.place.rank), _seconds(self.place.timeout_seconds)
            self._groups[ranks] = self._make(store, rank, len(ranks), timeout)
        return self._groups[ranks]

    def _make(self, store: Store, rank: int, size: int, timeout: timedelta) -> Group:
        if self.place.backend == "nccl":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface_of(self._host))
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # wait() raises, and no watchdog
            nccl = distributed.ProcessGroupNCCL.Options()
            nccl._timeout = timeout
            return distributed.ProcessGroupNCCL(store, rank, size, nccl)
        gloo = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._timeout = timeout
        gloo._devices = [distributed.ProcessGroupGloo.create_device(hostname=self._host)]
        return distributed.ProcessGroupGloo(store, rank, size, gloo)


def interface_of(host: str) -> str:
    """The network interface with that address; empty where none has it."""
    found = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == host for address in addresses)
    )
    return next(found, "")


def _listen(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family)
    except OSError as error:
        raise PartsumError(
            f"this node cannot listen on {host} ({error.strerror or error}), where the other "
            "members of its gang would reach it; start it with partsum node --gang-host and an "
            "address that is this host's own"
        ) from error


def _store(place: GangPlace, host: str, port: int, listener: int | None = None) -> TCPStore:
    return TCPStore(
        host,
        port,
        place.size,
        is_master=listener is not None,
        timeout=_seconds(place.timeout_seconds),
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """torch's errors as GangBrokeError: they are about sockets, and name no member."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GangBrokeError(f"the gang's members could not {what}: {first[:300]}") from error
