"""MLflow: one run in the experiment that bears the config's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from partsum.coordinator.trackers.tracker import SERIES, Point, Series, TrackedRun, flat

_METRICS, _PARAMS = 1000, 100  # in one call, by MLflow's own limits
_STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowRun:
    """Speaks to a tracking server, or writes to the store that the address means."""

    name = "mlflow"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._run = ""
        self._there = dict.fromkeys(SERIES, -1)  # newest steps, written before a crash

    def begin(self, run: TrackedRun, known: str | None, positions: Mapping[Series, int]) -> str:
        """Make a run, or open the one that is known, and see what it has."""
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        if known:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            for series in SERIES:
                self._there[series] = self._newest(series)
            return known
        experiment = self._client.get_experiment_by_name(run.experiment)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(run.experiment)
        )
        made = self._client.create_run(
            number, start_time=round(1000 * run.started_at), run_name=run.name
        )
        self._run = str(made.info.run_id)
        self._describe(run)
        return self._run

    def _describe(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        params = iter([Param(key, str(value)[:500]) for key, value in flat(run.config).items()])
        while some := list(islice(params, _PARAMS)):
            self._client.log_batch(self._run, params=some)

    def _newest(self, series: Series) -> int:
        names = [name for name in self._client.get_run(self._run).data.metrics if "/" in name]
        of_series = [name for name in names if name.startswith(f"{series}/")]
        steps = (
            point.step
            for name in of_series
            for point in self._client.get_metric_history(self._run, name)[-1:]
        )
        return max(steps, default=-1)

    def write(self, points: Sequence[Point]) -> None:
        """Send points that are not there yet."""
        from mlflow.entities import Metric

        metrics = iter(
            [
                Metric(f"{point.series}/{name}", value, round(1000 * point.at), point.step)
                for point in points
                if point.step > self._there[point.series]
                for name, value in point.values.items()
            ]
        )
        while some := list(islice(metrics, _METRICS)):
            self._client.log_batch(self._run, metrics=some)

    def end(self, state: str, results: Mapping[str, float]) -> None:
        """Note the results and the state."""
        for name, value in results.items():
            self._client.log_metric(self._run, f"result/{name}", value)
        self._client.set_terminated(self._run, _STATES[state])
