"""Width groups of convolutional nets: VGG, ResNet, ResNeXt, MobileNet and what is built like them.

A unit is a channel; where a grouped convolution or a group norm runs along the axis, a group of
channels. Channels that are added to each other, in a stage's blocks and their downsample branches,
are one "stream" axis; an axis that one layer makes and another reads is "hidden". Of two such axes
that share a weight only one is hidden, as in a plain chain: in a weight that is cut along both, the
cross blocks would be in no part. It is the one that closes a branch, else the first.

A hidden axis is added up by the layer that reads it, and in mode residual a base must take 1/K of
that sum. Where a norm follows at once, no scale is needed: a batch norm divides by its own spread,
whatever the factor, and the statistics that fit no part are computed anew after each merge. Any
other reader needs a scale (`with_scales`), and mode residual is refused while one has none.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from partsum.shared.errors import WidthError
from partsum.shared.width.groups import LeftOut, Widths
from partsum.shared.width.registry import register_whole
from partsum.shared.width.rules.flow import Follower, Tracer
from partsum.shared.width.rules.lanes import Lane, Weight, distinct

_OTHER_RULES = (nn.Embedding, nn.MultiheadAttention)


@register_whole
def convolution_widths(model: nn.Module) -> Widths | None:
    """The groups of a model that convolves; None for one that is something else.

    No other thread may run a model meanwhile: torch.fx takes hold of ``nn.Module.__call__``.

    Raises:
        WidthError: it has several convolutions, but cannot be followed, or nothing in it be cut.
    """
    convolutions = sum(isinstance(module, _ConvNd) for module in model.modules())
    if not convolutions or any(isinstance(module, _OTHER_RULES) for module in model.modules()):
        return None
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()  # dropped paths are branches of training alone
        graph = Tracer().trace(model)
    except Exception as error:  # whatever the user's forward does with a value that is none
        raise WidthError(
            f"the layers of {type(model).__name__} cannot be followed: torch.fx says "
            f"{type(error).__name__}: {error}. Give the model a width_groups() method "
            "(docs/widths.md)"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    follower = Follower(model, graph)
    widths = _widths(model, follower.lanes, follower.weights, follower.left_out)
    # A single convolution may be a transformer's, which cuts an image into patches.
    return None if convolutions == 1 and widths.block_refusal else widths


def _widths(
    model: nn.Module, lanes: list[Lane], weights: list[Weight], unknown: list[LeftOut]
) -> Widths:
    cut = distinct(lanes, lambda lane: lane.is_cut)
    hidden = _hidden(cut, weights)
    groups = tuple(lane.group("hidden" if lane in hidden else "stream") for lane in cut)
    left_out = (*unknown, *_left_out(model, lanes, unknown))
    if not groups:
        reasons = dict.fromkeys(reason for lane in lanes for reason in lane.root.reasons)
        raise WidthError(
            f"found no width groups in {type(model).__name__}: between what it is given and what "
            f"it gives there is no axis to cut{''.join(f'; {reason}' for reason in reasons)}. "
            "docs/widths.md shows how a model says its own"
        )
    readouts = [w for w in weights if w.read.root in cut and w.made.root.is_output]
    sums = [w for w in weights if w.read.root in hidden]
    scaled = [w.module for w in sums if "scale" in model.get_submodule(w.module)._buffers]
    return Widths(
        groups,
        readouts=tuple(dict.fromkeys(f"{weight.module}.weight" for weight in readouts)),
        scales=tuple(dict.fromkeys(f"{module}.scale" for module in scaled)),
        left_out=left_out,
        block_refusal=_block_refusal(model, lanes, weights, left_out),
        normed=tuple(dict.fromkeys(w.module for w in sums if w.is_normed)),
        residual_refusal=_residual_refusal(model, sums, scaled),
    )


def _hidden(cut: list[Lane], weights: list[Weight]) -> set[Lane]:
    """Which lanes a branch opens and closes again, no two of them in one weight."""
    hidden: set[Lane] = set()

    def makes(lane: Lane) -> list[Lane]:
        return [w.made.root for w in weights if w.read.root is lane and w.made.root is not lane]

    # Those that end in a stream go first: of a bottleneck's two, and before what leads to them.
    closing = [lane for lane in cut if any(made.is_stream for made in makes(lane))]
    for lane in dict.fromkeys([*closing, *cut]):
        made_from = [w.read.root for w in weights if w.made.root is lane]
        beside = {*made_from, *(w.made.root for w in weights if w.read.root is lane)}
        if not (lane.is_stream or _forks(lane, weights) or beside & {lane, *hidden}):
            hidden.add(lane)
    return hidden


def _forks(lane: Lane, weights: list[Weight]) -> bool:
    """Whether several layers read it. One that gates the lane (squeeze-and-excite) is none."""

    def comes_back(weight: Weight) -> bool:
        onward = [w.made.root for w in weights if w.read.root is weight.made.root]
        return bool(onward) and all(made is lane for made in onward)

    readers = [w for w in weights if w.read.root is lane]
    return len({w.module for w in readers if not comes_back(w)}) > 1


def _left_out(model: nn.Module, lanes: list[Lane], known: list[LeftOut]) -> Iterator[LeftOut]:
    """Dimensions that stay whole for a reason, and tensors of which nothing is cut."""
    told = {item.tensor for item in known}
    roots = distinct(lanes, lambda lane: bool(lane.spans))
    cut = {span.tensor for lane in roots if lane.is_cut for span in lane.spans}
    for lane in sorted(roots, key=lambda lane: not lane.reasons):
        for span in () if lane.is_cut else lane.spans:
            if (lane.reasons or span.tensor not in cut) and span.tensor not in told:
                told.add(span.tensor)
                yield LeftOut(span.tensor, f"dimension {span.dim} stays whole: {lane.reason}")
    for name, _ in model.named_parameters():
        if name not in told | cut:
            yield LeftOut(name, "it was not seen to take part in what the model computes")


def _block_refusal(
    model: nn.Module, lanes: list[Lane], weights: list[Weight], left_out: tuple[LeftOut, ...]
) -> str:
    """Why a merged base would not compute its parts' mean; "" where it does.

    Whatever lies before the readouts must be cut: a value that is whole would be the parts' sum.
    """
    for weight in weights:
        if weight.read.root.is_cut and not (weight.made.root.is_cut or weight.made.root.is_output):
            return (
                f"what {weight.module} makes cannot be cut ({weight.made.root.reason}), so its "
                "sums over the parts would mix them"
            )
    roots = distinct(lanes, lambda lane: bool(lane.spans))
    loud = [lane for lane in roots if not (lane.is_cut or lane.is_output or lane.is_input)]
    inside = {span.tensor for lane in loud for span in lane.spans}
    cut = {span.tensor for lane in roots if lane.is_cut for span in lane.spans}
    ends = {span.tensor for lane in roots if lane.is_output for span in lane.spans} - inside
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in cut | ends:
            reason = next((item.reason for item in left_out if item.tensor == name), "it is whole")
            return f"no part would have {name} to itself ({reason})"
    return ""


def _residual_refusal(model: nn.Module, sums: list[Weight], scaled: list[str]) -> str:
    """Why a base could not take the mean of what its parts' hidden axes add up to."""
    for weight in sums:
        if weight.module not in scaled and not weight.is_normed:
            kind = type(model.get_submodule(weight.module)).__name__
            return (
                f"{weight.module} ({kind}) adds up the hidden axis {weight.read.root.name}, and no "
                "norm follows at once: a base would add up all parts' where it must average them. "
                "Let the task's model() return partsum.shared.width.with_scales(model)"
            )
    return ""
