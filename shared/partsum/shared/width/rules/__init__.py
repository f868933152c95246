"""The rules that come with partsum, one kind of layer a file; importing this registers them."""

from partsum.shared.width.rules import (
    attention,
    convolution,
    experts,
    feedforward,
    multihead,
    relative,
)

__all__ = ["attention", "convolution", "experts", "feedforward", "multihead", "relative"]
