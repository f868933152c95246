"""Every metric that a node exports, in one list."""

from __future__ import annotations

import math
import shutil
from importlib import metadata
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram

STATES = ["connecting", "loading", "idle", "receiving", "training", "sending"]
OUTCOMES = ["accepted", "refused", "unwanted", "failed", "cancelled"]


class NodeMetrics:
    """The node's metrics, in a registry of their own.

    Every label that a counter can have is there from the start: Prometheus sees no increase in what
    begins at 1. ``folder`` is the node's own, on the disk whose room is told.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.registry = r = CollectorRegistry()
        self.info = Gauge(
            "partsum_node_info",
            "1; its labels say which node this is, and on what.",
            ["node", "device", "version"],
            registry=r,
        )
        self.state = Enum("partsum_node_state", "What the node does.", states=STATES, registry=r)
        self.connected = Gauge(
            "partsum_node_connected", "1 while the coordinator has welcomed the node.", registry=r
        )
        self.samples = Counter("partsum_node_samples", "Samples trained on.", registry=r)
        self.samples_ahead = Counter(
            "partsum_node_samples_ahead",
            "Samples trained on before their assignment came.",
            registry=r,
        )
        self.samples_per_second = Gauge(
            "partsum_node_samples_per_second", "Training speed now; 0 when idle.", registry=r
        )
        self.loss = Gauge(
            "partsum_node_loss", "Mean training loss of the newest assignment.", registry=r
        )
        self.assignments = Counter(
            "partsum_node_assignments",
            f"Assignments by outcome: {', '.join(OUTCOMES)}.",
            ["outcome"],
            registry=r,
        )
        self.bytes = Counter(
            "partsum_node_bytes",
            "Blob bytes by direction: received, sent.",
            ["direction"],
            registry=r,
        )
        self.dials = Counter(
            "partsum_node_dials", "Times that the node has dialled the coordinator.", registry=r
        )
        self.retries = Counter(
            "partsum_node_retries",
            "Transfers begun again, by why: broken, refused.",
            ["why"],
            registry=r,
        )
        self.train_seconds = Histogram(
            "partsum_node_train_seconds",
            "Seconds of training for an assignment.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=r,
        )
        self.resident_memory = Gauge(
            "partsum_node_resident_memory_bytes",
            "Resident memory of the daemon and its worker.",
            registry=r,
        )
        self.resident_memory.set_function(_resident_memory_bytes)
        self.device_memory = Gauge(
            "partsum_node_device_memory_bytes",
            "Peak memory of the newest assignment on its device (CPU: of the worker).",
            registry=r,
        )
        self.worker_restarts = Counter(
            "partsum_node_worker_restarts", "Workers that died and were replaced.", registry=r
        )
        self.disk_free = Gauge(
            "partsum_node_disk_free_bytes", "Room on the disk of the node's folder.", registry=r
        )
        if folder is not None:
            self.disk_free.set_function(lambda: _free_bytes(folder))
        self.loss.set(math.nan)  # not known yet, which is not 0
        for counter, labels in (
            (self.assignments, OUTCOMES),
            (self.bytes, ["received", "sent"]),
            (self.retries, ["broken", "refused"]),
        ):
            for label in labels:
                counter.labels(label)

    def show_node(self, name: str, device: str = "") -> None:
        """Which node this is; its device is known once its worker has started."""
        self.info.clear()
        self.info.labels(name, device, metadata.version("partsum")).set(1)


def _free_bytes(folder: Path) -> float:
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:  # the folder is gone, and the node says so itself
        return math.nan


def _resident_memory_bytes() -> float:
    """Of this process and its children, the worker among them."""
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    return float(total)
