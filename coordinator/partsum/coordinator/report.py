"""``report.html``: a run on one page, with no script and nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from partsum.coordinator.figures import (
    PHASE_NAMES,
    bytes_text,
    count_text,
    loss_text,
    moment_text,
    plain_text,
    seconds_text,
    share_text,
)
from partsum.coordinator.report_charts import (
    Band,
    Curve,
    curve_chart,
    part_style,
    parts_picture,
    timeline_chart,
)
from partsum.coordinator.report_structures import structures_section
from partsum.coordinator.report_study import study_section
from partsum.coordinator.report_svg import element, escape
from partsum.coordinator.report_tables import (
    config_text,
    folded,
    incident_table,
    meter,
    node_table,
    phase_table,
    ranking_table,
    round_table,
    trouble_table,
)
from partsum.coordinator.study.results import Row
from partsum.coordinator.summary import PhaseSummary, Summary


def render_report(summary: Summary, study: Sequence[Row] = ()) -> str:
    """The whole page. Works for any summary, also of a run that failed before its first round."""
    style = resources.files("partsum.coordinator").joinpath("report.css").read_text("utf-8")
    sections = (
        _header(summary),
        _alarm(summary),
        _figures(summary),
        _curves(summary),
        structures_section(summary.search),
        study_section(study),
        _nodes(summary),
        _traffic(summary),
        _parts(summary),
        _tables(summary),
        incident_table(summary),
        _config(summary),
        "<footer>Written by partsum. All figures are in summary.json beside this file.</footer>",
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(summary.run)} - partsum</title>\n<style>\n{style}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(section for section in sections if section) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(summary: Summary) -> str:
    state = element("b", escape(summary.state), class_=summary.state)
    times = f"{moment_text(summary.started_at)} to {moment_text(summary.ended_at)}"
    facts = f"{summary.task}, seed {summary.seed}"
    return (
        element("p", state, escape(times), class_="eyebrow")
        + element("h1", escape(summary.run))
        + element("p", escape(facts), class_="facts")
    )


def _alarm(summary: Summary) -> str:
    """Why the run did not finish, before anything else is read."""
    if summary.state == "finished":
        return ""
    said = "The run failed." if summary.state == "failed" else "The run was stopped early."
    reason = escape(plain_text(summary.reason)) or "No reason was given."
    return element("div", element("strong", said), reason, class_=f"alarm {summary.state}")


def _figures(summary: Summary) -> str:
    phases = {phase.name: phase for phase in summary.phases}
    spent = " + ".join(
        f"{seconds_text(phase.wall_seconds)} {PHASE_NAMES[phase.name]}" for phase in summary.phases
    )
    shown = [
        ("Accuracy", share_text(summary.final_accuracy), _gained(summary)),
        ("Loss", loss_text(summary.final_loss), "on validation data"),
        ("Time", seconds_text(summary.wall_seconds), spent),
        _moved(summary, phases.get("parts")),
        _sizes(summary),
        ("Coordinator's memory", bytes_text(summary.peak_rss_bytes), "resident, at its peak"),
    ]
    if (spent_privacy := summary.privacy_epsilon) is not None:
        note = f"of each cluster's privacy, at delta {summary.config['privacy']['delta']:g}"
        shown.append(("Epsilon spent", f"{spent_privacy:.3g}", note))
    cells = (
        element(
            "div",
            element("dt", escape(name)),
            element("dd", escape(value), class_="big"),
            element("dd", escape(note), class_="small"),
        )
        for name, value, note in shown
    )
    return element("dl", *cells, class_="figures")


def _gained(summary: Summary) -> str:
    before = (p.accuracy for p in summary.phases if p.name != "handoff")
    merged = [accuracy for accuracy in before if accuracy is not None]
    if not merged or not any(phase.name == "handoff" for phase in summary.phases):
        return "on validation data"
    return f"{share_text(merged[-1])} before the hand-off"


def _moved(summary: Summary, phase: PhaseSummary | None) -> tuple[str, str, str]:
    name = "Moved in the parts phase"
    if phase is None:
        return name, "-", "there was none"
    moved = phase.bytes_sent + phase.bytes_received
    if not moved or not summary.full_model_bytes:
        return name, bytes_text(moved), f"in {phase.rounds} rounds, both ways"
    times = summary.full_model_bytes / moved
    less = f"{times:.3g} times less than" if times > 1.05 else "about as much as"
    return name, bytes_text(moved), f"{less} with the full model"


def _sizes(summary: Summary) -> tuple[str, str, str]:
    base = f"of the base's {count_text(summary.base_parameters)} parameters"
    if not summary.part_parameters or not summary.base_parameters:
        return "A part's size", "-", base
    shares = [100 * n / summary.base_parameters for n in summary.part_parameters]
    least, most = f"{min(shares):.3g}", f"{max(shares):.3g}"
    return "A part's size", f"{least} %" if least == most else f"{least} to {most} %", base


def _curves(summary: Summary) -> str:
    bands = _bands(summary)
    # The hand-off's points tell of its rounds too, and of more.
    rounds = [r for r in summary.rounds if r.phase != "handoff"]
    parts = [(r.closed_seconds, [x for x in r.part_losses if x is not None]) for r in rounds]
    accuracy = [
        Curve(
            "base, on validation data",
            "main",
            [(r.closed_seconds, r.accuracy) for r in rounds if r.accuracy is not None]
            + [(p.seconds, p.accuracy) for p in summary.handoff if p.accuracy is not None],
        )
    ]
    loss = [
        Curve(
            "hand-off, training",
            "hand",
            [(p.seconds, p.loss) for p in summary.handoff if p.loss is not None],
        ),
        Curve("parts, training (mean)", "light", [(t, sum(x) / len(x)) for t, x in parts if x]),
        Curve(
            "base, on validation data",
            "main",
            [(r.closed_seconds, r.loss) for r in rounds if r.loss is not None]
            + [
                (p.seconds, p.validation_loss)
                for p in summary.handoff
                if p.validation_loss is not None
            ],
        ),
    ]
    end = _end_seconds(summary)
    return (
        element("h2", "Learning")
        + element("h3", "Accuracy")
        + curve_chart("Accuracy", accuracy, bands, end, _tick_share)
        + element("h3", "Loss")
        + curve_chart("Loss", loss, bands, end, lambda value: f"{value:.4g}")
    )


def _bands(summary: Summary) -> list[Band]:
    return [
        Band(PHASE_NAMES[p.name], p.start_seconds, p.start_seconds + p.wall_seconds)
        for p in summary.phases
    ]


def _end_seconds(summary: Summary) -> float:
    """Where time axes end: with the run, and after everything that is drawn."""
    drawn = [r.closed_seconds for r in summary.rounds] + [p.seconds for p in summary.handoff]
    return max([summary.wall_seconds, *drawn])


def _tick_share(value: float) -> str:
    return f"{100 * value:.4g} %" if -0.1 <= value <= 1.1 else f"{value:.4g}"


def _nodes(summary: Summary) -> str:
    if not summary.nodes:
        return element("h2", "Nodes") + element("p", "No node took part.", class_="quiet")
    closed = [r.closed_seconds for r in summary.rounds]
    states = {stay.state for node in summary.nodes for stay in node.timeline}
    keys = [_key("work p0", "training, in its part's colour")]
    if states & {"sending", "receiving"}:
        keys.append(_key("wire", "receiving or sending"))
    keys += [_key(state, state) for state in ("gone", "benched") if state in states]
    legend = element("ul", *keys, class_="legend")
    note = "Dotted lines: rounds committed. A thin line: idle."
    return (
        element("h2", "Nodes")
        + element("p", note, class_="note")
        + legend
        + timeline_chart(summary.nodes, _bands(summary), closed, _end_seconds(summary))
        + node_table(summary)
    )


def _key(style: str, name: str) -> str:
    return element("li", element("i", class_=f"swatch {style}"), escape(name))


def _traffic(summary: Summary) -> str:
    drawn = ""
    phase = next((p for p in summary.phases if p.name == "parts"), None)
    if phase is not None and summary.full_model_bytes:
        rows = [
            ("this run, parts phase", [(phase.bytes_sent, ""), (phase.bytes_received, "back")]),
            ("full-model averaging", [(summary.full_model_bytes, "other")]),
        ]
        note = "Averaging: the same rounds, with every node training the full base."
        drawn = element("p", note, class_="note") + meter(rows)
    if summary.nodes:
        each = [(n.name, [(n.bytes_sent, ""), (n.bytes_received, "back")]) for n in summary.nodes]
        drawn += element("h3", "Each node") + folded(len(each), "nodes", meter(each))
    keys = _key("sent", "coordinator to nodes") + _key("back", "nodes to coordinator")
    legend = element("ul", keys, class_="legend")
    return element("h2", "Bytes") + legend + drawn if drawn else ""


def _parts(summary: Summary) -> str:
    if not summary.part_parameters or summary.search is not None:
        return ""
    picture = ""
    note = "Every part is the whole base."
    if any(summary.parts) and summary.group_units:
        picture = parts_picture(summary)
        note = "Each bar is a width group; each colour is the part that keeps those units."
    fractions = summary.part_fractions or (None,) * len(summary.part_parameters)
    keys = (
        _key(
            part_style(part),
            f"part {part}: {count_text(size)} parameters"
            + (f", {100 * fraction:.3g} % of the width" if fraction is not None else ""),
        )
        for part, (size, fraction) in enumerate(
            zip(summary.part_parameters, fractions, strict=False)
        )
    )
    return (
        element("h2", "Parts")
        + element("p", note, class_="note")
        + element("ul", *keys, class_="legend")
        + picture
        + ranking_table(summary)
    )


def _tables(summary: Summary) -> str:
    return (
        element("h2", "Phases")
        + phase_table(summary)
        + element("h2", "Rounds")
        + trouble_table(summary)
        + round_table(summary)
    )


def _config(summary: Summary) -> str:
    text = element("pre", escape(config_text(summary.config)))
    shown = element("details", element("summary", "the whole run.toml"), text)
    return (
        element("h2", "Config")
        + element("p", "digest ", element("code", escape(summary.config_digest)), class_="note")
        + (shown if summary.config else "")
    )
