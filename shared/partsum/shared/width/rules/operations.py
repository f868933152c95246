"""What operations without weights do to channels: let them pass, join two values, reshape a map."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from partsum.shared.width.rules.lanes import Flow

_SIZES = frozenset({"size", "dim", "numel"})
_FACTS = frozenset({"shape", "ndim", "dtype", "device"})

SUMS = frozenset({"add", "add_", "iadd", "sub", "sub_", "isub"})
JOINS = SUMS | {"mul", "mul_", "imul", "truediv", "div", "maximum", "minimum"}
"""What computes each number of its result from the two in the same place."""

_ACTIVATIONS = """relu relu_ relu6 leaky_relu elu celu selu gelu silu mish hardswish hardsigmoid
hardtanh softplus softsign tanh sigmoid logsigmoid clamp clamp_min abs neg exp sqrt square pow
dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout"""
_POOLS = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d interpolate"""
_COPIES = "contiguous clone detach to float double half bfloat16 type_as"
PASSES = frozenset(f"{_ACTIVATIONS} {_POOLS} {_COPIES}".split())
"""What acts on each channel alone, and keeps them where they are."""

PASSING_LAYERS = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Tanh),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.FeatureAlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d),
    *(nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.AdaptiveAvgPool1d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
)
"""Layers without weights that act on each channel alone (PReLU has some of its own)."""


def is_question(node: fx.Node, name: str) -> bool:
    """Whether the node asks for a size or the like: no tensor comes of it."""
    return name in _SIZES or (name == "getattr" and node.args[1] in _FACTS)


def is_by_number(node: fx.Node, flow: fx.Node, numbers: Collection[fx.Node]) -> bool:
    """Whether a join's other side is a number, and so acts on all channels alike."""
    others = [argument for argument in node.args if argument is not flow]
    return len(node.args) == 2 and all(
        isinstance(other, int | float) or other in numbers for other in others
    )


def flattened(flow: Flow, start: int, end: int = -1) -> Any:
    """A map flattened: from its channels on, each is a block; behind them, they stay."""
    if start == 1 and end == -1:
        return flow if flow.rank == 2 else Flow(flow.lane, None, 2)
    if start >= 2 and flow.rank is not None and end in (-1, flow.rank - 1):
        return replace(flow, rank=start + 1)
    return NotImplemented


def _flatten(node: fx.Node, flow: Flow) -> Any:
    given: dict[str, Any] = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
    given |= node.kwargs
    start, end = given.get("start_dim", 0), given.get("end_dim", -1)
    if not (isinstance(start, int) and isinstance(end, int)):
        return NotImplemented  # they are computed in forward()
    return flattened(flow, start, end)


def _view(node: fx.Node, flow: Flow) -> Any:
    """``view(n, -1)`` flattens, and so does ``view(n, c)``; ``view(n, c, 1, 1)`` makes a map."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    if len(sizes) == 2 and (sizes[1] == -1 or isinstance(sizes[1], fx.Node)):
        return flattened(flow, 1)
    if flow.rank == 2 and len(sizes) > 2 and all(size == 1 for size in sizes[2:]):
        return replace(flow, rank=len(sizes))
    return NotImplemented


def _mean(node: fx.Node, flow: Flow) -> Any:
    """A mean or sum over places: ``mean((2, 3))``, with or without ``keepdim``."""
    given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    dims = _places(given.get("dim"), flow)
    if dims is None:
        return NotImplemented
    assert flow.rank is not None
    return flow if given.get("keepdim") else replace(flow, rank=flow.rank - len(dims))


def _squeeze(node: fx.Node, flow: Flow) -> Any:
    dims = _places(node.args[1] if len(node.args) == 2 else node.kwargs.get("dim"), flow)
    if dims is None:
        return NotImplemented
    assert flow.rank is not None
    return replace(flow, rank=flow.rank - len(dims))


def _unsqueeze(node: fx.Node, flow: Flow) -> Any:
    dim = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
    if flow.rank is None or not isinstance(dim, int) or not (dim == -1 or 2 <= dim <= flow.rank):
        return NotImplemented
    return replace(flow, rank=flow.rank + 1)


def _getitem(node: fx.Node, flow: Flow) -> Any:
    """``x[:, :, None, None]`` and the like: the first two dimensions are kept as they are."""
    index = node.args[1]
    if not isinstance(index, tuple) or flow.rank is None or len(index) < 3:
        return NotImplemented
    if any(piece != slice(None) for piece in index[:2]) or Ellipsis in index:
        return NotImplemented
    if not all(piece is None or isinstance(piece, int | slice) for piece in index[2:]):
        return NotImplemented
    added = sum(piece is None for piece in index)
    return replace(flow, rank=flow.rank + added - sum(isinstance(p, int) for p in index[2:]))


def _places(dims: Any, flow: Flow) -> set[int] | None:
    """Which dimensions behind the channels are meant; None where it is not those."""
    named = (dims,) if isinstance(dims, int) else dims
    if flow.rank is None or not isinstance(named, tuple | list) or not named:
        return None
    if not all(isinstance(dim, int) for dim in named):
        return None
    found = {dim % flow.rank for dim in named}
    return found if min(found) >= 2 else None


RESHAPES: Mapping[str, Callable[[fx.Node, Flow], Any]] = {
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "mean": _mean,
    "sum": _mean,
    "amax": _mean,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "getitem": _getitem,
}
"""What changes a map's shape, and the flow that comes of it; NotImplemented where it is unclear."""
