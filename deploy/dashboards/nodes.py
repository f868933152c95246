"""What each node is, does and needs."""

from __future__ import annotations

from typing import get_args

from deploy.dashboards.board import board
from deploy.dashboards.panels import EVERY, Panels, lines, numbered, of_node, rows, timeline

from partsum.coordinator.registry import State
from partsum.node.metrics import STATES

_SEEN = '@, node=~"$node"'
_WHAT = ("device", "version")
_STATES = get_args(State)
_OWN = numbered("partsum_node_state", "partsum_node_state", STATES, "job, instance", where="")


def _quantile(share: float) -> str:
    buckets = of_node(f"rate(partsum_node_train_seconds_bucket[{EVERY}])")
    return f"histogram_quantile({share}, sum by (node, le) ({buckets}))"


def _who() -> Panels:
    return [
        rows(
            "Nodes",
            "node",
            {
                "Connected": ("bool_yes_no", of_node("partsum_node_connected", *_WHAT)),
                "Samples": ("short", of_node("partsum_node_samples_total", *_WHAT)),
                "Memory": ("bytes", of_node("partsum_node_resident_memory_bytes", *_WHAT)),
                "Disk free": ("bytes", of_node("partsum_node_disk_free_bytes", *_WHAT)),
            },
            "Nodes that Prometheus scrapes. One that it cannot reach is missing here, and is in "
            "the timeline below all the same.",
            labels=(*_WHAT, "instance"),
        ),
    ]


def _doing() -> Panels:
    return [
        timeline(
            "State, as the coordinator sees it",
            _STATES,
            {
                "{{node}}": numbered(
                    "partsum_cluster_node_state", "state", _STATES, "node", f"{_SEEN}, "
                )
            },
            "What each node did, over time. gone: its connection ended; benched: it failed too "
            "often and gets no more work.",
        ),
        timeline(
            "State, as the node sees it",
            STATES,
            {"{{node}}": of_node(_OWN)},
            "connecting: it looks for a coordinator; loading: its worker loads task and data.",
        ),
    ]


def _speed() -> Panels:
    return [
        lines(
            "Speed",
            "short",
            {"{{node}}": f"partsum_samples_per_second{{{_SEEN}}}"},
            "Samples a second while it trains, as each node last told the coordinator.",
        ),
        lines(
            "Samples trained",
            "short",
            {
                "{{node}}": of_node(f"rate(partsum_node_samples_total[{EVERY}])"),
                "{{node}}, ahead": of_node(f"rate(partsum_node_samples_ahead_total[{EVERY}])"),
            },
            "Samples a second over all of the time, pauses included; ahead: trained while the "
            "update before still travelled.",
        ),
        lines(
            "Training of an assignment",
            "s",
            {"{{node}}, median": _quantile(0.5), "{{node}}, 95 % are faster than": _quantile(0.95)},
            "Seconds, from a histogram's buckets: they are coarse.",
        ),
        lines(
            "Loss",
            "none",
            {"{{node}}": of_node("partsum_node_loss")},
            "Mean training loss of the newest assignment.",
        ),
    ]


def _needs() -> Panels:
    return [
        lines(
            "Memory",
            "bytes",
            {"{{node}}": of_node("partsum_node_resident_memory_bytes")},
            "Resident, of the daemon and its worker.",
            width=8,
        ),
        lines(
            "Device memory",
            "bytes",
            {"{{node}}": of_node("partsum_node_device_memory_bytes")},
            "Peak of the newest assignment: the GPU's, or on a CPU the worker's.",
            width=8,
        ),
        lines(
            "Disk free",
            "bytes",
            {"{{node}}": of_node("partsum_node_disk_free_bytes")},
            "Room on the disk of the node's state folder.",
            width=8,
        ),
    ]


def _bytes() -> Panels:
    return [
        lines(
            f"Bytes {direction}",
            "Bps",
            {
                "{{node}}": of_node(
                    f'rate(partsum_node_bytes_total{{direction="{direction}"}}[{EVERY}])'
                )
            },
            "Blob bytes a second, as each node counts them.",
        )
        for direction in ("received", "sent")
    ]


def _ends() -> Panels:
    return [
        lines(
            "Assignments by outcome",
            "short",
            {
                "{{outcome}}": "sum by (outcome) ("
                + of_node(f"increase(partsum_node_assignments_total[{EVERY}])")
                + ")"
            },
            "How assignments ended. refused: the coordinator would not merge the update; unwanted: "
            "another node was faster, or the round was closed.",
            width=8,
            stacked=True,
        ),
        lines(
            "Updates accepted",
            "short",
            {"{{node}}": f"increase(partsum_updates_total{{{_SEEN}}}[{EVERY}])"},
            "By node, as the coordinator counts them.",
            width=8,
            stacked=True,
        ),
        lines(
            "Workers replaced",
            "short",
            {"{{node}}": of_node(f"increase(partsum_node_worker_restarts_total[{EVERY}])")},
            "A worker that dies, of too little memory for example, costs its assignment only.",
            width=8,
            stacked=True,
        ),
    ]


def nodes() -> str:
    """States over time, speed, loss, memory, bytes, outcomes."""
    return board(
        "partsum: nodes",
        "partsum-nodes",
        "Each node: what it is, what it does, how fast, and what that takes.",
        {
            "Who is here": _who(),
            "What they do": _doing(),
            "Speed and loss": _speed(),
            "Memory and disk": _needs(),
            "Bytes": _bytes(),
            "How assignments end": _ends(),
        },
    )
