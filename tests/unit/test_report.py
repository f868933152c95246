"""The summary and the report: what a run leaves behind, for scripts and for people."""

import base64
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Literal

import pytest

from partsum.coordinator.report import render_report
from partsum.coordinator.study.results import Row
from partsum.coordinator.summary import (
    HandoffPoint,
    IncidentSummary,
    NodeSummary,
    PhaseSummary,
    RefusalSummary,
    RoundSummary,
    StageSeconds,
    Summary,
    TimelineSummary,
    config_digest,
)
from partsum.shared.config import RunConfig

State = Literal["idle", "receiving", "training", "sending", "gone"]

GROUPS = {"layers.1": 640, "layers.3": 640, "layers.5": 640}
BASE, PART = 1_329_930, 231_050


def a_timeline(
    node: int, rounds: int, lost: int, dice: random.Random
) -> tuple[TimelineSummary, ...]:
    stays: list[TimelineSummary] = []
    now = 1.5 + 0.2 * node

    def stay(state: State, round: int, part: int, seconds: float) -> None:
        nonlocal now
        stays.append(
            TimelineSummary(
                round=round, part=part, state=state, start_seconds=now, end_seconds=now + seconds
            )
        )
        now += seconds

    for round in range(1, rounds + 1):
        now = max(now, 2 + 5.2 * (round - 1))
        if round == lost:
            stay("training", round, node, 1.8)
            stay("gone", 0, -1, 6.0)
            continue
        stay("receiving", round, node, 0.1)
        stay("training", round, node, 3.2 + dice.random() + 0.2 * (node % 3))
        stay("sending", round, node, 0.25)
        stay("idle", 0, -1, 0.2)
    return tuple(stays)


def a_summary(nodes: int = 4, rounds: int = 8, seed: int = 7) -> Summary:
    dice = random.Random(seed)
    sizes = [640 * k // nodes for k in range(nodes + 1)]
    config = RunConfig(name="fashion-mlp", seed=seed)
    closed = [2 + 5.2 * r for r in range(1, rounds + 1)]
    begun = 2 + 5.2 * rounds
    nan_update = RefusalSummary(
        node="attic", part=0, kind="not_finite", reason="layers.3.weight holds NaN"
    )
    records = [
        RoundSummary(
            round=r,
            accuracy=0.78 - 0.22 * math.exp(-r / 2),
            loss=0.78 + 1.1 * math.exp(-r / 2),
            part_losses=tuple(
                None if (r, k) == (4, 2) else 0.6 + math.exp(-r / 2) for k in range(4)
            ),
            missing_parts=(2,) if r == 4 else (),
            reason="node barn went away and its part's deadline passed" if r == 4 else "",
            refused=(nan_update,) if r == 5 else (),
            stage_seconds=StageSeconds(
                plan=0.002, send=0.1, train=4.2, receive=0.24, merge=0.05, evaluate=0.4
            ),
            closed_seconds=closed[r - 1],
        )
        for r in range(1, rounds + 1)
    ]
    handoff = [
        HandoffPoint(
            step=s,
            seconds=begun + 3 + s * 0.12,
            loss=0.36 + 0.45 * math.exp(-s / 90) + dice.gauss(0, 0.015),
            validation_loss=0.38 + 0.35 * math.exp(-s / 110) if s % 117 == 0 else None,
            accuracy=0.87 - 0.09 * math.exp(-s / 120) if s % 117 == 0 else None,
        )
        for s in range(9, 469, 9)
    ]
    end = handoff[-1].seconds + 1.5
    names = ["attic", "barn", "cellar", "den"] + [f"node-{k:02d}" for k in range(4, nodes)]
    return Summary(
        run="fashion-mlp",
        task="partsum.shared.tasks:images",
        config_digest=config_digest(config),
        config=config.model_dump(mode="json"),
        seed=seed,
        started_at="2026-03-02T09:14:05+00:00",
        ended_at="2026-03-02T09:15:49+00:00",
        state="finished",
        wall_seconds=end,
        phases=(
            PhaseSummary(
                name="parts",
                rounds=rounds,
                accuracy=0.776,
                loss=0.79,
                wall_seconds=5.2 * rounds,
                bytes_sent=rounds * 480_000 * nodes,
                bytes_received=rounds * 924_200 * nodes,
                start_seconds=2.0,
                peak_memory_bytes=318_000_000,
            ),
            PhaseSummary(
                name="handoff",
                rounds=0,
                accuracy=0.8687,
                loss=0.3821,
                wall_seconds=end - begun,
                bytes_sent=0,
                bytes_received=0,
                start_seconds=begun,
                start_accuracy=0.776,
                peak_memory_bytes=742_000_000,
            ),
        ),
        rounds=tuple(records),
        handoff=tuple(handoff),
        nodes=tuple(
            NodeSummary(
                name=names[k],
                device="cuda:0 NVIDIA H100" if k == 2 else "cpu",
                samples_per_second=4100.0 + 310 * k,
                updates=rounds - (k == 1),
                bytes_sent=rounds * 480_000,
                bytes_received=rounds * 924_200,
                peak_memory_bytes=301_000_000 + 4_000_000 * k,
                timeline=a_timeline(k, rounds, 4 if k == 1 else 0, dice),
            )
            for k in range(nodes)
        ),
        base_parameters=BASE,
        part_parameters=(PART,) * nodes,
        part_fractions=(1 / nodes,) * nodes,
        group_units=GROUPS,
        parts=tuple(dict.fromkeys(GROUPS, ((sizes[k], sizes[k + 1]),)) for k in range(nodes)),
        full_model_bytes=2 * rounds * nodes * BASE * 4,
        final_accuracy=0.8687,
        final_loss=0.3821,
        peak_rss_bytes=412_000_000,
        checkpoint="final.safetensors",
        report="report.html",
    )


class Outline(HTMLParser):
    """Checks that tags nest, and keeps the text and the attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(page: str) -> Outline:
    outline = Outline(page)
    assert outline.open == []
    return outline


def test_the_report_shows_the_headline_figures() -> None:
    outline = read(render_report(a_summary()))
    for said in ("86.87 %", "0.3821", "7.58 times less", "17.4 %", "1,329,930", "412 MB"):
        assert said in outline.text
    for said in ("hand-off", "attic", "cuda:0 NVIDIA H100", "layers.3", "learning_rate"):
        assert said in outline.text


def test_the_report_needs_nothing_from_elsewhere_and_runs_no_script() -> None:
    page = render_report(a_summary())
    outline = read(page)
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert not [name for name, _ in outline.attributes if name in ("href", "src")]
    assert "url(" not in page.replace("url(#hatch)", "")
    assert "@import" not in page


def test_partial_rounds_and_refused_updates_are_shown_with_their_reasons() -> None:
    text = read(render_report(a_summary())).text
    assert "closed without part 2" in text
    assert "node barn went away" in text
    assert "refused part 0 of attic (not_finite)" in text
    assert "layers.3.weight holds NaN" in text


def test_every_incident_is_told_with_its_node_and_its_reason() -> None:
    calm = a_summary()
    assert "Incidents" not in read(render_report(calm)).text
    what = {"seconds": 61.0, "kind": "gone", "node": "attic", "part": -1, "text": "it went <away>"}
    told = calm.model_copy(update={"incidents": (IncidentSummary.model_validate(what),)})
    text = read(render_report(told)).text
    for said in ("Incidents", "gone", "attic", "it went <away>"):
        assert said in text


def test_averaging_the_full_model_is_not_called_a_saving() -> None:
    summary = a_summary()
    moved = summary.phases[0].bytes_sent + summary.phases[0].bytes_received
    text = read(render_report(summary.model_copy(update={"full_model_bytes": moved}))).text
    assert "about as much as with the full model" in text


def test_a_run_without_trouble_says_so() -> None:
    assert "no update was refused" in read(render_report(a_summary(rounds=3))).text


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_run_that_did_not_finish_says_why_before_anything_else(
    state: Literal["failed", "stopped"],
) -> None:
    summary = a_summary().model_copy(update={"state": state, "reason": "the disk is full"})
    text = read(render_report(summary)).text
    assert text.index("the disk is full") < text.index("86.87 %")


def test_a_run_that_failed_before_its_first_round_has_a_report() -> None:
    full = a_summary()
    kept = ("run", "task", "config_digest", "seed", "started_at", "ended_at", "base_parameters")
    summary = Summary(
        **{name: getattr(full, name) for name in kept},
        state="failed",
        reason="no node joined",
        wall_seconds=0.0,
        peak_rss_bytes=1,
    )
    text = read(render_report(summary)).text
    for said in ("no node joined", "No node took part", "No round was committed", "No phase began"):
        assert said in text


def test_a_study_is_in_the_report_with_its_picture_and_its_table() -> None:
    whole = Row("scratch", "", 1.0, 1.0, 0, 1000, 6000, 10, None, 0.5, 0.9, "parts/a", 2.0)
    half = replace(whole, keep=0.5, selection="strong", start="tuned", accuracy=0.8)
    lost = replace(half, selection="weak", accuracy=None, loss=None, train_seconds=None)
    page = render_report(a_summary(), [whole, half, lost])
    text = read(page).text
    for said in ("Dropout study", "90.00 %", "80.00 %", "strong", "1 of 3 models have no figures"):
        assert said in text
    drawn = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert drawn is not None
    assert "tuned, strong" in base64.b64decode(drawn[1]).decode()
    assert "Dropout study" not in render_report(a_summary())


@pytest.mark.parametrize("nodes", [1, 40])
@pytest.mark.parametrize("rounds", [0, 1, 60])
def test_the_report_bears_few_and_many_nodes_and_rounds(nodes: int, rounds: int) -> None:
    summary = a_summary(nodes, rounds)
    page = render_report(summary)
    read(page)
    assert "nan" not in page.lower().replace("holds nan", "")
    assert len(page) < 2_000_000


def test_a_run_without_a_handoff_and_without_figures_has_a_report() -> None:
    summary = a_summary()
    blank = [r.model_copy(update={"accuracy": None, "loss": None}) for r in summary.rounds]
    bare = summary.model_copy(
        update={
            "phases": summary.phases[:1],
            "handoff": (),
            "rounds": tuple(blank),
            "final_accuracy": None,
            "final_loss": None,
            "full_model_bytes": None,
        }
    )
    text = read(render_report(bare)).text
    assert "Accuracy: nothing was measured" in text
    assert "before the hand-off" not in text


def test_what_nodes_and_users_call_things_cannot_become_markup() -> None:
    evil = '<script>alert("x")</script>'
    summary = a_summary()
    node = summary.nodes[0].model_copy(update={"name": evil, "device": evil})
    page = render_report(
        summary.model_copy(
            update={
                "run": evil,
                "task": evil,
                "state": "failed",
                "reason": evil,
                "nodes": (node,),
                "group_units": {evil: 640},
                "config": {"task": {"options": {evil: evil}}},
            }
        )
    )
    assert "<script" not in page
    read(page)
