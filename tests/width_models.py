"""Small random models of the kinds that people train, and inputs for them; no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.transformer import CharGpt, Vit
from partsum.shared.width import with_scales

hf = pytest.importorskip("transformers")

TOKENS = 13


class Logits(nn.Module):
    """A Hugging Face model that says its logits and nothing else, as a task's model must."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens, use_cache=False).logits
        return logits


class Classifier(Logits):
    """The same of a model that knows no cache."""

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens).logits
        return logits


class Translator(Logits):
    """An encoder-decoder that reads the same tokens on both sides."""

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.inner(input_ids=tokens, decoder_input_ids=tokens, use_cache=False)
        logits: Tensor = found.logits
        return logits


class Encoder(nn.Module):
    """torch's own encoder between an embedding and a head."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            32, 8, 48, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.embed = nn.Embedding(TOKENS, 32)
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(32), enable_nested_tensor=not norm_first
        )
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embed(tokens)).mean(dim=1))
        return logits


class EncoderDecoder(nn.Module):
    """torch's own encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        self.inner = nn.Transformer(32, 8, 1, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        stream, length = self.embed(tokens), tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        logits: Tensor = self.head(self.inner(stream, stream, tgt_mask=mask))
        return logits


def _gpt2(tied: bool = True) -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=TOKENS,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=8,
        tie_word_embeddings=tied,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Logits(hf.GPT2LMHeadModel(config))


_LLAMA = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _llama(tied: bool = False) -> nn.Module:
    config = hf.LlamaConfig(**_LLAMA, tie_word_embeddings=tied)
    return Logits(hf.LlamaForCausalLM(config))


def _phi3() -> nn.Module:
    return Logits(hf.Phi3ForCausalLM(hf.Phi3Config(**_LLAMA, resid_pdrop=0.0)))


def _t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=TOKENS,
        d_model=32,
        d_kv=6,
        d_ff=48,
        num_layers=2,
        num_heads=8,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return Translator(hf.T5ForConditionalGeneration(config))


def _opt() -> nn.Module:
    config = hf.OPTConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=16,
        dropout=0.0,
        pad_token_id=1,
    )
    return Logits(hf.OPTForCausalLM(config))


def _bert() -> nn.Module:
    config = hf.BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Classifier(hf.BertForSequenceClassification(config))


def _deepseek() -> nn.Module:
    config = hf.DeepseekV2Config(
        **{**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 32},
        head_dim=4,
        q_lora_rank=12,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=6,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    return Logits(hf.DeepseekV2ForCausalLM(config))


def _tokens() -> Tensor:
    return torch.randint(TOKENS, (3, 7), generator=torch.Generator().manual_seed(1))


def _numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is made, its hidden units by group, and whether mode block cuts it.

    ``units`` are those of each layer's groups, which repeat layer by layer.
    """

    make: Callable[[], nn.Module]
    units: dict[str, int]
    block: bool = True
    inputs: Callable[[], Tensor] = _tokens


MODELS: dict[str, Kind] = {
    "mlp": Kind(
        lambda: Mlp(12, [24, 24, 24], 5), {"linear1": 24, "linear3": 24}, inputs=_numbers(3, 12)
    ),
    "vit": Kind(
        lambda: Vit(8, 4, 24, 6, 2, 36, 5), {"heads": 6, "hidden": 36}, inputs=_numbers(3, 1, 8, 8)
    ),
    "gpt": Kind(lambda: CharGpt(TOKENS, 9, 24, 6, 2), {"heads": 6, "hidden": 96}),
    "encoder, pre-norm": Kind(
        lambda: Encoder(norm_first=True), {"self_attn.heads": 8, "hidden": 48}
    ),
    "encoder, post-norm": Kind(
        lambda: Encoder(norm_first=False), {"self_attn.heads": 8, "hidden": 48}
    ),
    "encoder-decoder": Kind(
        EncoderDecoder, {"self_attn.heads": 8, "multihead_attn.heads": 8, "hidden": 48}
    ),
    "gpt2, tied": Kind(_gpt2, {"attn.heads": 8, "mlp.hidden": 128}),
    "gpt2, untied": Kind(lambda: _gpt2(tied=False), {"attn.heads": 8, "mlp.hidden": 128}),
    "llama": Kind(_llama, {"self_attn.heads": 8, "mlp.hidden": 48}),
    "llama, tied": Kind(lambda: _llama(tied=True), {"self_attn.heads": 8, "mlp.hidden": 48}),
    "phi3": Kind(_phi3, {"self_attn.heads": 8, "mlp.hidden": 48}),
    "t5": Kind(
        _t5,
        {
            "encoder.heads": 8,
            "decoder.heads": 8,
            "decoder.cross_heads": 8,
            "layer.1.DenseReluDense.hidden": 48,
            "layer.2.DenseReluDense.hidden": 48,
        },
    ),
    "opt": Kind(_opt, {"self_attn.heads": 8, "hidden": 48}),
    "bert": Kind(_bert, {"attention.heads": 8, "hidden": 48}),
    "deepseek": Kind(
        _deepseek,
        {"self_attn.heads": 8, "mlp.hidden": 48, "experts.hidden": 32, "shared_experts.hidden": 32},
        block=False,
    ),
}


def _neox() -> nn.Module:
    config = hf.GPTNeoXConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return Logits(hf.GPTNeoXForCausalLM(config))


ADDED = {"gpt-neox": Kind(_neox, {"mlp.hidden": 48}, block=False)}
"""Kinds of which some layers have no rule."""


def scaled(kind: str) -> nn.Module:
    """A model that mode residual can merge."""
    return with_scales(MODELS[kind].make())
