"""A dashboard: its name, its variables, and its panels in rows."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploy.dashboards.panels import SOURCE, Panels
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

TAG = "partsum"
_ALL = models.VariableOption(text="All", value="$__all")


def board(title: str, uid: str, about: str, rows: Mapping[str, Panels]) -> str:
    """A dashboard as the JSON that Grafana reads; ``rows`` are its headings and their panels."""
    made = dashboard.Dashboard(title).uid(uid).description(about).tags([TAG]).readonly()
    made.time("now-1h", "now").refresh("10s").timezone("browser")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    for variable in _variables():
        made.with_variable(variable)
    made.link(_link())
    for heading, panels in rows.items():
        made.with_row(dashboard.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    built = made.build()
    for number, placed in enumerate(built.panels or [], start=1):
        placed.id_val = number
    assert built.templating is not None
    for added in built.templating.list_val or []:
        added.auto = added.auto_count = added.auto_min = None  # of another kind's
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    """Which Prometheus, which run, the coordinators that served it (not shown), which nodes."""
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    run = _labels("run", "label_values(partsum_run_info, run)").label("Run")
    run.sort(models.VariableSort.ALPHABETICAL_DESC)  # their names end in when they were started
    served = 'label_values(partsum_run_info{run="$run"}, instance)'
    instance = _labels("instance", served).hide(models.VariableHide.HIDE_VARIABLE)
    seen = 'label_values(partsum_cluster_node_state{instance=~"$instance"}, node)'
    node = _labels("node", seen).label("Node").sort(models.VariableSort.ALPHABETICAL_ASC)
    for several in (instance, node):
        several.multi(True).include_all(True).current(_ALL)
    return [source, run, instance, node]


def _labels(name: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).datasource(SOURCE)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.query({"qryType": 1, "query": query, "refId": "PrometheusVariableQuery"})


def _link() -> dashboard.DashboardLink:
    """To the other dashboards, of the same run and time."""
    link = dashboard.DashboardLink("partsum").type(models.DashboardLinkType.DASHBOARDS)
    return link.tags([TAG]).keep_time(True).include_vars(True)
