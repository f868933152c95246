"""The weights that a gang's structures share: one mean gradient, one optimizer state, for each.

Structures of one base have most weights in common. Each step, the gradient of a weight is the mean
over the members that have it, so that all of them take the same step with it; a weight that only
one member has is that member's own. Tensors are exchanged in one bucket for each set of members.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import xxhash
from torch import Tensor, nn

from partsum.node.gang import Gang, GangBrokeError, Ranks
from partsum.node.model import base_of
from partsum.shared.errors import WireError
from partsum.shared.messages import Part
from partsum.shared.moments import MOMENTS
from partsum.shared.part import cut_module

Kind = TypeVar("Kind", bound=Tensor)


class SharedWeights:
    """One member's view of them. All members call the same methods in the same order.

    Methods raise GangBrokeError where another member does not answer.

    Args:
        gang: the members.
        module: this member's part.
        carriers: by parameter name, the ranks that have it.
    """

    def __init__(self, gang: Gang, module: nn.Module, carriers: Mapping[str, Ranks]) -> None:
        self._gang = gang
        self._module = module
        self._all = tuple(range(gang.place.size))
        buckets: defaultdict[Ranks, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                buckets[carriers[name]].append(parameter)
        self._buckets = dict(sorted(buckets.items()))  # in one order on all members: else they lock

    @property
    def _shared(self) -> dict[Ranks, list[nn.Parameter]]:
        return {ranks: bucket for ranks, bucket in self._buckets.items() if len(ranks) > 1}

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Let each gradient be the mean over the members that have its weight.

        Where a member's loss does not depend on a weight that it has, its gradient counts as zero.
        """
        for ranks, bucket in self._shared.items():
            summed = self._gang.sum(_flat([_gradient(p) for p in bucket]), ranks)
            for parameter, mean in _pieces(summed / len(ranks), bucket):
                parameter.grad = mean.to(parameter.dtype)

    @torch.no_grad()
    def clip_gradients(self, norm: float) -> None:
        """Shorten the gradient of all weights of all members together to that norm (L2)."""
        squares = torch.zeros((), dtype=torch.float64)
        for ranks, bucket in self._buckets.items():
            if self._gang.place.rank == ranks[0]:  # each weight counts once
                squares += sum(float(_gradient(p).double().square().sum()) for p in bucket)
        total = float(self._gang.sum(squares.reshape(1), self._all).sqrt())
        if total > norm:
            for parameter in self._module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(norm / total)

    @torch.no_grad()
    def share_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Let all members go on with the moments of the one that has taken the most steps.

        A member may have none: it has lost them, or has only now come to its part.
        """
        for ranks, bucket in self._shared.items():
            states = [_state(optimizer, parameter) for parameter in bucket]
            mine = [int(states[0]["step"]), _digest(t for s in states for t in s.values())]
            known = self._gang.gather(mine, ranks)
            if all(row == known[0] for row in known):
                continue
            source = max(range(len(ranks)), key=lambda k: (known[k][0], -k))
            for key in MOMENTS:
                flat = _flat([state[key] for state in states])
                copied = self._gang.copy_of(flat, ranks, ranks[source])
                for state, piece in _pieces(copied, [state[key] for state in states]):
                    state.copy_(piece)

    def check(self) -> None:
        """All members must hold the same bits of what they share. Raises GangBrokeError."""
        for ranks, bucket in self._shared.items():
            known = self._gang.gather([_digest(p.detach() for p in bucket)], ranks)
            if any(row != known[0] for row in known):
                raise GangBrokeError(
                    f"members {ranks} of gang {self._gang.place.id} hold different values of the "
                    "weights that they share; hosts whose processors round differently cannot "
                    "train in one gang"
                )


def carriers_of(
    make_model: Callable[[], nn.Module], parts: Sequence[Part], seed: int
) -> dict[str, Ranks]:
    """By parameter name, which members have it: ranks in order, where ``parts`` is by rank.

    Raises WireError where parts differ in more than gates: their tensors would not match.
    """
    if any(part.units != parts[0].units for part in parts):
        raise WireError("the parts of this gang keep different units; they share no whole tensors")
    base, widths = base_of(make_model, seed)
    found: defaultdict[str, list[int]] = defaultdict(list)
    for rank, part in enumerate(parts):
        for name, _ in cut_module(base, widths, part).named_parameters():
            found[name].append(rank)
    return {name: tuple(ranks) for name, ranks in found.items()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The parameter's moments; zeros where it has taken no step."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for key in MOMENTS[1:]:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return {key: state[key] for key in MOMENTS}


def _digest(tensors: Iterable[Tensor]) -> int:
    """Of their bytes, as a number that int64 holds."""
    digest = xxhash.xxh3_64()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.intdigest() >> 1


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])


def _pieces(flat: Tensor, like: Sequence[Kind]) -> list[tuple[Kind, Tensor]]:
    """Each tensor with its piece of the bucket, in its shape."""
    split = torch.split(flat, [tensor.numel() for tensor in like])
    return [(t, piece.view_as(t)) for t, piece in zip(like, split, strict=True)]
