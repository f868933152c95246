"""Which structures each token takes, and with what weights: three ways to choose."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from partsum.shared.structural.auxiliary import add_loss
from partsum.shared.structural.structures import Structures


class Router(nn.Module):
    """A linear layer from each token to a probability for each structure, in float32.

    Args:
        width: numbers a token.
        structures: what it chooses among.
    """

    def __init__(self, width: int, structures: Structures) -> None:
        super().__init__()
        self.structures = structures
        self.weight = nn.Parameter(torch.empty(structures.count, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As nn.Linear's: so the choice is random at first, and even on average."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def logits(self, tokens: Tensor) -> Tensor:
        """(tokens, width) -> float32 (tokens, structures)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return functional.linear(tokens.float(), self.weight.float())


class TopKRouter(Router):
    """Each token takes the ``top_k`` structures that are the most probable for it.

    Their weights are the probabilities, divided by their sum, which counts as a constant: so they
    add up to 1, and with ``top_k = 1`` the router still learns, as in the Switch Transformer (Fedus
    et al. 2021, 2101.03961), whose balance loss this has: structures * sum of (share of choices *
    mean probability), 1 where all are equal. ``z`` weighs the mean squared log-sum-exp of the
    logits, which keeps them small (ST-MoE: Zoph et al. 2022, 2202.08906).

    Raises:
        ValueError: ``top_k`` is not between 1 and the number of structures.
    """

    def __init__(
        self,
        width: int,
        structures: Structures,
        top_k: int = 1,
        balance: float = 0.01,
        z: float = 0.0,
    ) -> None:
        super().__init__(width, structures)
        if not 1 <= top_k <= structures.count:
            raise ValueError(
                f"top_k = {top_k}: there are {structures.count} experts to choose from"
            )
        self.top_k, self.balance, self.z = top_k, balance, z

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens, width) -> float32 (tokens, structures): weights, 0 where one is not chosen."""
        logits = self.logits(tokens)
        probabilities = logits.softmax(dim=-1)
        values, places = probabilities.topk(self.top_k, dim=-1)
        values = values / values.detach().sum(dim=-1, keepdim=True)
        chosen = torch.zeros_like(probabilities).scatter(1, places, values)
        if not (self.training and torch.is_grad_enabled()):
            return chosen
        loss = self.balance * balance_loss(probabilities, chosen)
        if self.z:
            loss = loss + self.z * logits.logsumexp(dim=-1).square().mean()
        return add_loss(chosen, loss)


def balance_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Switch's: both float (tokens, structures); 0-dim, 1 where all structures are chosen alike."""
    taken = (chosen.detach() > 0).float()
    share = taken.sum(dim=0) / taken.sum().clamp(min=1)
    return probabilities.shape[1] * (share * probabilities.mean(dim=0)).sum()


class ExpertChoiceRouter(Router):
    """Each structure takes the tokens that it is the most probable for.

    Zhou et al. 2022 (2202.09368). Every structure takes equally many, so there is nothing to
    balance: tokens * ``capacity`` / structures of a batch, at least one. A token may be taken by
    several or by none (its hidden units are 0 then, and the residual carries it). A token's weights
    are its probabilities divided by their sum, as in `TopKRouter`. What a token gets depends on the
    rest of its batch, later tokens included: not for a model that predicts the next token, nor for
    comparing single samples.

    Raises:
        ValueError: ``capacity`` is not positive.
    """

    def __init__(self, width: int, structures: Structures, capacity: float = 1.0) -> None:
        super().__init__(width, structures)
        if capacity <= 0:
            raise ValueError(f"capacity = {capacity:g} must be above 0: structures for each token")
        self.capacity = capacity

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens, width) -> float32 (tokens, structures): weights, 0 where one is not chosen."""
        probabilities = self.logits(tokens).softmax(dim=-1)
        wanted = round(len(tokens) * self.capacity / self.structures.count)
        values, places = probabilities.topk(min(max(1, wanted), len(tokens)), dim=0)
        chosen = torch.zeros_like(probabilities).scatter(0, places, values)
        sums = chosen.detach().sum(dim=-1, keepdim=True)
        return chosen / sums.where(sums > 0, torch.ones_like(sums))


Choice = Literal["tokens", "experts"]
"""Who chooses: tokens their experts (`TopKRouter`), or experts their tokens."""
