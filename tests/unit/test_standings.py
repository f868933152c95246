"""The leaderboard on the terminal, over the wire, in the summary and in the report."""

from __future__ import annotations

import io
import math
from dataclasses import replace

from rich.console import Console, RenderableType

from partsum.coordinator.leaderboard import Candidate, Leaderboard, Score
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.report_structures import structures_section
from partsum.coordinator.run_figures import structure_figures
from partsum.coordinator.standings import final_standings, render_standings, standings_of
from partsum.coordinator.summary_structures import search_summary
from partsum.shared import wire
from partsum.shared.messages import RunStatus

SCORES = (("11", 4, 0.75), ("10", 3, 0.8), ("01", 2, 0.7), ("00", 1, 0.6))
BOARD = Leaderboard(
    ("a", "b<"),
    tuple(
        Candidate(
            bits,
            100 * flops,
            flops * 10**6,
            "11" if bits == "01" else "",
            (Score(0, 2.0, 0.5 - 0.1 * flops, 2e-4), Score(1, 1.0, accuracy, 2e-4)),
        )
        for bits, flops, accuracy in SCORES
    ),
    ("11", "10", "01", "00"),
)


def shown(what: RenderableType) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(what)
    return text.getvalue()


def status_of(board: Leaderboard) -> RunStatus:
    nan = math.inf  # nan is not equal to itself
    return RunStatus(
        "r", "parts", "", 2, 4, 0, 4, nan, nan, 0, 0, 1.0, 0, 0, (), "f", standings_of(board)
    )


def test_standings_come_back_from_the_wire_as_they_were() -> None:
    status = status_of(BOARD)
    assert [one.structure for one in status.standings] == ["10", "11", "01", "00"]
    assert wire.status_from_wire(wire.status_to_wire(status)) == status


def test_the_terminal_shows_the_best_first_and_marks_the_front() -> None:
    text = shown(render_standings(standings_of(BOARD), BOARD.gates))
    assert [line.split()[:2] for line in text.splitlines()[1:5]] == [
        ["1*", "10"],
        ["2", "11"],
        ["3*", "01"],
        ["4*", "00"],
    ]
    assert "gates, in order: a, b<" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_end_shows_what_the_run_showed() -> None:
    assert final_standings(search_summary(BOARD)) == standings_of(BOARD)


def test_the_summary_compares_each_round_with_the_last() -> None:
    found = search_summary(BOARD)
    assert found.correlations == (BOARD.correlations()[0],)
    assert [one.parent for one in found.structures] == ["", "", "11", ""]
    assert search_summary(Leaderboard(("a",))).structures == ()


def test_the_report_draws_score_against_cost_and_names_are_no_markup() -> None:
    page = structures_section(search_summary(BOARD))
    assert "Accuracy against cost" in page
    assert "Loss against cost" in structures_section(search_summary(replace(BOARD, by="loss")))
    assert page.count("<circle") == 4
    assert page.count("<polyline") == 1
    assert "b&lt;" in page
    assert "b<" not in page.replace("</b", "").replace("<b", "")
    assert structures_section(None) == ""
    assert "<svg" not in structures_section(search_summary(Leaderboard(("a",))))


def test_metrics_tell_how_many_structures_are_left_and_the_best_score() -> None:
    metrics = Metrics()
    metrics.show_search(None)
    metrics.show_search(BOARD)
    value = metrics.registry.get_sample_value
    assert value("partsum_structures") == 4
    assert value("partsum_structure_best") == 0.8


def test_metrics_tell_how_the_first_places_do_and_no_more_of_them() -> None:
    many = tuple(
        Candidate(f"{n:04b}", 10 + n, 20, "", (Score(0, float(n), 0.5, 1e-3),)) for n in range(16)
    )
    board = Leaderboard(("a", "b", "c", "d"), many)
    by_name = {metric.name: metric.samples for metric in structure_figures(board)}
    losses = by_name["partsum_structure_loss"]
    assert [one.labels["structure"] for one in losses] == [one.bits for one in many[:10]]
    assert [one.value for one in losses] == [float(n) for n in range(10)]
    assert by_name["partsum_structure_parameters"][3].value == 13
    diverged = Leaderboard(("a",), (Candidate("0", 1, 1, "", (Score(0, None, None, 0.1),)),))
    (loss,) = structure_figures(diverged)[1].samples
    assert math.isnan(loss.value)
