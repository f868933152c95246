"""The two ends of a model around a list of blocks, each as a module of its own.

Both run the model's own code: nobody has to write it a second time, cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Reached(Exception):
    """The first block is called; what it is given."""

    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self.stream = stream


class End(nn.Module):
    """One end of a model: runs the model, and holds those of its tensors that belong to the end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple it is no submodule, and its tensors are not all ours

    def keep(self, names: Sequence[str]) -> dict[str, str]:
        """Take these tensors of the model for this end's own; what the model calls each."""
        tensors, kept = self._model[0].state_dict(keep_vars=True), {}
        for name in names:
            own = name.replace(".", "/")
            tensor = tensors[name]
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(own, tensor)
            else:
                self.register_buffer(own, tensor)
            kept[own] = name
        return kept

    def train(self, mode: bool = True) -> End:
        """As any module; the model's own parts follow."""
        super().train(mode)
        self._model[0].train(mode)
        return self


class Front(End):
    """What comes before the first block."""

    def __init__(self, model: nn.Module, first: nn.Module) -> None:
        super().__init__(model)
        self._first = (first,)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the first block is given."""

        def reached(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            raise _Reached(given[0])

        handle = self._first[0].register_forward_pre_hook(reached)
        try:
            self._model[0](inputs)
        except _Reached as end:
            return end.stream
        finally:
            handle.remove()
        raise AssertionError("the first block is always called")


class _Given(nn.Module):
    """Stands where a block was; returns what it was told to."""

    stream: Tensor

    def forward(self, ignored: Tensor) -> Tensor:
        """The stream."""
        return self.stream


class Back(End):
    """What comes after the last block. It runs the model without its blocks, on empty inputs."""

    def __init__(self, model: nn.Module, path: str, count: int, probe: Tensor) -> None:
        skeleton = _shallow(model, path)
        super().__init__(skeleton)
        self._given = _Given()
        blocks = skeleton.get_submodule(path)
        for k in range(count):
            setattr(blocks, str(k), self._given)
        self._shape, self._dtype = probe.shape[1:], probe.dtype

    def forward(self, stream: Tensor) -> Tensor:
        """The model's outputs, where its blocks come to this."""
        empty = torch.zeros((len(stream), *self._shape), dtype=self._dtype, device=stream.device)
        self._given.stream = stream
        outputs: Tensor = self._model[0](empty)
        return outputs


def _shallow(model: nn.Module, path: str) -> nn.Module:
    """The model again, with the same tensors, but another list of blocks at ``path``."""
    copied = _copy(model)
    name, _, rest = path.partition(".")
    inner = model.get_submodule(name)
    setattr(copied, name, _shallow(inner, rest) if rest else _copy(inner))
    return copied


def _copy(module: nn.Module) -> nn.Module:
    """A module of its own with the same tensors and the same children."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    copied._modules = dict(module._modules)
    return copied
