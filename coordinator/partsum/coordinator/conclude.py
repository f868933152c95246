"""What a run leaves behind: the journal told as summary.json and report.html."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from partsum.coordinator.cost import part_size
from partsum.coordinator.phases import phase_of
from partsum.coordinator.ranges import part_picture
from partsum.coordinator.records import RoundPlan, Span
from partsum.coordinator.registry import Registry
from partsum.coordinator.relevance.survey import Findings, ranking
from partsum.coordinator.report import render_report
from partsum.coordinator.run import Run
from partsum.coordinator.study.results import from_json
from partsum.coordinator.study.workshop import ROWS
from partsum.coordinator.summary import (
    HandoffPoint,
    IncidentSummary,
    NodeSummary,
    RankingSummary,
    RefusalSummary,
    RoundSummary,
    StageSeconds,
    Summary,
    TimelineSummary,
    config_digest,
    write_summary,
)
from partsum.coordinator.summary_phases import phase_summaries
from partsum.coordinator.summary_structures import search_summary
from partsum.shared.files import write_file
from partsum.shared.memory import peak_resident_bytes
from partsum.shared.part import WHOLE

_INCIDENTS = 500  # a page that people read

Outcome = Literal["finished", "stopped", "failed"]


def conclude(run: Run, registry: Registry, state: Outcome, reason: str) -> Summary:
    """Write the run's summary and report into its folder, and leave no spares there."""
    run.store.spares.clear()
    summary = summarise(run, registry, state, reason)
    write_summary(run.folder / "summary.json", summary)
    study = from_json(run.store.fact(ROWS) or [])
    write_file(run.folder / "report.html", render_report(summary, study).encode())
    return summary


def summarise(run: Run, registry: Registry, state: Outcome, reason: str) -> Summary:
    """The journal and what the process knows, as a Summary."""
    store, config, now = run.store, run.config, run.clock.now()
    started_at, ended_at = run.clock.dates()
    study = config.parts.is_study  # its models are in the journal, and are no parts of a base
    last = min(run.next_round, config.parts.rounds) - 1  # of the rounds that had parts
    plan = store.plan(last) if last >= 0 and not study else None
    sizes = {group.name: group.units for group in run.base.widths.groups}
    final = run.folder / "final.safetensors"
    moved = sum(registry.totals())
    whole = part_size(run.base.shape, run.base.widths, WHOLE)
    return Summary(
        run=run.folder.name,
        task=config.task.name,
        config_digest=config_digest(config),
        config=config.model_dump(mode="json"),
        seed=config.seed,
        started_at=started_at,
        ended_at=ended_at,
        state=state,
        reason=reason,
        wall_seconds=now,
        phases=phase_summaries(run, registry, now),
        rounds=_rounds(run),
        handoff=tuple(
            HandoffPoint(
                step=step,
                seconds=at,
                loss=body.get("loss"),
                validation_loss=body.get("validation_loss"),
                accuracy=body.get("accuracy"),
            )
            for step, at, body in store.curve()
        ),
        nodes=_nodes(run, registry),
        incidents=tuple(
            IncidentSummary(seconds=at, kind=kind, node=node, part=part, text=text)
            for at, kind, node, part, text in store.events()[-_INCIDENTS:]
        ),
        base_parameters=whole.parameters,
        part_parameters=_part_parameters(run, plan),
        part_fractions=() if study or config.parts.is_search else _fractions(run),
        group_units=sizes,
        parts=tuple(part_picture(planned.part) for planned in plan.parts) if plan else (),
        gates_off=tuple(store.fact("structure") or config.gates.off),
        search=search_summary(run.board) if run.board else None,
        ranking=_ranking(run),
        full_model_bytes=_full_model_bytes(run, whole.state_bytes) if moved and not study else None,
        final_accuracy=run.accuracy,
        final_loss=run.loss,
        privacy_epsilon=run.epsilon(),
        peak_rss_bytes=peak_resident_bytes(),
        checkpoint=final.name if final.exists() else _newest_base(run),
        report="report.html",
    )


def _fractions(run: Run) -> tuple[float, ...]:
    return tuple((run.store.fact("workplan") or {}).get("fractions", ()))


def _ranking(run: Run) -> tuple[RankingSummary, ...]:
    """As before the first round, where it is told how much of each group was noise."""
    noted = run.store.fact("first_relevance")
    if not noted:
        return ()
    found, ranked = Findings(**noted), ranking(run.store, run.config)
    return tuple(
        RankingSummary(
            group=group.name,
            units=group.units,
            shared=ranked.strong(group),
            strongest=max(found.scores[group.name]),
            weakest=min(found.scores[group.name]),
            sparse_share=found.sparse.get(group.name),
        )
        for group in run.base.widths.groups
        if group.name in found.scores
    )


def _newest_base(run: Run) -> str | None:
    bases = sorted((run.folder / "bases").glob("base-*"))
    return f"bases/{bases[-1].name}" if bases else None


def _full_model_bytes(run: Run, state_bytes: int) -> int:
    rounds = (r for r in run.store.results() if phase_of(run.config, r) == "parts")
    updates = sum(len(run.store.updates(round)) for round in rounds)
    return 2 * state_bytes * updates


def _part_parameters(run: Run, plan: RoundPlan | None) -> tuple[int, ...]:
    if plan is None:
        return ()
    parts = [planned.part for planned in plan.parts]
    sizes = {part: part_size(run.base.shape, run.base.widths, part) for part in set(parts)}
    return tuple(sizes[part].parameters for part in parts)


def _rounds(run: Run) -> tuple[RoundSummary, ...]:
    rounds = []
    events = run.store.events()
    for number, (result, opened, closed) in run.store.results().items():
        updates = run.store.updates(number)
        count = 1 + max((*updates, *result.missing), default=-1)
        during = [event for event in events if opened <= event[0] <= closed]
        partial = [text for _, kind, _, _, text in during if kind == "partial"]
        rounds.append(
            RoundSummary(
                round=number + 1,
                phase=phase_of(run.config, number),
                accuracy=result.accuracy,
                loss=result.loss,
                part_losses=tuple(
                    updates[k].update.loss if k in updates else None for k in range(count)
                ),
                missing_parts=result.missing,
                refused=tuple(
                    RefusalSummary(node=node, part=part, kind=kind.partition(":")[2], reason=text)
                    for _, kind, node, part, text in during
                    if kind.startswith("refused:")
                ),
                reason="; ".join(partial),
                stage_seconds=StageSeconds(
                    **{k: v for k, v in result.stage_seconds.items() if k in _STAGES}
                ),
                closed_seconds=closed,
            )
        )
    return tuple(rounds)


_STAGES = set(StageSeconds.model_fields)


def _nodes(run: Run, registry: Registry) -> tuple[NodeSummary, ...]:
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    for span in run.store.spans():
        spans[span.node].append(span)
    return tuple(
        NodeSummary(
            name=node.name,
            device=node.profile.device if node.profile else "",
            samples_per_second=node.speed or None,
            updates=node.updates,
            bytes_sent=node.bytes_sent,
            bytes_received=node.bytes_received,
            peak_memory_bytes=node.peak_memory_bytes or None,
            timeline=tuple(
                TimelineSummary(
                    round=span.round + 1,
                    part=span.part,
                    state=span.state,  # type: ignore[arg-type]
                    start_seconds=span.start,
                    end_seconds=span.end,
                )
                for span in spans[node.name]
            ),
        )
        for node in sorted(registry, key=lambda node: node.name)
    )
