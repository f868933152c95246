"""The live page's JSON: what a status and a journal become. No socket, no clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.coordinator.live.chronicle import thinned
from partsum.coordinator.live.glimpse import Glimpse, NodeFigures
from partsum.coordinator.live.status import StatusNow, status_now
from partsum.shared.messages import NodeStatus, RunStatus, Standing

NAN = math.nan


def node(name: str, state: str = "training", part: int = 0, progress: float = 0.5) -> NodeStatus:
    return NodeStatus(name, state, "cpu", part, progress, 0.25, 100.0, 10, 20)  # type: ignore[arg-type]


def run_status(*nodes: NodeStatus, parts: int = 2) -> RunStatus:
    return RunStatus(
        run="r",
        phase="parts",
        reason="waiting for part 1",
        round=3,
        rounds=8,
        parts_in=0,
        parts=parts,
        loss=NAN,
        accuracy=math.inf,
        handoff_step=0,
        handoff_steps=0,
        elapsed_seconds=12.5,
        bytes_sent=1,
        bytes_received=2,
        nodes=nodes,
        folder="/runs/r",
    )


def told(status: RunStatus, **parts: Any) -> dict[str, Any]:
    """The answer's JSON, read as strictly as a browser does."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = status_now(
        Glimpse(status, {"a": NodeFigures(4, 99)}),
        parts.get("holders", {}),
        parts.get("done", {}),
        "1.2",
    )
    value: dict[str, Any] = json.loads(found.model_dump_json(), parse_constant=no_constant)
    return value


def test_what_was_not_measured_is_null() -> None:
    found = told(run_status(replace(node("a"), loss=NAN, samples_per_second=0.0)))
    assert found["loss"] is None
    assert found["accuracy"] is None
    assert found["nodes"][0]["loss"] is None
    assert found["nodes"][0]["samples_per_second"] is None


def test_a_node_is_told_with_what_the_registry_knows_of_it() -> None:
    known, new = told(run_status(node("a", part=1), node("b", "idle", -1)))["nodes"]
    assert (known["updates"], known["peak_memory_bytes"], known["part"]) == (4, 99, 1)
    assert (new["updates"], new["peak_memory_bytes"], new["part"]) == (0, None, None)


def test_a_part_is_in_at_work_or_waiting_for_somebody() -> None:
    status = run_status(node("a", part=1, progress=0.75), parts=4)
    parts = told(status, holders={2: "c"}, done={0: "b"})["parts"]
    assert parts == [
        {"part": 0, "node": "b", "state": "in", "progress": 1.0},
        {"part": 1, "node": "a", "state": "training", "progress": 0.75},
        {"part": 2, "node": "c", "state": "waiting", "progress": 0.0},
        {"part": 3, "node": "", "state": "waiting", "progress": 0.0},
    ]


def test_of_two_nodes_on_one_part_the_further_one_is_told() -> None:
    parts = told(run_status(node("slow", progress=0.2), node("fast", progress=0.9)))["parts"]
    assert (parts[0]["node"], parts[0]["progress"]) == ("fast", 0.9)


@pytest.mark.parametrize("phase", ["waiting", "handoff", "finished", "stopped", "failed"])
def test_where_no_round_is_open_there_are_no_parts(phase: Any) -> None:
    assert told(replace(run_status(node("a")), phase=phase))["parts"] == []


def test_of_very_many_parts_the_first_are_told() -> None:
    found = told(run_status(parts=5000))
    assert len(found["parts"]) == 256
    assert found["parts_count"] == 5000


def test_a_search_tells_its_first_places() -> None:
    one = Standing("101", 2, 0.9, NAN, 50, 1000, 0.001, True)
    (place,) = told(replace(run_status(), standings=(one,)))["standings"]
    assert place["structure"] == "101"
    assert place["loss"] is None


@given(st.floats(), st.floats(), st.floats())
def test_any_figures_make_json(loss: float, progress: float, speed: float) -> None:
    status = run_status(replace(node("a"), loss=loss, progress=progress, samples_per_second=speed))
    found = told(replace(status, loss=loss, accuracy=speed))
    assert 0 <= found["nodes"][0]["progress"] <= 1


def test_every_field_says_what_it_is() -> None:
    for name, field in StatusNow.model_fields.items():
        assert field.description, name


@given(st.integers(0, 5000), st.integers(1, 300))
def test_a_thinned_list_is_short_in_order_and_keeps_its_newest(length: int, most: int) -> None:
    rows = list(range(length))
    left = thinned(rows, most)
    assert len(left) <= most
    assert left == sorted(set(left))
    assert not rows or left[-1] == rows[-1]
