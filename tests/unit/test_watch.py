"""The terminal's view of a run: what is said, and that it fits."""

import asyncio
import io
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from partsum.coordinator.figures import (
    bytes_text,
    clock_text,
    gflop_text,
    moment_text,
    plain_text,
    rate_text,
    seconds_text,
    share_text,
)
from partsum.coordinator.summary import PhaseSummary, Summary
from partsum.coordinator.watch import render_status, status_line, summary_table, watch
from partsum.shared.errors import PartsumError
from partsum.shared.messages import NodeStatus, RunStatus

NODE = NodeStatus(
    name="attic",
    state="training",
    device="cpu",
    part_index=2,
    progress=0.5,
    loss=0.51234,
    samples_per_second=12345.6,
    bytes_sent=1_200_000,
    bytes_received=920_000,
)
STATUS = RunStatus(
    run="digits",
    phase="parts",
    reason="waiting for part 3 of 4: attic trains it",
    round=2,  # committed
    rounds=8,
    parts_in=3,
    parts=4,
    loss=0.3123,
    accuracy=0.9123,
    handoff_step=0,
    handoff_steps=0,
    elapsed_seconds=83.2,
    bytes_sent=4_800_000,
    bytes_received=3_700_000,
    nodes=(NODE,),
    folder="runs/digits",
)
SUMMARY = Summary(
    run="digits",
    task="partsum.shared.tasks:digits",
    config_digest="0" * 32,
    seed=0,
    started_at="2026-03-02T09:14:05+00:00",
    ended_at="2026-03-02T09:15:50+00:00",
    state="finished",
    wall_seconds=105.0,
    phases=(
        PhaseSummary(
            name="parts",
            rounds=8,
            accuracy=0.776,
            loss=0.79,
            wall_seconds=41.6,
            bytes_sent=15_400_000,
            bytes_received=29_600_000,
            peak_memory_bytes=318_000_000,
        ),
        PhaseSummary(
            name="handoff",
            rounds=0,
            accuracy=0.8687,
            loss=0.3821,
            wall_seconds=61.4,
            bytes_sent=0,
            bytes_received=0,
        ),
    ),
    base_parameters=1_329_930,
    part_parameters=(231_050, 231_050, 231_051),
    peak_rss_bytes=412_000_000,
    checkpoint="final.safetensors",
    report="report.html",
)


def shown(picture: RenderableType) -> str:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(picture)
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    return text


async def each(*statuses: RunStatus) -> AsyncIterator[RunStatus]:
    for status in statuses:
        yield status


def watched(console: Console, *statuses: RunStatus) -> RunStatus:
    return asyncio.run(watch(each(*statuses), console))


def test_the_view_says_where_the_run_is_and_what_it_waits_for() -> None:
    text = shown(render_status(STATUS))
    for said in ("round 3 of 8", "3 of 4 updates in", "waiting for part 3", "91.23 %", "0.3123"):
        assert said in text
    for said in ("4.8 MB", "3.7 MB", "1:23", "attic", "training", "cpu", "12,346", "1.2 MB"):
        assert said in text


def test_figures_that_are_not_known_yet_are_a_dash() -> None:
    text = shown(render_status(replace(STATUS, loss=math.nan, accuracy=math.nan)))
    assert "accuracy -" in text
    assert "nan" not in text


def test_the_handoff_shows_how_far_it_is() -> None:
    status = replace(STATUS, phase="handoff", handoff_step=117, handoff_steps=468)
    text = shown(render_status(status))
    assert "step 117 of 468" in text
    assert "25 %" in text


def test_a_node_that_is_gone_shows_no_part_and_no_speed() -> None:
    gone = replace(NODE, state="gone", part_index=-1, samples_per_second=0.0, loss=math.nan)
    text = shown(render_status(replace(STATUS, nodes=(gone,))))
    assert "gone" in text
    assert "nan" not in text


def test_forty_nodes_with_long_names_fit_on_a_screen() -> None:
    nodes = tuple(
        replace(
            NODE,
            name=f"a-node-with-a-very-long-name-{k}",
            device="cuda:0 NVIDIA H100",
            state="idle" if k % 2 else "receiving",
            bytes_sent=123_456_789_012,
        )
        for k in range(40)
    )
    text = shown(render_status(replace(STATUS, nodes=nodes)))
    assert len(text.splitlines()) <= 24
    assert "and 24 more: 12 receiving, 12 idle" in text


def test_names_from_the_wire_cannot_drive_the_terminal() -> None:
    evil = replace(NODE, name="\x1b[2J\nx", device="[red]y")
    text = shown(render_status(replace(STATUS, nodes=(evil,), reason="\x1b]0;title\x07")))
    assert "\x1b" not in text
    assert "[red]y" in text


def test_a_run_without_nodes_and_one_that_failed_can_be_shown() -> None:
    text = shown(render_status(replace(STATUS, phase="failed", reason="no disk", nodes=())))
    assert "failed" in text
    assert "no disk" in text


def test_a_log_gets_a_line_for_each_change_and_no_more() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    next_round = replace(STATUS, round=3, reason="waiting for all parts")
    last = watched(
        console,
        STATUS,
        replace(STATUS, elapsed_seconds=84.0, loss=0.3),
        next_round,
        replace(STATUS, phase="finished", reason="", elapsed_seconds=90.0),
    )
    assert last.phase == "finished"
    lines = console.export_text().splitlines()
    assert [line[:6] for line in lines] == ["[1:23]", "[1:23]", "[1:30]"]
    assert lines[0] == (
        "[1:23] parts, round 3 of 8, 3 of 4 updates in: waiting for part 3 of 4: attic trains it "
        "(accuracy 91.23 %, loss 0.3123, 4.8 MB to nodes, 3.7 MB from them)"
    )


def test_a_line_of_a_run_that_waits_says_so_once() -> None:
    waits = replace(STATUS, phase="waiting", reason="waiting for nodes: 0 of 4 are ready")
    assert status_line(waits).startswith("[1:23] waiting for nodes: 0 of 4 are ready (")
    assert status_line(replace(waits, reason="")).startswith("[1:23] waiting (")


def test_a_terminal_gets_a_view_that_ends_with_the_last_status() -> None:
    screen = io.StringIO()
    console = Console(width=80, height=24, file=screen, force_terminal=True, color_system=None)
    last = watched(console, STATUS, replace(STATUS, phase="finished", reason="all is done"))
    assert last.reason == "all is done"
    assert "all is done" in screen.getvalue()


def test_a_coordinator_that_says_nothing_is_an_error_in_words() -> None:
    with pytest.raises(PartsumError, match="said nothing"):
        watched(Console(file=io.StringIO()))


def test_the_table_at_the_end_has_each_phase_and_the_paths() -> None:
    text = shown(summary_table(SUMMARY, Path("runs/digits-1")))
    for said in ("77.60 %", "86.87 %", "41.6 s", "15.4 MB", "29.6 MB", "1,329,930", "412 MB"):
        assert said in text
    for said in ("2 x 231,050 (17.4 % of the base)", "1 x 231,051", "318 MB"):
        assert said in text
    assert "runs/digits-1/final.safetensors" in text
    assert "runs/digits-1/report.html" in text


def test_the_table_of_a_failed_run_says_why() -> None:
    failed = SUMMARY.model_copy(
        update={"state": "failed", "reason": "no node joined", "phases": (), "checkpoint": None}
    )
    text = shown(summary_table(failed))
    assert "failed" in text
    assert "no node joined" in text
    assert "checkpoint" not in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(999_700), "1 MB"),
        (bytes_text(12_345_678), "12.3 MB"),
        (bytes_text(None), "-"),
        (bytes_text(5e15), "5e+03 TB"),
        (gflop_text(0.0), "0"),
        (gflop_text(5e4), "<0.001"),
        (gflop_text(3.41e6), "0.0034"),
        (gflop_text(2.5e9), "2.5"),
        (gflop_text(9.97e9), "10"),
        (gflop_text(12_345e9), "12,345"),
        (seconds_text(0.0), "0 s"),
        (seconds_text(0.004), "4 ms"),
        (seconds_text(0.25), "0.25 s"),
        (seconds_text(59.97), "1 min 00 s"),
        (seconds_text(11_520), "3 h 12 min"),
        (seconds_text(math.nan), "-"),
        (clock_text(3 * 3600 + 62), "3:01:02"),
        (share_text(0.5), "50.00 %"),
        (share_text(7.25), "7.25"),
        (rate_text(3.21), "3.2"),
        (rate_text(math.inf), "-"),
        (plain_text("a\nb"), "a b"),
        (moment_text("2026-03-02T09:14:05.25+00:00"), "2026-03-02 09:14:05 UTC"),
        (moment_text("yesterday"), "yesterday"),
    ],
)
def test_figures_are_written_for_people(said: str, expected: str) -> None:
    assert said == expected
