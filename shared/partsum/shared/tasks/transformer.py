"""One transformer for images and text. Every size follows the tensors, so a cut model just works.

Tensor names: ``embed``, ``positions``, ``blocks.i.{norm1, attention.{qkv, out}, norm2, up, down}``,
``norm``, ``head``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from partsum.shared.structural import Router, structural_mlp
from partsum.shared.structural.widths import REASON
from partsum.shared.width import Axis, LeftOut, ScaledLinear, Widths


class Attention(nn.Module):
    """Multi-head self-attention, (n, length, width) -> same.

    The rows of ``qkv`` are all heads' queries, then keys, then values, each head's ``head_dim``
    together: a part keeps whole heads, and head_dim and the softmax scale stay as they are.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = ScaledLinear(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        """What the heads found, projected back to the stream."""
        heads = self.qkv(stream).unflatten(-1, (3, -1, self.head_dim))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal
        )
        projected: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """A pre-norm block, (n, length, width) -> same: ``x + attention``, then ``x + MLP``."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = ScaledLinear(hidden, width)
        self.router: Router | None = None  # set by `with_structural_experts`

    def mlp_inputs(self) -> int:
        """How many numbers the MLP reads."""
        return self.up.weight.shape[1]

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with both branches added."""
        stream = stream + self.attention(self.norm1(stream))
        return stream + self._mlp(self.norm2(stream))

    def _mlp(self, inputs: Tensor) -> Tensor:
        if self.router is not None:
            return structural_mlp(inputs, [self.up], functional.gelu, self.down, self.router)
        found: Tensor = self.down(functional.gelu(self.up(inputs)))
        return found


class Transformer(nn.Module):
    """Learned positions, blocks, a last norm and an untied head around a given embedding.

    Subclasses turn their inputs into a stream (n, length, width) and what `encode` makes of it
    into logits.

    Raises:
        ValueError: a size that is not positive, or a width that is no multiple of the heads.
    """

    def __init__(
        self,
        embed: nn.Embedding | nn.Conv2d,
        length: int,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
        outputs: int,
        causal: bool,
    ) -> None:
        super().__init__()
        if min(heads, layers, hidden) < 1 or width % heads:
            raise ValueError(
                f"width = {width}, heads = {heads}, layers = {layers}, hidden = {hidden}: all must "
                "be at least 1, and the width a multiple of the heads"
            )
        self.embed = embed
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the embeddings; every other module's own ``reset_parameters`` will do.

        Those draw matrices within 1 / sqrt(fan-in), so that activations are of one size whatever
        the width: a fixed deviation such as GPT-2's 0.02 fits its width of 768, and would leave a
        narrow part's branches almost silent. Embeddings add up nothing, so theirs is fixed; small,
        so that the branches are heard (not studied carefully).
        """
        for module in (self.embed, self.positions):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def encode(self, stream: Tensor) -> Tensor:
        """Positions added, all blocks run, normed: (n, length, width) -> same."""
        stream = stream + self.positions.weight[: stream.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        normed: Tensor = self.norm(stream)
        return normed

    def width_groups(self) -> Widths:
        """The residual stream, and the heads and the MLP's hidden axis of every block."""
        width = self.positions.weight.shape[1]
        stream = Axis(self, "stream", width, "stream").made_by("embed").made_by("positions")
        groups, scales, left_out = [], [], []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            path = f"blocks.{index}"
            stream.normed_by(f"{path}.norm1").read_by(f"{path}.attention.qkv")
            stream.made_by(f"{path}.attention.out").normed_by(f"{path}.norm2")
            stream.read_by(f"{path}.up").made_by(f"{path}.down")
            groups.append(self._heads(block, path))
            scales.append(f"{path}.attention.out.scale")
            if block.router is None:
                groups.append(self._hidden(block, path))
                scales.append(f"{path}.down.scale")
            else:
                names = ("up.weight", "up.bias", "down.weight", "router.weight")
                left_out += [LeftOut(f"{path}.{name}", REASON) for name in names]
        stream.normed_by("norm").read_by("head")
        hidden = [group.done() for group in groups]
        if left_out:
            refusal = f"{left_out[0].tensor} stays whole: {REASON}"
            return Widths(tuple(hidden), (), tuple(scales), tuple(left_out), refusal)
        return Widths((stream.done(), *hidden), ("head.weight",), tuple(scales))

    def _heads(self, block: Block, path: str) -> Axis:
        width = block.attention.out.weight.shape[1]
        head_dim = block.attention.head_dim
        axis = Axis(self, f"{path}.heads", width // head_dim, "hidden")
        axis.made_by(f"{path}.attention.qkv", head_dim, (0, width, 2 * width))
        return axis.read_by(f"{path}.attention.out", head_dim)

    def _hidden(self, block: Block, path: str) -> Axis:
        axis = Axis(self, f"{path}.hidden", block.up.weight.shape[0], "hidden")
        return axis.made_by(f"{path}.up").read_by(f"{path}.down")


class Vit(Transformer):
    """A vision transformer: images float (n, 1, size, size) -> logits (n, classes).

    The tokens after the last norm are averaged; there is no class token.

    Raises:
        ValueError: a patch that does not tile the image, or as Transformer.
    """

    def __init__(
        self, size: int, patch: int, width: int, heads: int, layers: int, hidden: int, classes: int
    ) -> None:
        if patch < 1 or size % patch:
            raise ValueError(f"patches of {patch} pixels do not tile an image of {size} x {size}")
        embed = nn.Conv2d(1, width, patch, patch)
        tokens = (size // patch) ** 2
        super().__init__(embed, tokens, width, heads, layers, hidden, classes, causal=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encode(tokens).mean(dim=1))
        return logits


class CharGpt(Transformer):
    """A character-level language model: int64 (n, length) -> logits (n, length, characters)."""

    def __init__(self, characters: int, context: int, width: int, heads: int, layers: int) -> None:
        embed = nn.Embedding(characters, width)
        super().__init__(embed, context, width, heads, layers, 4 * width, characters, causal=True)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of each next character."""
        logits: Tensor = self.head(self.encode(self.embed(characters)))
        return logits
