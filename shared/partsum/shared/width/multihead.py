"""torch's multi-head attention with fewer heads than its width has room for.

``nn.MultiheadAttention`` takes the number of heads from the width, so a part of it that keeps the
width and drops heads needs a module of its own; and where torch may, its encoder layers compute
from the tensors and pass their modules by, which then must not happen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_PARAMETERS = (
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_bias",
)


class SlicedAttention(nn.Module):
    """``nn.MultiheadAttention`` with any number of heads and the same parameter names.

    The size of a head and the softmax's scale are those of the module that it was made from. The
    output projection is called as a module, so that hooks on it count.
    """

    in_proj_weight: Tensor | None
    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None
    in_proj_bias: Tensor | None

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = module.num_heads
        self.head_dim = module.head_dim
        self.dropout = module.dropout
        self.batch_first = module.batch_first
        self._qkv_same_embed_dim = False  # read by nn.TransformerEncoderLayer: no fast path
        for name in _PARAMETERS:
            self.register_parameter(name, getattr(module, name))
        self.out_proj = module.out_proj
        self.train(module.training)

    def reset_parameters(self) -> None:
        """The initialisation of ``nn.MultiheadAttention``."""
        for name in _PARAMETERS[:-1]:
            if getattr(self, name) is not None:
                nn.init.xavier_uniform_(getattr(self, name))
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The same as ``nn.MultiheadAttention``, by its own arguments."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        heads = self._heads(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, len(query), heads[0].dtype)
        found, weights = self._attend(*heads, mask, need_weights)
        projected: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not is_batched:
            return projected.squeeze(0), None if weights is None else weights.squeeze(0)
        return projected if self.batch_first else projected.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, length, width) each -> (n, heads, length, head_dim) each."""
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.chunk(3)
        else:
            assert self.q_proj_weight is not None
            assert self.k_proj_weight is not None
            assert self.v_proj_weight is not None
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        queries, keys, values = (
            functional.linear(x, matrix, bias).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for x, matrix, bias in zip(inputs, matrices, biases, strict=True)
        )
        return queries, keys, values

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, samples: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Both masks as one that is added, broadcast over (n, heads, length, length)."""
        mask, padding = _added(mask, dtype), _added(padding, dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.view(samples, -1, *mask.shape[1:])
        if padding is not None:
            padding = padding.view(samples, 1, 1, -1)
        if mask is None or padding is None:
            return padding if mask is None else mask
        return mask + padding

    def _attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            attend = functional.scaled_dot_product_attention
            return attend(queries, keys, values, mask, dropout), None
        scores = queries @ keys.transpose(-1, -2) / self.head_dim**0.5
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = functional.dropout(weights, dropout)
        return weights @ values, weights


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that is added; a bool one says where not to look."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)


def free_heads(model: nn.Module, all_of_them: bool = False) -> None:
    """Put a SlicedAttention, in place, where an attention's tensors do not fit its width.

    ``all_of_them``: also where they do, so that what is done to the projections counts.
    """
    swapped = False
    for path, module in list(model.named_modules()):
        if type(module) is not nn.MultiheadAttention or not (all_of_them or _is_cut(module)):
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, SlicedAttention(module))
        swapped = True
    if swapped:
        forbid_fast_path(model)


def _is_cut(module: nn.MultiheadAttention) -> bool:
    return tuple(module.out_proj.weight.shape) != (module.embed_dim, module.embed_dim)


def forbid_fast_path(model: nn.Module) -> None:
    """Let torch's encoder layers call their modules, in evaluation too.

    They would compute a layer from its tensors, whatever modules hold these by now.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
