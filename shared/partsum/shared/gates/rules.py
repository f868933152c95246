"""The rules that come with partsum: blocks of transformers, of residual MLPs and of ResNets.

Found by the names that libraries give to a block's modules. Blocks that norm after the sum (BERT)
keep the sum inside of a module, and have no gates here.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from partsum.shared.gates.registry import Branch, register
from partsum.shared.width.layers import child

_BRANCHES = (
    ("attention", ("norm1", "attention")),
    ("attn", ("norm1", "attn")),  # the usual ViT
    ("attn", ("ln_1", "attn")),  # GPT-2
    ("self_attn", ("input_layernorm", "self_attn", "post_attention_layernorm")),  # Gemma 2
    ("self_attn", ("input_layernorm", "self_attn")),  # Llama, Qwen
    ("self_attn", ("self_attn", "post_attention_layernorm")),  # OLMo 2
    ("mlp", ("norm2", "up", "down")),
    ("mlp", ("norm2", "mlp")),
    ("mlp", ("ln_2", "mlp")),  # GPT-2
    ("mlp", ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm")),  # Gemma 2
    ("mlp", ("mlp", "post_feedforward_layernorm")),  # OLMo 2
    ("mlp", ("post_attention_layernorm", "mlp")),  # Llama, Qwen
    ("", ("norm", "up", "down")),  # a residual MLP
)


@register
def transformer_branches(block: nn.Module) -> Iterator[Branch]:
    """Attention and MLP of a block whose stream nothing but these two is added to."""
    claimed: set[str] = set()
    found = []
    sandwiched = child(block, "pre_feedforward_layernorm") is not None
    for name, run in _BRANCHES:
        if claimed & set(run) or any(child(block, path) is None for path in run):
            continue
        # The norm after the attention is the attention's only where the MLP has one of its own.
        if "input_layernorm" in run and "post_attention_layernorm" in run and not sandwiched:
            continue
        claimed |= set(run)
        found.append(Branch(name, run, tuple(_outputs(block, path) for path in run)))
    if child(block, "mlp") is None or "mlp" in claimed:
        yield from found  # else it reads the attention's norm, which must stay then


def _outputs(block: nn.Module, path: str) -> int:
    """Hugging Face's attention returns its weights too, or None for them."""
    last = child(block, path)
    foreign = type(last).__module__.startswith("transformers.")
    return 2 if foreign and path in {"attn", "self_attn"} else 1


_CONVOLUTIONS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")


@register
def resnet_branch(block: nn.Module) -> Iterator[Branch]:
    """The convolutions of a block that adds what it read, unchanged (torchvision's names)."""
    run = tuple(name for name in _CONVOLUTIONS if child(block, name) is not None)
    convs = [conv for name in run if isinstance(conv := child(block, name), nn.Conv2d)]
    if run not in (_CONVOLUTIONS, _CONVOLUTIONS[:4]) or not _is_plain(block):
        return
    same_size = all(set(conv.stride) == {1} for conv in convs)
    if same_size and convs and convs[0].in_channels == convs[-1].out_channels:
        yield Branch("", run)


@register
def hugging_face_resnet_branch(block: nn.Module) -> Iterator[Branch]:
    """The same by transformers' names."""
    if isinstance(child(block, "layer"), nn.Sequential) and isinstance(
        child(block, "shortcut"), nn.Identity
    ):
        yield Branch("", ("layer",))


def _is_plain(block: nn.Module) -> bool:
    """Whether the shortcut is there, and holds nothing."""
    named = [name for name in ("downsample", "shortcut") if hasattr(block, name)]
    if not named:
        return False  # a chain of convolutions that adds nothing
    ways = (getattr(block, name) for name in named)
    return all(way is None or not any(True for _ in way.parameters()) for way in ways)
