"""Feed-forward layers: the hidden axis between a layer that widens and one that narrows.

Found by the names that libraries give to the two (or three, where a gate multiplies); what lies
between must act on each hidden unit alone, which the certificate proves.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import WidthGroup
from partsum.shared.width.layers import inputs_of, joined, linears, outputs_of
from partsum.shared.width.registry import register

_PLAIN = (
    ("fc1", "fc2"),  # OPT, BART, ViTs
    ("c_fc", "c_proj"),  # GPT-2
    ("linear1", "linear2"),  # nn.TransformerEncoderLayer
    ("wi", "wo"),  # T5
    ("intermediate.dense", "output.dense"),  # BERT
    ("lin1", "lin2"),  # DistilBERT
    ("fc_in", "fc_out"),  # GPT-J
    ("dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX
    ("up_proj", "down_proj"),
    ("up", "down"),
)
_GATED = (
    ("gate_proj", "up_proj", "down_proj"),  # Llama: SwiGLU
    ("wi_0", "wi_1", "wo"),  # T5 1.1
    ("w1", "w3", "w2"),  # Llama, as published
)
_FUSED = (("gate_up_proj", "down_proj"),)  # Phi-3: the gate's rows, then the others
NAMES = (*_PLAIN, *_GATED, *_FUSED)


@register(lambda module: any(linears(module, names) for names in NAMES))
def hidden_axis(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
    """The hidden units of a feed-forward layer; a gate's rows go with the rows that they gate."""
    for *makers, reader in (*_GATED, *_FUSED, *_PLAIN):
        found = linears(module, (*makers, reader))
        if not found:
            continue
        units = inputs_of(found[-1])
        is_fused = (*makers, reader) in _FUSED
        if any(outputs_of(maker) != (2 if is_fused else 1) * units for maker in found[:-1]):
            continue
        axis = Axis(model, joined(path, "hidden"), units, "hidden")
        for maker in makers:
            axis.made_by(joined(path, maker), offsets=(0, units) if is_fused else (0,))
        yield axis.read_by(joined(path, reader)).done()
        return
