"""What must hold of a cut and of a merge, checked on a probe batch; nothing else would show it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from partsum.coordinator.base import Base, seeded_model
from partsum.coordinator.merge import BLOCK, Contribution, Tensors, merge_state
from partsum.shared.errors import WidthError
from partsum.shared.norms import group_norms
from partsum.shared.part import Part, cut_module, cut_tensors, index_map, region
from partsum.shared.task import Samples, Task
from partsum.shared.width import Widths

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest output, for "the same function"


def assert_merge(
    base: Base, merged: nn.Module, shares: Sequence[Contribution], samples: Samples
) -> None:
    """Mode block: the merged model computes the parts' mean, and its loss is at most theirs.

    Raises WidthError where the first does not hold, unless only with these weights: what nodes sent
    must not end the run, so that is said. The second is certain for a loss that is convex in the
    outputs; another loss may break it honestly, so that is only said too.
    """
    inputs, targets = base.probe(samples)
    counted = [share for share in shares if share.weight > 0]
    total = sum(share.weight for share in counted)
    weights = [share.weight / total for share in counted]
    parts = [base.part_model(share.part, share.tensors) for share in counted]
    with torch.no_grad():
        if not all(bool(torch.isfinite(part(inputs)).all()) for part in parts):
            # Its weights are finite, so it was not refused; one part must not end the run.
            log.warning("a part has diverged: its outputs are not finite; merged unchecked")
            return
    try:
        assert_mean_of_parts(merged, parts, weights, inputs)
    except WidthError as error:
        _assert_with_fresh_weights(base, merged, counted, inputs)
        log.warning("%s. With fresh weights it does: a part's weights are extreme", error)
        return
    with torch.no_grad():
        losses = [float(base.task.loss(part(inputs), targets)) for part in parts]
        loss = float(base.task.loss(merged(inputs), targets))
    mean = sum(w * part_loss for w, part_loss in zip(weights, losses, strict=True))
    if not loss <= mean + 1e-3:
        log.warning("the merged base's loss of %.4f is above its parts' mean, %.4f", loss, mean)


def _assert_with_fresh_weights(
    base: Base, merged: nn.Module, shares: Sequence[Contribution], inputs: Tensor
) -> None:
    """Raise WidthError unless such parts merge to their mean with weights that nobody chose.

    Finite weights can be so large that sums of them round away, or overflow on their way. An error
    of ours shows with any weights. ``merged`` is as before once this returns.
    """
    kept = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    old = {name: tensor.cpu() for name, tensor in kept.items()}
    fresh = [
        replace(share, tensors=Tensors(base.fresh_part(share.part, k)), weight=1.0)
        for k, share in enumerate(shares)
    ]
    parts = [base.part_model(share.part, share.tensors) for share in fresh]
    try:
        merged.load_state_dict(merge_state(old, fresh, base.widths, BLOCK))
        assert_mean_of_parts(merged, parts, [1 / len(fresh)] * len(fresh), inputs)
    finally:
        merged.load_state_dict(kept)


def assert_mean_of_parts(
    merged: nn.Module, parts: Sequence[nn.Module], weights: Sequence[float], inputs: Tensor
) -> float:
    """Raise WidthError unless merged(x) is the weighted mean of the parts' outputs; the error.

    This is what catches a wrong index map, cross blocks that are not zero, and a missing 1/K.
    """
    with torch.no_grad():
        expected = sum(w * part(inputs) for w, part in zip(weights, parts, strict=True))
        found = merged(inputs)
    return assert_same(found, expected, "the merged base does not compute the mean of its parts")


def certify(base: Base, parts: Sequence[Part], block: bool, samples: Samples) -> None:
    """Raise WidthError unless a cut model computes what the base does without the other units.

    The certificate catches every silent error of a width rule: a head count that was not mended, a
    slot that was forgotten, a norm over the wrong slice. In mode block parts with weights that
    nobody chose are merged too, which catches a readout that is none. Gates have a certificate of
    their own (`certify_gates`). Raises TaskError where the whole model does not run either.
    """
    base.check(samples)
    parts = [Part(part.units) for part in parts]
    if not any(part.units for part in parts):
        return
    inputs, _ = base.probe(samples)
    built = noisy_model(base.task).to(base.device).eval()
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    whole = base.task.model()
    if block:
        group_norms(whole, base.widths, parts)
    whole.to(base.device).eval()
    for part in {parts[0], parts[-1]} if len(parts) > 1 else parts:
        narrow = cut_module(built, base.widths, part).eval()
        whole.load_state_dict(_masked(state, base.widths, part))
        assert_same(
            _outputs(narrow, inputs),
            _outputs(whole, inputs),
            "a cut model does not compute what the base does without the other units: the model's "
            "width_groups(), or what a rule found of them, do not describe it (docs/widths.md)",
        )
    if block:
        _certify_merge(base, whole, parts, state, inputs)


def _certify_merge(
    base: Base, whole: nn.Module, parts: Sequence[Part], state: dict[str, Tensor], inputs: Tensor
) -> None:
    """The merge of slices of one state, weighed unevenly, must compute the slices' mean."""
    shares = [
        Contribution(part, Tensors(cut_tensors(state, base.widths, part)), float(k))
        for k, part in enumerate(parts, start=1)
    ]
    narrow = [base.part_model(share.part, share.tensors) for share in shares]
    whole.load_state_dict(merge_state(state, shares, base.widths, BLOCK))
    total = sum(share.weight for share in shares)
    try:
        assert_mean_of_parts(whole, narrow, [share.weight / total for share in shares], inputs)
    except WidthError as error:
        raise WidthError(
            f"{error}. Its readouts, {', '.join(base.widths.readouts) or 'none'}, do not weigh its "
            "output, or a part of it reads more than its slice. A head that is tied to the "
            'embeddings may have to be untied; mode = "residual" needs no readout (docs/widths.md)'
        ) from error


def noisy_model(task: Task) -> nn.Module:
    """The task's model with nothing left at 0 or 1, where an error would not show."""
    model = seeded_model(task, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith((".running_mean", ".running_var")):  # a variance stays positive
                buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator))
    return model


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            outputs: Tensor = model(inputs)
    except Exception as error:  # whatever a model raises whose tensors do not fit each other
        raise WidthError(
            "a cut model does not run: the model's width_groups(), or what a rule found of them, "
            f"forget a tensor or an attribute that counts units ({type(error).__name__}: {error})"
        ) from error
    return outputs


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


def assert_same(found: Tensor, expected: Tensor | int, what: str) -> float:
    """Raise WidthError unless two outputs are the same but for rounding; how far they differ."""
    assert isinstance(expected, Tensor)
    largest = max(1.0, float(expected.abs().max()))
    error = float((found - expected).abs().max())
    if not error <= TOLERANCE * largest:
        raise WidthError(
            f"{what}: outputs up to {largest:.3g} differ by {error:.3g}, which is more than "
            f"{TOLERANCE * largest:.1g}"
        )
    return error
