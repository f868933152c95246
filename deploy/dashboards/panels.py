"""The kinds of panels that the dashboards are made of: what a panel must have is asked for here.

A panel's queries are a mapping from a legend (of a table: from a column) to PromQL, in which ``@``
stands for the coordinator that the dashboard shows.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    gauge,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import builder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as formats

_Panel = (
    bargauge.Panel | gauge.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
)
Panels = Sequence[builder.Builder[models.Panel]]
Queries = Mapping[str, str]

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COORDINATOR = 'instance=~"$instance"'
EVERY = "$__rate_interval"
"""At least four scrapes: the shortest window in which a rate can be told."""
_COLORS = {
    **dict.fromkeys(("waiting", "connecting", "loading"), "yellow"),
    **dict.fromkeys(("parts", "training"), "green"),
    "cotrain": "#00a0a0",
    **dict.fromkeys(("handoff", "receiving"), "blue"),
    **dict.fromkeys(("finished", "sending"), "purple"),
    **dict.fromkeys(("failed", "gone"), "red"),
    **dict.fromkeys(("stopped", "benched"), "orange"),
    "idle": "text",
}
"""The same on every dashboard."""


def of_node(expression: str, *labels: str) -> str:
    """A node's own metric, with the node's name beside the address that was scraped.

    ``labels``: more of what the node says of itself.
    """
    shown = ", ".join(("node", *labels))
    joined = f'on (job, instance) group_left ({shown}) partsum_node_info{{node=~"$node"}}'
    return f"{expression} * {joined}"


def numbered(metric: str, label: str, values: Sequence[str], by: str, where: str = "@, ") -> str:
    """Which of a label's values has a 1 now, as its place in ``values``."""
    terms = (f'{metric}{{{where}{label}="{value}"}} * {n}' for n, value in enumerate(values))
    return f"sum by ({by}) (" + " or ".join(terms) + ")"


def number(
    title: str,
    unit: str,
    queries: Queries,
    about: str,
    width: int = 4,
    decimals: int | None = None,
    names: Sequence[str] = (),
) -> stat.Panel:
    """Numbers as they are now; ``names`` are shown for 0, 1, 2 and so on."""
    panel = stat.Panel().graph_mode(looks.BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_mode(looks.BigValueColorMode.VALUE if names else looks.BigValueColorMode.NONE)
    if len(queries) > 1:
        panel.text_mode(looks.BigValueTextMode.VALUE_AND_NAME)
    _furnish(panel, title, unit, queries, about, (width, 4))
    if decimals is not None:
        panel.decimals(decimals)
    if names:
        panel.mappings([_named(names)])
    return panel


def text(title: str, queries: Queries, about: str, width: int = 4) -> stat.Panel:
    """The legends themselves."""
    panel = number(title, "none", queries, about, width)
    return panel.text_mode(looks.BigValueTextMode.NAME)


def share(title: str, queries: Queries, about: str, width: int = 6) -> gauge.Panel:
    """How much of something is done."""
    panel = gauge.Panel().min(0).max(1)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    _furnish(panel, title, "percentunit", queries, about, (width, 8))
    return panel


def bars(title: str, unit: str, queries: Queries, about: str, width: int = 12) -> bargauge.Panel:
    """One bar for each series, as it is now."""
    panel = bargauge.Panel().orientation(looks.VizOrientation.HORIZONTAL)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    _furnish(panel, title, unit, queries, about, (width, 8))
    return panel


def lines(
    title: str, unit: str, queries: Queries, about: str, width: int = 12, *, stacked: bool = False
) -> timeseries.Panel:
    """Curves over time, or bars upon each other."""
    panel = timeseries.Panel().span_nulls(True).show_points(looks.VisibilityMode.AUTO)
    legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
    legend.display_mode(looks.LegendDisplayMode.TABLE).placement(looks.LegendPlacement.BOTTOM)
    panel.legend(legend)
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI))
    if stacked:
        panel.draw_style(looks.GraphDrawStyle.BARS).fill_opacity(70)
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    _furnish(panel, title, unit, queries, about, (width, 8))
    return panel


def timeline(
    title: str, names: Sequence[str], queries: Queries, about: str, height: int = 8
) -> statetimeline.Panel:
    """A bar over time for each series, in the colour of what it is; ``names`` of 0, 1, 2 ..."""
    panel = statetimeline.Panel().merge_values(True).show_value(looks.VisibilityMode.AUTO)
    _furnish(panel, title, "none", queries, about, (24, height))
    return panel.mappings([_named(names)])


def rows(
    title: str,
    key: str,
    columns: Mapping[str, tuple[str, str]],
    about: str,
    width: int = 24,
    *,
    labels: Sequence[str] = (),
) -> table.Panel:
    """A table with a row for each value of the label ``key``.

    ``columns``: a column's name, its unit and the query of its values; ``labels`` are shown too.
    """
    queries = {name: query for name, (_, query) in columns.items()}
    panel = table.Panel()
    _furnish(panel, title, "none", queries, about, (width, 8), as_table=True)
    shown = [key, *labels]
    renamed = {f"Value #{ref}": name for ref, name in zip(_REFS, columns, strict=False)}
    if len(columns) == 1:
        renamed = {"Value": next(iter(columns)), **renamed}
    order = {name: place for place, name in enumerate([*shown, *renamed])}
    kept = f"^({'|'.join(shown)}|Value.*)$"
    panel.with_transformation(
        models.DataTransformerConfig("filterFieldsByName", options={"include": {"pattern": kept}})
    )
    panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    panel.with_transformation(
        models.DataTransformerConfig(
            "organize", options={"indexByName": order, "renameByName": renamed}
        )
    )
    for name, (unit, _) in columns.items():
        panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    return panel


_REFS = string.ascii_uppercase


def _furnish(
    panel: _Panel,
    title: str,
    unit: str,
    queries: Queries,
    about: str,
    size: tuple[int, int],
    *,
    as_table: bool = False,
) -> None:
    panel.title(title).description(about).unit(unit).datasource(SOURCE)
    panel.span(size[0]).height(size[1])
    for ref, (legend, expression) in zip(_REFS, queries.items(), strict=False):
        query = prometheus.Dataquery().ref_id(ref).expr(expression.replace("@", COORDINATOR))
        query.datasource(SOURCE).editor_mode(formats.QueryEditorMode.CODE)
        if as_table:
            query.instant().format(formats.PromQueryFormat.TABLE)
        else:
            query.range().legend_format(legend)
        panel.with_target(query)


def _named(names: Sequence[str]) -> models.ValueMap:
    return models.ValueMap(
        {
            str(place): models.ValueMappingResult(text=name, color=_COLORS[name], index=place)
            for place, name in enumerate(names)
        }
    )
