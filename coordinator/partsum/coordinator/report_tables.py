"""The report's tables: phases, nodes, rounds, what went wrong, and the config as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from partsum.coordinator.figures import (
    PHASE_NAMES,
    bytes_text,
    count_text,
    loss_text,
    plain_text,
    rate_text,
    seconds_text,
    share_text,
)
from partsum.coordinator.report_svg import element, escape
from partsum.coordinator.summary import RoundSummary, StageSeconds, Summary

_OPEN_ROWS = 12  # a table of more rows than this starts folded


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    """An HTML table of plain text; the first column and those in ``words`` are set to the left."""

    def cell(tag: str, column: int, value: str) -> str:
        style = "words" if column in words else "name" if column == 0 else ""
        return element(tag, escape(plain_text(value)), class_=style, **_tip(column, value))

    head = element("tr", *(cell("th", k, name) for k, name in enumerate(heads)))
    body = (element("tr", *(cell("td", k, v) for k, v in enumerate(row))) for row in rows)
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *body)),
        class_="wide",
    )


def _tip(column: int, value: str) -> dict[str, str]:
    return {"title": plain_text(value)} if column == 0 and len(value) > 20 else {}


def folded(rows: int, what: str, drawn: str) -> str:
    """The drawn rows, behind one line to click on where they are many."""
    if rows <= _OPEN_ROWS:
        return drawn
    return element("details", element("summary", f"{rows} {what}"), drawn)


def phase_table(summary: Summary) -> str:
    """Each phase: what it reached, how long it took, what it moved."""
    heads = ("phase", "rounds", "accuracy", "loss", "time", "sent", "received", "memory")
    rows = [
        (
            PHASE_NAMES[phase.name],
            str(phase.rounds) if phase.rounds else "",
            share_text(phase.accuracy),
            loss_text(phase.loss),
            seconds_text(phase.wall_seconds),
            bytes_text(phase.bytes_sent),
            bytes_text(phase.bytes_received),
            bytes_text(phase.peak_memory_bytes),
        )
        for phase in summary.phases
    ]
    if not rows:
        return element("p", "No phase began.", class_="quiet")
    note = "Accuracy and loss are the base's on validation data, at the phase's end. Sent is from "
    note += "the coordinator to nodes. Memory is the most that one training process held."
    return table(heads, rows) + element("p", note, class_="note")


def node_table(summary: Summary) -> str:
    """Each node: what it is and what it did."""
    heads = ("node", "device", "samples/s", "updates", "sent to it", "received", "memory")
    rows = (
        (
            node.name,
            node.device,
            rate_text(node.samples_per_second),
            count_text(node.updates),
            bytes_text(node.bytes_sent),
            bytes_text(node.bytes_received),
            bytes_text(node.peak_memory_bytes),
        )
        for node in summary.nodes
    )
    return folded(len(summary.nodes), "nodes", table(heads, rows, words=(1,)))


def trouble_table(summary: Summary) -> str:
    """Partial rounds and refused updates, or the sentence that there were none."""
    if not summary.rounds:
        return element("p", "No round was committed.", class_="quiet")
    rows = [row for record in summary.rounds for row in _troubles(record)]
    if not rows:
        said = "Every round closed with all of its parts, and no update was refused."
        return element("p", said, class_="note")
    return element("h3", "What went wrong") + table(("round", "what", "why"), rows, words=(1, 2))


def incident_table(summary: Summary) -> str:
    """All that happened beside the plan: nodes that went, assignments that failed, and so on."""
    if not summary.incidents:
        return ""
    heads = ("at", "what", "node", "part", "said")
    rows = [
        (
            seconds_text(incident.seconds),
            incident.kind,
            incident.node,
            str(incident.part) if incident.part >= 0 else "",
            incident.text,
        )
        for incident in summary.incidents
    ]
    drawn = table(heads, rows, words=(1, 2, 4))
    return element("h2", "Incidents") + folded(len(rows), "incidents", drawn)


def _troubles(record: RoundSummary) -> Iterator[tuple[str, str, str]]:
    """What went wrong in a round: its number, what, and why."""
    if record.missing_parts:
        what = f"closed without part {', '.join(map(str, record.missing_parts))}"
        yield str(record.round), what, record.reason if record.reason != what else ""
    for refusal in record.refused:
        what = f"part {refusal.part}" if refusal.part >= 0 else "an update"
        yield (
            str(record.round),
            f"refused {what} of {refusal.node} ({refusal.kind})",
            refusal.reason,
        )


def round_table(summary: Summary) -> str:
    """Each round: what it reached and where its time went; folded where there are many."""
    if not summary.rounds:
        return ""
    stages = list(StageSeconds.model_fields)
    heads = ("round", "accuracy", "loss", "parts' loss", *stages, "committed at")
    rows = (
        (
            _round_name(record),
            share_text(record.accuracy),
            loss_text(record.loss),
            loss_text(_mean(record.part_losses)),
            *(seconds_text(getattr(record.stage_seconds, stage)) for stage in stages),
            seconds_text(record.closed_seconds),
        )
        for record in summary.rounds
    )
    return element("h3", "Each round") + folded(len(summary.rounds), "rounds", table(heads, rows))


def _round_name(record: RoundSummary) -> str:
    name = f"{record.round}, hand-off" if record.phase == "handoff" else str(record.round)
    return f"{name} partial" if record.missing_parts else name


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def ranking_table(summary: Summary) -> str:
    """Each hidden group as planner relevance ranked it; empty where it did not."""
    if not summary.ranking:
        return ""
    score = summary.config.get("relevance", {}).get("score", "")
    heads = ("group", "units", "shared by all parts", "highest score", "lowest", "noise")
    rows = [
        (
            ranked.group,
            count_text(ranked.units),
            count_text(ranked.shared),
            f"{ranked.strongest:.3g}",
            f"{ranked.weakest:.3g}",
            share_text(ranked.sparse_share),
        )
        for ranked in summary.ranking
    ]
    note = f"Ranked by {score} before the first round. Noise: weights with log alpha above 3."
    return (
        element("h3", "Strong and weak units")
        + element("p", escape(note), class_="note")
        + folded(len(rows), "groups", table(heads, rows))
    )


def meter(rows: Sequence[tuple[str, Sequence[tuple[int, str]]]]) -> str:
    """Bars of bytes on one scale: a name and its pieces, each (bytes, CSS class)."""
    totals = [sum(size for size, _ in pieces) for _, pieces in rows]
    most = max([1, *totals])
    cells = ""
    for (name, pieces), total in zip(rows, totals, strict=True):
        bars = (
            element(
                "i", class_=style, style=f"width:{100 * size / most:.2f}%", title=bytes_text(size)
            )
            for size, style in pieces
        )
        cells += element("span", escape(plain_text(name)), class_="name")
        cells += element("div", *bars) + element("span", bytes_text(total))
    return element("div", cells, class_="meter")


def config_text(config: Mapping[str, Any], section: str = "") -> str:
    """A config as TOML that can be used again; what is not set is left out."""
    tables = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in config.items()
        if name not in tables and value is not None
    ]
    if section and (lines or not tables):
        lines.insert(0, f"[{section}]")
    written = ["\n".join(lines)] if lines else []
    for name, inner in tables.items():
        if inner:
            written.append(config_text(inner, f"{section}.{name}" if section else name))
    return "\n\n".join(written)
