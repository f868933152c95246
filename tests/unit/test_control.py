"""What a coordinator may say to a node, and what no coordinator says."""

from __future__ import annotations

import json
import math

import pytest

from partsum.node import control
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared.errors import WireError


def welcome(**changes: object) -> pb.ControlResponse:
    values = {
        "run": "r",
        "task": "package.module:function",
        "task_options": '{"widths": [12, 12], "name": "x", "rate": 0.5, "fast": true}',
        "heartbeat_seconds": 2.0,
        **changes,
    }
    return pb.ControlResponse(welcome=pb.Welcome(**values))  # type: ignore[arg-type]


def test_a_welcome_comes_with_the_options_of_a_config() -> None:
    heard = control.incoming(welcome())
    assert isinstance(heard, control.Welcome)
    assert heard.task.options == {"widths": [12, 12], "name": "x", "rate": 0.5, "fast": True}
    plain = control.incoming(welcome(task_options=""))
    assert isinstance(plain, control.Welcome)
    assert plain.task.options == {}


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e9, math.inf, -math.inf, math.nan])
def test_a_heartbeat_that_would_flood_or_never_come_is_refused(seconds: float) -> None:
    with pytest.raises(WireError, match="heartbeat_seconds is"):
        control.incoming(welcome(heartbeat_seconds=seconds))


@pytest.mark.parametrize(
    "options",
    [
        "[" * 100_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"a": {"b": 1}}',
        '{"a": [[1]]}',
        '{"a": ["x"]}',
        '{"a": null}',
        "[1]",
        "{",
        "nine",
        '{"a": ' + "9" * 5000 + "}",
        json.dumps({"a": "x" * limits.OPTIONS_BYTES}),
    ],
    ids=range(11),
)
def test_task_options_that_no_config_can_hold_are_refused_in_a_few_words(options: str) -> None:
    with pytest.raises(WireError, match="the task's options") as caught:
        control.incoming(welcome(task_options=options))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", ["run", "task"])
def test_names_without_an_end_are_refused(field: str) -> None:
    with pytest.raises(WireError, match="has 3000000 characters, more than 256"):
        control.incoming(welcome(**{field: "x" * 3_000_000}))


@pytest.mark.parametrize("kind", ["cancel", "refused", "finished", "quarantined"])
def test_reasons_are_cut_to_a_line_for_the_log(kind: str) -> None:
    said = pb.ControlResponse()
    getattr(said, kind).reason = "no\n12:00:00 ERROR forged\x1b[2J" + "x" * 3_000_000
    heard = control.incoming(said)
    reason = heard.reason  # type: ignore[union-attr]
    assert reason.startswith("no 12:00:00 ERROR forged [2J")
    assert len(reason) == limits.WORDS_CHARACTERS


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(WireError, match="something unknown"):
        control.incoming(pb.ControlResponse())
