"""A residual multi-layer perceptron: blocks that each add a branch to one stream."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from partsum.shared.width import ScaledLinear


class ResidualBlock(nn.Module):
    """``x + down(relu(up(norm(x))))``, (n, width) -> same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = ScaledLinear(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with the branch added."""
        branch: Tensor = self.down(functional.relu(self.up(self.norm(stream))))
        return stream + branch


class ResidualMlp(nn.Module):
    """Flatten, embed, ``layers`` blocks, a last norm and a linear head.

    Inputs float (n, ...) with ``inputs`` numbers a sample, outputs logits (n, outputs). Tensor
    names: ``embed``, ``blocks.i.{norm, up, down}``, ``norm``, ``head``; the rules find its width
    groups and its gates, one for each block.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(self, inputs: int, width: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        if min(width, hidden, layers) < 1:
            raise ValueError(
                f"width = {width}, hidden = {hidden}, layers = {layers}: all must be at least 1"
            )
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of a batch."""
        stream: Tensor = self.embed(inputs.flatten(1))
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream))
        return logits
