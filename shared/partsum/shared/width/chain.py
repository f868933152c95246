"""The width groups of a plain chain of layers."""

from __future__ import annotations

from torch import Tensor, nn

from partsum.shared.errors import WidthError
from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import Depth, Widths
from partsum.shared.width.scaled import scales_of


def chain_widths(model: nn.Module) -> Widths:
    """The groups of an ``nn.Sequential``: what lies between two Linear or Conv2d layers.

    Every other axis is "hidden", the ones between are "stream", so that mode residual covers every
    weight. Layers in between must act on each unit alone: activations, dropout, pooling, and the
    norms over the axis.
    """
    axes: list[Axis] = []
    last = ""
    for path, module in model.named_children() if isinstance(model, nn.Sequential) else ():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and module.groups != 1:
                raise WidthError(
                    f"layer {path} is a grouped convolution, which the chain rule cannot cut; "
                    "give the model a width_groups() method (docs/tutorial.md)"
                )
            if axes:
                _close_axis(axes[-1], model, last, path)
            depth: Depth = "stream" if len(axes) % 2 else "hidden"
            axes.append(Axis(model, path, module.weight.shape[0], depth).made_by(path))
            last = path
        elif isinstance(module, _NORMS) and axes:
            axes[-1].normed_by(path)
        elif any(True for _ in module.parameters()):
            raise WidthError(
                f"layer {path} ({type(module).__name__}) holds parameters that the chain rule does "
                "not know; give the model a width_groups() method (docs/tutorial.md)"
            )
    if len(axes) < 2:
        raise WidthError(
            f"found no width groups in {type(model).__name__}: it is not an nn.Sequential with at "
            "least two Linear or Conv2d layers, no rule knows its layers, and it has no "
            "width_groups() method. docs/widths.md shows how to add a rule, and docs/tutorial.md "
            "how to write the method in a few lines"
        )
    groups = tuple(axis.done() for axis in axes[:-1])
    return Widths(groups, (f"{last}.weight",), scales_of(model, groups))


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def _close_axis(axis: Axis, model: nn.Module, maker: str, reader: str) -> None:
    """Let the axis end at the layer that reads it; a flattened conv map is a block a channel."""
    weight = model.get_submodule(reader).weight
    assert isinstance(weight, Tensor)
    width = weight.shape[1]
    if width % axis.units:
        raise WidthError(
            f"layer {reader} reads {width} inputs, which is not a multiple of the "
            f"{axis.units} units that layer {maker} makes"
        )
    axis.read_by(reader, block=width // axis.units)
