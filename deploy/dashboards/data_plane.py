"""What moves between the coordinator and its nodes, and what is turned away."""

from __future__ import annotations

from deploy.dashboards.board import board
from deploy.dashboards.panels import EVERY, Panels, lines, number, of_node

_SEEN = '@, node=~"$node"'


def _moved(direction: str, of: str = "@") -> str:
    return f'rate(partsum_bytes_total{{{of}, direction="{direction}"}}[{EVERY}])'


def _total(direction: str) -> str:
    return f'sum(partsum_bytes_total{{@, direction="{direction}"}})'


def _stage(stage: str) -> str:
    spent, times = (
        f'sum(rate(partsum_round_stage_seconds_{kind}{{@, stage="{stage}"}}[{EVERY}]))'
        for kind in ("sum", "count")
    )
    return f"{spent} / {times}"


def _by_reason(counter: str) -> str:
    return f"sum by (reason) (increase({counter}{{@}}[{EVERY}]))"


def _retries(how: str, range: str) -> str:
    return "sum by (why) (" + of_node(f"{how}(partsum_node_retries_total[{range}])") + ")"


def _now() -> Panels:
    return [
        number(
            "Out",
            "Bps",
            {"out": f"sum({_moved('sent')})"},
            "Bytes a second from the coordinator to its nodes: assignments, and bases where parts "
            "start from one.",
        ),
        number(
            "In", "Bps", {"in": f"sum({_moved('received')})"}, "Bytes a second from nodes: updates."
        ),
        number(
            "Moved",
            "bytes",
            {"out": _total("sent"), "in": _total("received")},
            "Over the whole run, restarts of the coordinator included.",
        ),
        number(
            "Updates refused",
            "short",
            {"refused": "sum(increase(partsum_updates_refused_total{@}[$__range]))"},
            "In the time that is shown.",
        ),
        number(
            "Calls denied",
            "short",
            {"denied": "sum(increase(partsum_calls_denied_total{@}[$__range]))"},
            "In the time that is shown: wrong or missing credentials, too many calls.",
        ),
        number(
            "Transfers begun again",
            "short",
            {"{{why}}": _retries("increase", "$__range")},
            "In the time that is shown, as nodes count them.",
        ),
    ]


def _moves() -> Panels:
    return [
        lines(
            "Out, by node",
            "Bps",
            {"{{node}}": _moved("sent", _SEEN)},
            "Bytes a second from the coordinator to each node.",
        ),
        lines(
            "In, by node",
            "Bps",
            {"{{node}}": _moved("received", _SEEN)},
            "Bytes a second from each node to the coordinator.",
        ),
        lines(
            "As nodes count them",
            "Bps",
            {
                "{{direction}}": "sum by (direction) ("
                + of_node(f"rate(partsum_node_bytes_total[{EVERY}])")
                + ")"
            },
            "Blob bytes a second of all nodes that Prometheus scrapes; messages are not in it.",
        ),
        lines(
            "Slowest transfer of a round",
            "s",
            {"to nodes": _stage("send"), "from nodes": _stage("receive")},
            "Seconds until the slowest node had what it needs to train, and from its offer of an "
            "update until that was in the journal; a mean of the rounds that closed then.",
        ),
    ]


def _trouble() -> Panels:
    return [
        lines(
            "Updates refused",
            "short",
            {"{{reason}}": _by_reason("partsum_updates_refused_total")},
            "An update that does not fit, is damaged, not finite or far from all others is not "
            "merged; the coordinator's log says what was wrong with it.",
            stacked=True,
        ),
        lines(
            "Calls denied",
            "short",
            {"{{reason}}": _by_reason("partsum_calls_denied_total")},
            "What the gate turned away, in gRPC's words.",
            stacked=True,
        ),
        lines(
            "Transfers begun again",
            "short",
            {"{{why}}": _retries("increase", EVERY)},
            "broken: the connection went, and the transfer goes on where it was; refused: the "
            "coordinator did not know yet what it was about.",
            stacked=True,
        ),
        lines(
            "Dials",
            "short",
            {"{{node}}": of_node(f"increase(partsum_node_dials_total[{EVERY}])")},
            "How often each node dialled the coordinator: after the first time, one had broken.",
            stacked=True,
        ),
    ]


def data_plane() -> str:
    """Bytes a second in and out, refusals, denied calls, retries."""
    return board(
        "partsum: data plane",
        "partsum-data-plane",
        "What moves between the coordinator and its nodes, and what is turned away.",
        {"Now": _now(), "Bytes": _moves(), "Turned away, and tried again": _trouble()},
    )
