"""The base model on the coordinator: built, cut, checked and evaluated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.merge import Readable
from partsum.coordinator.norms import group_norms, has_batch_norm, recalibrate
from partsum.shared.errors import WidthError
from partsum.shared.part import Part, cut_module, fresh_module, index_map, region
from partsum.shared.task import Samples, Scores, Task, evaluate, gather, num_samples, walk
from partsum.shared.tensors import TensorFile, save_tensors
from partsum.shared.width import Widths, find_widths

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest output, for "the same function"
_PROBE_SAMPLES = 64
_RECALIBRATION_BATCHES = 20  # design: enough to bring averaged statistics back


def meta_model(task: Task) -> nn.Module:
    """The task's model without its memory: shapes only."""
    with torch.device("meta"):
        return task.model()


class Base:
    """A task's model and widths, and what the coordinator does with them.

    One real model is built when it is first needed and kept; everything else is on the meta device.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.shape = meta_model(task)
        self.widths: Widths = find_widths(self.shape)
        self._plain: nn.Module | None = None
        self._grouped: tuple[list[Part], nn.Module] | None = None

    def initial(self, path: Path, seed: int, scale: float) -> str:
        """Write base 0, freshly initialised, with every scale set; returns its digest."""
        model = fresh_module(self.task.model(), seed)
        state = model.state_dict()
        for name in self.widths.scales:
            state[name] = torch.full_like(state[name], scale)
        return save_tensors(path, state, {"partsum.base": "0"})

    def model(self, path: Path, norm_parts: Sequence[Part] = ()) -> nn.Module:
        """The model in evaluation mode with a base file's weights, grouped norms where given."""
        model = self._built(list(norm_parts))
        with TensorFile(path) as file:
            targets = model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, target in targets.items():
                    target.copy_(file.read(name))
        return model.eval()

    def _built(self, norm_parts: list[Part]) -> nn.Module:
        if not norm_parts:
            if self._plain is None:
                self._plain = self.task.model().to(self.device)
            return self._plain
        if self._grouped is None or self._grouped[0] != norm_parts:
            model = group_norms(self.task.model(), self.widths, norm_parts)
            self._grouped = (norm_parts, model.to(self.device))
        return self._grouped[1]

    def part_model(self, part: Part, tensors: Readable) -> nn.Module:
        """A part's own small model in evaluation mode, with an update's weights."""
        model = cut_module(self._built([]), self.widths, part)
        model.load_state_dict({name: tensors.read(name) for name in model.state_dict()})
        return model.to(self.device).eval()

    def scores(self, model: nn.Module, samples: Samples) -> Scores:
        """Loss and headline metric over a data set."""
        return evaluate(model, self.task, samples, self.device)

    def recalibrated(self, path: Path, train: Samples, seed: int) -> str | None:
        """Mend averaged batch norm statistics in a base file; its new digest.

        The file of a model without batch norms is left alone: None.
        """
        if not has_batch_norm(self.shape):
            return None
        model = self.model(path)
        wanted = min(num_samples(train), _RECALIBRATION_BATCHES * 128)
        picked = walk(seed, torch.arange(num_samples(train)), 0, wanted, 128)
        recalibrate(model, [gather(train, index)[0].to(self.device) for index in picked])
        return save_tensors(path, {name: t.cpu() for name, t in model.state_dict().items()})

    def probe(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """A few samples, always the same, on the device."""
        inputs, targets = gather(samples, torch.arange(min(_PROBE_SAMPLES, num_samples(samples))))
        return inputs.to(self.device), targets.to(self.device)


def assert_mean_of_parts(
    merged: nn.Module, parts: Sequence[nn.Module], weights: Sequence[float], inputs: Tensor
) -> float:
    """Raise WidthError unless merged(x) is the weighted mean of the parts' outputs; the error.

    This is what catches a wrong index map, cross blocks that are not zero, and a missing 1/K.
    """
    with torch.no_grad():
        expected = sum(w * part(inputs) for w, part in zip(weights, parts, strict=True))
        found = merged(inputs)
    return _same(found, expected, "the merged base does not compute the mean of its parts")


def certify(base: Base, parts: Sequence[Part], block: bool, samples: Samples) -> None:
    """Raise WidthError unless a cut model computes what the base does without the other units.

    The certificate catches every silent error of a width rule: a head count that was not mended, a
    slot that was forgotten, a norm over the wrong slice.
    """
    inputs, _ = base.probe(samples)
    built = fresh_module(base.task.model(), 0).to(base.device).eval()
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    for part in {parts[0], parts[-1]} if len(parts) > 1 else parts:
        if not part.units:
            continue
        narrow = cut_module(built, base.widths, part).eval()
        masked = fresh_module(base.task.model(), 0).to(base.device).eval()
        if block:
            group_norms(masked, base.widths, parts)
        masked.load_state_dict(_masked(state, base.widths, part))
        with torch.no_grad():
            _same(
                masked(inputs),
                narrow(inputs),
                "a cut model does not compute what the base does without the other units: the "
                "model's width_groups() do not describe it",
            )


def _masked(state: dict[str, Tensor], widths: Widths, part: Part) -> dict[str, Tensor]:
    """The state with all units outside of the part set to zero, and scales to one."""
    masked = dict(state)
    for name, dims in index_map(widths, part).items():
        where = region(state[name], dims)
        masked[name] = torch.zeros_like(state[name])
        masked[name][where] = state[name][where]
    for name in widths.scales:
        masked[name] = torch.ones_like(state[name])
    return masked


def _same(found: Tensor, expected: Tensor | int, what: str) -> float:
    assert isinstance(expected, Tensor)
    largest = max(1.0, float(expected.abs().max()))
    error = float((found - expected).abs().max())
    if not error <= TOLERANCE * largest:
        raise WidthError(
            f"{what}: outputs up to {largest:.3g} differ by {error:.3g}, which is more than "
            f"{TOLERANCE * largest:.1g}"
        )
    return error
