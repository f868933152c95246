"""The run in the terminal: a live view while it lasts, one table at its end. 80 columns do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from partsum.coordinator.figures import (
    PHASE_NAMES,
    bytes_text,
    clock_text,
    count_text,
    loss_text,
    plain_text,
    rate_text,
    seconds_text,
    share_text,
)
from partsum.coordinator.standings import final_standings, render_standings
from partsum.coordinator.summary import Summary
from partsum.shared.errors import PartsumError
from partsum.shared.messages import NodeStatus, RunStatus

_STATE_STYLES = {
    "loading": "cyan",
    "idle": "dim",
    "receiving": "blue",
    "training": "green",
    "sending": "blue",
    "gone": "bold red",
    "benched": "yellow",
}
_PHASE_STYLES = {"finished": "bold green", "stopped": "bold yellow", "failed": "bold red"}
_ROWS = 16  # nodes shown one by one; a screen has no room for more


def render_status(status: RunStatus) -> RenderableType:
    """The run at one moment: where it is, what it waits for, its figures, and each node."""
    parts: list[RenderableType] = [_heading(status)]
    if status.reason:
        style = "red" if status.phase == "failed" else ""
        parts.append(Text(plain_text(status.reason), style))
    parts.append(_figures(status))
    if status.handoff_steps:
        parts.append(_handoff(status))
    if status.standings:
        parts += [Text(), render_standings(status.standings)]
    if status.nodes:
        parts += [Text(), _nodes(status.nodes)]
    if len(status.nodes) > _ROWS:
        parts.append(_others(status.nodes[_ROWS:]))
    return Group(*parts)


def _heading(status: RunStatus) -> RenderableType:
    left = Text.assemble(
        (plain_text(status.run), "bold"),
        "  ",
        (_phase(status), _PHASE_STYLES.get(status.phase, "cyan")),
    )
    row = Table.grid(expand=True)
    row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    row.add_column(justify="right", no_wrap=True)
    row.add_row(left, Text(clock_text(status.elapsed_seconds), "dim"))
    return row


def _phase(status: RunStatus) -> str:
    if status.phase in {"parts", "cotrain"}:
        # ``round`` counts what is committed; people count the round that is under way.
        round = f"round {min(status.round + 1, status.rounds)} of {status.rounds}"
        updates = f"{status.parts_in} of {status.parts} updates in"
        return f"{PHASE_NAMES[status.phase]}, {round}, {updates}"
    if status.phase == "handoff" and not status.handoff_steps:
        return "hand-off, DeepSpeed is starting"
    if status.phase == "handoff":
        return f"hand-off, step {status.handoff_step} of {status.handoff_steps}"
    return status.phase


def _figures(status: RunStatus) -> Text:
    return Text.assemble(
        ("accuracy ", "dim"),
        (share_text(status.accuracy), "bold"),
        ("   loss ", "dim"),
        (loss_text(status.loss), "bold"),
        ("   to nodes ", "dim"),
        bytes_text(status.bytes_sent),
        ("   from nodes ", "dim"),
        bytes_text(status.bytes_received),
    )


def _handoff(status: RunStatus) -> RenderableType:
    done, total = status.handoff_step, max(status.handoff_steps, 1)
    row = Table.grid(padding=(0, 1))
    row.add_row(
        Text("hand-off", "dim"),
        ProgressBar(total=total, completed=done, width=50),
        Text(f"{100 * done / total:.0f} %"),
    )
    return row


def _nodes(nodes: Sequence[NodeStatus]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("node", width=13, no_wrap=True)
    table.add_column("state", width=9, no_wrap=True)
    table.add_column("device", width=10, no_wrap=True)
    table.add_column("part", width=4, justify="right")
    table.add_column("done", width=8)
    for name in ("/s", "loss", "to", "from"):
        table.add_column(name, width=7 if name in ("to", "from") else 6, justify="right")
    for node in nodes[:_ROWS]:
        table.add_row(
            Text(plain_text(node.name)),
            Text(plain_text(node.state), _STATE_STYLES.get(node.state, "")),
            Text(plain_text(node.device), "dim"),
            str(node.part_index) if node.part_index >= 0 else "",
            ProgressBar(total=1.0, completed=_share(node.progress), width=8)
            if node.part_index >= 0
            else "",
            rate_text(node.samples_per_second) if node.samples_per_second > 0 else "",
            loss_text(node.loss) if math.isfinite(node.loss) and node.part_index >= 0 else "",
            bytes_text(node.bytes_sent),
            bytes_text(node.bytes_received),
        )
    return table


def _share(progress: float) -> float:
    return min(max(progress, 0.0), 1.0) if math.isfinite(progress) else 0.0


def _others(nodes: Sequence[NodeStatus]) -> Text:
    states = Counter(node.state for node in nodes).most_common()
    counted = ", ".join(f"{count} {state}" for state, count in states)
    return Text(f"and {len(nodes)} more: {plain_text(counted)}", "dim")


async def watch(statuses: AsyncIterator[RunStatus], console: Console) -> RunStatus:
    """Show statuses until they end; returns the last one.

    A terminal gets a live view. Anything else gets one plain line whenever phase, round or reason
    change, so that a log stays readable.

    Raises:
        PartsumError: the statuses ended before the first one.
    """
    last = await (_live if console.is_terminal else _lines)(statuses, console)
    if last is None:
        raise PartsumError(
            "the coordinator said nothing about its run before it went; look at its own output"
        )
    return last


async def _live(statuses: AsyncIterator[RunStatus], console: Console) -> RunStatus | None:
    last = None
    with Live(console=console, refresh_per_second=8, vertical_overflow="ellipsis") as live:
        async for last in statuses:
            live.update(render_status(last))
    return last


async def _lines(statuses: AsyncIterator[RunStatus], console: Console) -> RunStatus | None:
    last = None
    said = None
    async for last in statuses:
        news = (last.phase, last.round, last.reason)
        if news != said:
            console.print(status_line(last), markup=False, highlight=False, soft_wrap=True)
        said = news
    return last


def status_line(status: RunStatus) -> str:
    """A status as one line of a log."""
    phase, reason = _phase(status), plain_text(status.reason)
    news = reason if reason.startswith(phase) else f"{phase}: {reason}" if reason else phase
    return (
        f"[{clock_text(status.elapsed_seconds)}] {news} "
        f"(accuracy {share_text(status.accuracy)}, loss {loss_text(status.loss)}, "
        f"{bytes_text(status.bytes_sent)} to nodes, {bytes_text(status.bytes_received)} from them)"
    )


def summary_table(summary: Summary, folder: Path | None = None) -> RenderableType:
    """The run at its end. ``folder`` is the run's, to show paths that can be opened from here."""
    style = _PHASE_STYLES[summary.state]
    head = Text.assemble((plain_text(summary.run), "bold"), " ", (summary.state, style))
    head.append(f" after {seconds_text(summary.wall_seconds)}")
    if summary.reason:
        head.append(f": {plain_text(summary.reason)}")
    phases: list[RenderableType] = [Text(), _phases(summary)] if summary.phases else []
    if summary.search is not None:
        best = final_standings(summary.search)
        phases += [Text(), render_standings(best, summary.search.gates)]
    return Group(head, *phases, Text(), _facts(summary, folder))


def _phases(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("phase")
    for name in ("accuracy", "loss", "time", "to nodes", "from nodes", "memory"):
        table.add_column(name, justify="right")
    for phase in summary.phases:
        table.add_row(
            PHASE_NAMES[phase.name],
            share_text(phase.accuracy),
            loss_text(phase.loss),
            seconds_text(phase.wall_seconds),
            bytes_text(phase.bytes_sent),
            bytes_text(phase.bytes_received),
            bytes_text(phase.peak_memory_bytes),
        )
    return table


def _facts(summary: Summary, folder: Path | None) -> RenderableType:
    facts = [("base", f"{count_text(summary.base_parameters)} parameters")]
    facts += [("parts", text) for text in [_part_sizes(summary)] if text]
    facts.append(("memory", f"{bytes_text(summary.peak_rss_bytes)} coordinator, at its peak"))
    for name, path in (("checkpoint", summary.checkpoint), ("report", summary.report)):
        if path is not None:
            facts.append((name, str(folder / path) if folder else path))
    rows = Table.grid(padding=(0, 2))
    for name, value in facts:
        rows.add_row(Text(name, "dim"), Text(value, overflow="fold"))
    return Padding(rows, (0, 0, 1, 0))


def _part_sizes(summary: Summary) -> str:
    """Parameters of each part against the base, equal neighbours said once."""
    if summary.search is not None:
        sizes = [one.parameters for one in summary.search.structures] or [0]
        least, most = count_text(min(sizes)), count_text(max(sizes))
        return f"{len(summary.search.structures)} structures, of {least} to {most} parameters"
    counted = Counter(summary.part_parameters)  # keeps the order of first sight
    return ", ".join(
        f"{times} x {count_text(size)} ({100 * size / max(summary.base_parameters, 1):.3g} % "
        "of the base)"
        for size, times in counted.items()
    )
