"""What the report is made of: markup, ticks, the picture of the parts, the config."""

import random

import pytest

from partsum.coordinator.ranges import Ranges, unit_ranges
from partsum.coordinator.report_charts import parts_picture
from partsum.coordinator.report_svg import element, nice_ticks, time_ticks
from partsum.coordinator.report_tables import config_text
from partsum.coordinator.summary import Summary
from partsum.shared.config import parse_config


def cut_into(units: int, *parts: dict[str, Ranges]) -> Summary:
    return Summary(
        run="digits",
        task="partsum.shared.tasks:digits",
        config_digest="0" * 32,
        seed=0,
        started_at="2026-03-02T09:14:05+00:00",
        ended_at="2026-03-02T09:15:50+00:00",
        state="finished",
        wall_seconds=105.0,
        base_parameters=4810,
        group_units={"wide": units},
        parts=parts,
        peak_rss_bytes=1,
    )


def test_attributes_are_escaped_and_named_as_in_svg() -> None:
    drawn = element("text", "x", class_="a", text_anchor='"><b>', x=1.23456)
    assert drawn == '<text class="a" text-anchor="&quot;&gt;&lt;b&gt;" x="1.23">x</text>'


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-3.0, 0.02), (1e-6, 2e-6), (0.0, 1e9)]
)
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize("seconds", [0.0, 0.3, 8.0, 59.0, 300.0, 7000.0, 90_000.0, 4_000_000.0])
def test_times_are_marked_in_a_unit_that_suits_them(seconds: float) -> None:
    ticks, unit = time_ticks(seconds)
    assert 1 <= len(ticks) <= 11
    assert unit == ("s" if seconds < 120 else "min" if seconds < 7200 else "h")


def test_units_dealt_at_random_are_drawn_in_bounded_space() -> None:
    owner = [k % 2 for k in range(8000)]
    random.Random(0).shuffle(owner)
    parts: list[dict[str, Ranges]] = [
        {"wide": unit_ranges(u for u, part in enumerate(owner) if part == k)} for k in range(2)
    ]
    picture = parts_picture(cut_into(8000, *parts))
    assert 350 < picture.count("<rect") < 450
    assert len(picture) < 100_000


def test_parts_that_share_units_get_a_lane_each() -> None:
    picture = parts_picture(cut_into(8, {"wide": ((0, 8),)}, {"wide": ((0, 4),)}))
    assert picture.count('height="9"') == 2


def test_a_group_that_a_part_does_not_name_is_kept_whole() -> None:
    assert "keeps units 0 to 7" in parts_picture(cut_into(8, {}))


def test_the_config_in_the_report_can_be_used_again() -> None:
    config = parse_config(
        'name = "again"\n[task.options]\nwidths = [64, 64]\n[parts]\nfractions = [0.5, 0.5]\n'
        "count = 2\n"
    )
    assert parse_config(config_text(config.model_dump(mode="json"))) == config
