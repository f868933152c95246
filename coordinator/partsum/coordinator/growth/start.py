"""What a config's [start] asks for: base 0 grown from trained models, checked on a probe batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import blob_of
from partsum.coordinator.folder import given_models
from partsum.coordinator.growth.fusion import side_by_side
from partsum.coordinator.growth.model import TrainedModel, open_model
from partsum.coordinator.growth.widening import Widened
from partsum.coordinator.invariants import TOLERANCE, assert_merge
from partsum.coordinator.merge import BLOCK, Contribution, Merger, Merging, write_merged
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.shared.config import RunConfig
from partsum.shared.errors import WidthError
from partsum.shared.files import sync_folder
from partsum.shared.part import Part
from partsum.shared.task import Samples, Task
from partsum.shared.tensors import save_tensors

log = logging.getLogger(__name__)


def check_models(config: RunConfig, task: Task, source: Path) -> None:
    """See that the models which the config at ``source`` names can be grown, by their headers."""
    base = Base(task, torch.device("cpu"))
    Start(config, base, given_models(config, source)).check()


class Start:
    """Grows a run's base 0 from the files at ``paths``, one for each of `start.models`.

    Every method raises what `open_model` does, and WidthError where the models do not fit together.
    """

    def __init__(self, config: RunConfig, base: Base, paths: Sequence[Path]) -> None:
        self.config = config
        self.base = base
        self.paths = paths
        self.fuses = bool(paths) and config.start.grow == "fuse"
        self.plants = config.parts.is_block and config.parts.rounds > 0
        """Whether parts go on from the models, and not from what they are grown to."""
        self.scale = 1 / config.parts.count if config.parts.is_residual else 1.0
        """What the base's scales are (see Widths), with models to start from or without."""

    def check(self) -> list[Part]:
        """See that the models fit the base, by their headers; the slices of those fused."""
        with ExitStack() as files:
            return [share.part for share in self._shares(self._open(files))]

    def grow(self, fresh: Path, out: Path, samples: Samples) -> str:
        """Write the grown base; logs and returns a sentence on what it computes.

        Args:
            fresh: a base file, freshly initialised: its names and shapes, and its scales.
            out: written last of all, once the base is checked.
            samples: the first of them are the probe batch.
        """
        grown = fresh.with_name(f"{fresh.name}.grown")
        with ExitStack() as files:
            models = self._open(files)
            shares = self._shares(models)
            write_merged(fresh, self._merging(models, shares), grown, {"partsum.base": "0"})
            said = self._probe(grown, models, shares, samples)
        os.replace(grown, out)
        sync_folder(out.parent)
        return said

    def write_parts(self, folder: Path, samples: int) -> dict[str, object]:
        """Write what each part of mode block goes on from: the fused models themselves.

        Returns, by part, what is kept of it, as after a round. In a first round without an update
        of it, a part counts with its weight's share of all ``samples``.
        """
        weights = self._weights()
        kept: dict[str, object] = {}
        with ExitStack() as files:
            for k, model in enumerate(self._open(files)):
                path = folder / f"start-p{k}.safetensors"
                blob = blob_of(path, save_tensors(path, model.tensors()))
                count = max(1, round(samples * weights[k] / sum(weights)))
                kept[str(k)] = {"file": path.name, "blob": vars(blob), "samples": count}
        return kept

    def _weights(self) -> list[float]:
        return self.config.start.weights or [1.0] * len(self.paths)

    def _open(self, files: ExitStack) -> list[TrainedModel]:
        task = self.config.task.name
        return [open_model(p, self.base, task, self.scale, files) for p in self.paths]

    def _shares(self, models: Sequence[TrainedModel]) -> list[Contribution]:
        """The models with their slices of the base; none where one is widened."""
        if not self.fuses:
            return []
        shares = side_by_side(self.base.widths, models, self._weights())
        if self.plants:
            self._check_parts(models, [share.part for share in shares])
        return shares

    def _check_parts(self, models: Sequence[TrainedModel], slices: Sequence[Part]) -> None:
        """Mode block: part k goes on from model k, so it has to have its width."""
        parts = self.config.parts
        given = parts.fractions
        fractions = given if isinstance(given, list) else equal_fractions(parts.count)
        planned = plan_parts(parts, self.base.widths, fractions, self.config.seed, 0)
        for k, (model, mine, own) in enumerate(zip(models, planned, slices, strict=True)):
            for group in self.base.widths.groups:
                wanted, found = (len(part.units[group.name]) for part in (mine, own))
                if wanted != found:
                    raise WidthError(
                        f"part {k} has {wanted} units of width group {group.name!r}, but "
                        f"{model.name}, which it would start from, has {found}; set "
                        "parts.fractions to the models' shares of the width"
                    )

    def _merging(self, models: Sequence[TrainedModel], shares: Sequence[Contribution]) -> Merging:
        if shares:
            return Merger(self.base.widths, shares, BLOCK)
        noise, seed = self.config.start.noise, self.config.seed
        return Widened(self.base.shape, self.base.widths, models[0], noise, seed)

    def _probe(
        self,
        grown: Path,
        models: Sequence[TrainedModel],
        shares: Sequence[Contribution],
        samples: Samples,
    ) -> str:
        """What the grown base computes beside its models, on a probe batch."""
        inputs, _ = self.base.probe(samples)
        outputs = torch.stack([self._outputs(model, inputs) for model in models])
        slices = [share.part for share in shares]
        if slices:
            assert_merge(self.base, self.base.model(grown, slices), shares, samples)
        if not (self.config.parts.is_block and self.config.handoff.norms == "grouped"):
            slices = []  # the hand-off, or every round, goes on with norms over the whole width
        if not self.config.parts.is_block:
            self.base.forget_grouped()
        total = sum(share.weight for share in shares)
        weights = [share.weight / total for share in shares] or [1.0]
        expected = torch.einsum("k,k...->...", outputs.new_tensor(weights), outputs)
        with torch.no_grad():
            found = self.base.model(grown, slices)(inputs)
        error, largest = (float(t.abs().max()) for t in (found - expected, expected))
        mean = "their weighted mean" if self.config.start.weights else "their mean"
        what = mean if shares else "what it computes"
        how = f"fused from {len(models)} models" if shares else f"widened from {models[0].name}"
        said = f"base 0 is {how}; on a probe batch its outputs, up to {largest:.3g}, are {what}"
        if error <= TOLERANCE * max(1.0, largest):
            log.info("%s", said)
            return said
        said = f"{said} but for {error:.2g}"
        log.warning("%s: %s", said, self._why())
        return said

    def _outputs(self, model: TrainedModel, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self.base.part_model(model.part, model)(inputs)
        if not bool(torch.isfinite(outputs).all()):
            raise WidthError(
                f"start.models: {model.name} computes numbers that are not finite on the first "
                "validation samples; start a new run without it, or with another task"
            )
        return outputs

    def _why(self) -> str:
        if self.fuses:
            return (
                "norms over the whole width mix the models' statistics; over each model's slice "
                'the base is exact (handoff.norms = "grouped", mode block)'
            )
        if self.config.start.noise:
            return f"start.noise is {self.config.start.noise:g}"
        return (
            "exact are models without norms over a widened axis, or where each unit is copied "
            "equally often, and without tied embeddings (docs/growing.md)"
        )
