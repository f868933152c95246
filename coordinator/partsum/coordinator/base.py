"""The base model on the coordinator: built, cut, checked and evaluated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.contribution import rows_of
from partsum.coordinator.merge import Readable
from partsum.coordinator.norms import has_batch_norm, recalibrate
from partsum.coordinator.strategies.blocks import row_blocks
from partsum.shared.errors import PartsumError, TaskError
from partsum.shared.gates import close_gates, find_structure
from partsum.shared.norms import group_norms
from partsum.shared.part import Part, cut_module, emptied, fresh_module
from partsum.shared.task import Samples, Scores, Task, evaluate, gather, num_samples, walk
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors
from partsum.shared.width import Widths

log = logging.getLogger(__name__)

_PROBE_SAMPLES = 64
_BLOCK_BYTES = 4 << 20
_RECALIBRATION_BATCHES = 20  # design: enough to bring averaged statistics back


def meta_model(task: Task) -> nn.Module:
    """The task's model without its memory: shapes only.

    Raises:
        TaskError: the model cannot be built.
    """
    try:
        try:
            with torch.device("meta"):
                return task.model()
        except (NotImplementedError, RuntimeError):  # building it needs values
            return emptied(task.model(), "meta")
    except PartsumError:
        raise
    except Exception as error:  # it is the user's code
        raise TaskError(f"the task's model failed: {type(error).__name__}: {error}") from error


def _fill(target: Tensor, file: TensorFile, name: str) -> None:
    """A tensor's values from a file, a few rows at a time: a large one takes no memory twice."""
    target = rows_of(target)
    row_bytes = target[:1].nbytes
    for rows in row_blocks(target.shape, row_bytes, _BLOCK_BYTES):
        target[rows] = file.read_rows(name, rows.start, rows.stop)


def seeded_model(task: Task, seed: int) -> nn.Module:
    """The task's model, freshly initialised. Same seed, same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what only building the model fills
        model = task.model()
    return fresh_module(model, seed)


class Base:
    """A task's model and widths, and what the coordinator does with them.

    One real model is built when it is first needed and kept; everything else is on the meta device.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.shape = meta_model(task)
        self.widths: Widths = find_structure(self.shape)
        self._plain: nn.Module | None = None
        self._changed: tuple[list[Part], tuple[str, ...], nn.Module] | None = None

    def initial(self, path: Path, seed: int, scale: float) -> str:
        """Write base 0, freshly initialised, with every scale set; returns its digest."""
        state = seeded_model(self.task, seed).state_dict()
        for name in self.widths.scales:
            state[name] = torch.full_like(state[name], scale)
        return save_tensors(path, state, {"partsum.base": "0"})

    def model(
        self, path: Path, norm_parts: Sequence[Part] = (), off: Sequence[str] = ()
    ) -> nn.Module:
        """The model in evaluation mode with a base file's weights.

        Grouped norms where parts are given, and without the branches whose gates are ``off``.
        """
        model = self._built(list(norm_parts), tuple(off))
        with TensorFile(path) as file:
            targets = model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, target in targets.items():
                    _fill(target, file, name)
        return model.eval()

    def _built(self, norm_parts: list[Part], off: tuple[str, ...] = ()) -> nn.Module:
        if not norm_parts and not off:
            if self._plain is None:
                self._plain = self.task.model().to(self.device)
            return self._plain
        if self._changed is None or self._changed[:2] != (norm_parts, off):
            model = group_norms(self.task.model(), self.widths, norm_parts)
            close_gates(model, self.widths, off)
            self._changed = (norm_parts, off, model.to(self.device))
        return self._changed[2]

    def forget_grouped(self) -> None:
        """Let the model with grouped norms go, where no round will need it."""
        self._changed = None

    @property
    def trained(self) -> set[str]:
        """The names of the parameters that training changes, under all of their names."""
        named = self.shape.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if parameter.requires_grad}

    def fresh_part(self, part: Part, seed: int) -> dict[str, Tensor]:
        """What a part starts from where it starts from its seed, as its node makes it.

        Not safe in two threads at once: torch has one generator. A parameter that no
        ``reset_parameters`` fills has other values here than there.
        """
        narrow = cut_module(self._built([]), self.widths, part).cpu()
        return dict(fresh_module(narrow, seed).state_dict())

    def part_model(self, part: Part, tensors: Readable) -> nn.Module:
        """A part's own small model in evaluation mode, with an update's weights."""
        model = cut_module(self._built([]), self.widths, part)
        model.load_state_dict({name: tensors.read(name) for name in model.state_dict()})
        return model.to(self.device).eval()

    def scores(self, model: nn.Module, samples: Samples) -> Scores:
        """Loss and headline metric over a data set."""
        return evaluate(model, self.task, samples, self.device)

    def recalibrated(
        self, path: Path, train: Samples, seed: int, off: Sequence[str] = ()
    ) -> str | None:
        """Mend averaged batch norm statistics in a base file, gates ``off``; its new digest.

        The file of a model without batch norms is left alone: None.
        """
        if not has_batch_norm(self.shape):
            return None
        model = self.model(path, off=off)
        wanted = min(num_samples(train), _RECALIBRATION_BATCHES * 128)
        picked = walk(seed, torch.arange(num_samples(train)), 0, wanted, 128)
        # A batch of one has no spread, and torch refuses it.
        batches = [gather(train, index)[0] for index in picked if len(index) > 1]
        recalibrate(model, [inputs.to(self.device) for inputs in batches])
        skipped = load_tensors(path) if off else {}
        return save_tensors(path, skipped | {n: t.cpu() for n, t in model.state_dict().items()})

    def check(self, samples: Samples) -> None:
        """Raise TaskError unless the model takes the samples and returns a tensor."""
        inputs, _ = self.probe(samples)
        try:
            with torch.no_grad():
                outputs = self._built([]).eval()(inputs)
        except Exception as error:  # it is the user's code
            raise TaskError(
                f"the task's model fails on its own data, inputs of shape {tuple(inputs.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(outputs, Tensor):
            raise TaskError(
                f"the task's model returns {type(outputs).__name__}, and must return a tensor: "
                "wrap it in a module that picks one, as docs/tutorial.md, section 6, does with "
                "logits"
            )

    def probe(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """A few samples, always the same, on the device."""
        inputs, targets = gather(samples, torch.arange(min(_PROBE_SAMPLES, num_samples(samples))))
        return inputs.to(self.device), targets.to(self.device)
