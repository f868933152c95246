"""Tasks for `partsum inspect`: nets that can be cut in parts only, or not rightly."""

from __future__ import annotations

import torch
from tests.convnets import Bottleneck, ResNet, UNet
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Samples, Task
from partsum.shared.width import Axis, Widths


class Wrong(nn.Module):
    """Says that a hidden axis ends where another begins: its parts do not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.across = nn.Linear(8, 8)
        self.down = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.down(torch.relu(self.across(torch.relu(self.up(inputs)))))
        return outputs

    def width_groups(self) -> Widths:
        hidden = Axis(self, "hidden", 8, "hidden").made_by("up").read_by("down")
        return Widths((hidden.done(),), ("down.weight",))


def _nothing(*shape: int) -> Samples:
    return TensorDataset(torch.randn(8, *shape), torch.zeros(8, dtype=torch.long))


def unet() -> Task:
    """A concatenation keeps most of it whole."""
    return Task(UNet, lambda: _nothing(3, 8, 8), lambda: _nothing(3, 8, 8), _mean)


def resnext() -> Task:
    """Grouped convolutions, whose numbers of groups are mended."""

    def data() -> Samples:
        return _nothing(3, 16, 16)

    return Task(lambda: ResNet(Bottleneck, groups=4), data, data, _mean)


class Undecided(UNet):
    """Looks at values, which no tracer can."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.mean()) > 0 else -images)


def undecided() -> Task:
    """A net that cannot be followed."""
    return Task(Undecided, lambda: _nothing(3, 8, 8), lambda: _nothing(3, 8, 8), _mean)


def wrong() -> Task:
    """Its groups are wrong."""
    return Task(Wrong, lambda: _nothing(6), lambda: _nothing(6), _mean)


def no_data() -> Task:
    """Its data is elsewhere."""

    def missing() -> Samples:
        raise FileNotFoundError("no pictures here")

    return Task(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), missing, missing, _mean)


def _mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()
