"""Hosts on one machine, with a network between them that can be cut, slowed and made to lose."""

from __future__ import annotations

import os
import shutil
import subprocess

SUBNET = "10.86.0"


class Network:
    """Network namespaces on a bridge of their own; each is a host with an address.

    A cut is silent, as that of a cable behind a switch: nobody gets a reset. Losses come from
    queues that overflow (token buckets), since netem is not in every kernel.
    """

    def __init__(self, *hosts: str) -> None:
        self._hosts = {host: f"{SUBNET}.{k + 1}" for k, host in enumerate(hosts)}
        self._switch = self._space("switch")
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        _run("ip", "netns", "add", self._switch)
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for host, address in self._hosts.items():
            space = self._space(host)
            _run("ip", "netns", "add", space)
            pair = ("peer", "name", f"to-{host}", "netns", self._switch)
            _run("ip", "-n", space, "link", "add", "eth0", "type", "veth", *pair)
            _run("ip", "-n", self._switch, "link", "set", f"to-{host}", "master", "bridge", "up")
            _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", link, "up")

    def _space(self, host: str) -> str:
        return f"partsum-{os.getpid()}-{host}"

    def address(self, host: str) -> str:
        """Its IP address."""
        return self._hosts[host]

    def inside(self, host: str) -> list[str]:
        """What a command has to begin with to run on that host."""
        return ["ip", "netns", "exec", self._space(host)]

    def cut(self, host: str) -> None:
        """Nothing gets through to or from the host."""
        _run("ip", "-n", self._switch, "link", "set", f"to-{host}", "down")

    def heal(self, host: str) -> None:
        """The host's cable is whole again."""
        _run("ip", "-n", self._switch, "link", "set", f"to-{host}", "up")

    def slow(self, host: str, rate: str, queue_bytes: int = 64 << 10) -> None:
        """What the host sends passes at ``rate``; what the queue cannot hold is lost."""
        shape = ("rate", rate, "burst", "2kb", "limit", str(queue_bytes))
        _run(
            "tc", "-n", self._space(host), "qdisc", "replace", "dev", "eth0", "root", "tbf", *shape
        )

    def lost(self, host: str) -> int:
        """Packets of the host that its queue dropped."""
        shown = _run("tc", "-n", self._space(host), "-s", "qdisc", "show", "dev", "eth0")
        return int(shown.partition("dropped ")[2].partition(",")[0])

    def close(self) -> None:
        """Remove it all."""
        for host in (*self._hosts, "switch"):
            command = ["ip", "netns", "del", self._space(host)]
            subprocess.run(command, capture_output=True, check=False)


def why_not() -> str:
    """Why there can be no such network here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no {program} here (iproute2)"
    try:
        network = Network("probe")
        try:
            network.slow("probe", "1mbit")
        finally:
            network.close()
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
