"""Width groups of a large model: how long they take to find, and the memory that a cut takes.

    python benchmarks/widths.py [--json FILE]

A Llama of 1.2 billion parameters (the sizes of Llama 3.2 1B, random, nothing downloaded) on the
meta device: seconds to find its groups, and to cut a quarter of it. Then one of its layers for
real, 243 MB: peak resident memory while a quarter is cut from it, above what was resident before,
beside the size of the part; and seconds to merge four parts. Linux only: the peak is the kernel's,
from /proc/self/status. Needs the `transformers` extra.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures

from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_state
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.shared.config import PartsConfig
from partsum.shared.part import Part, cut_module
from partsum.shared.width import Widths, find_widths, with_scales

COUNT = 4
MODES = ("residual", "block")
Made = TypeVar("Made")


def llama(layers: int, tokens: int) -> nn.Module:
    """A Llama of so many layers and so large a vocabulary, each layer as large as 3.2 1B's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return with_scales(LlamaForCausalLM(config))


def size(model: nn.Module) -> int:
    """Bytes of its parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def parts_of(widths: Widths, mode: str) -> list[Part]:
    config = PartsConfig.model_validate({"mode": mode, "count": COUNT})
    return plan_parts(config, widths, equal_fractions(COUNT), 0, 0)


def timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """What it makes, and the seconds that it took."""
    begun = time.perf_counter()
    made = make()
    return made, time.perf_counter() - begun


def resident(field: str) -> int:
    """A figure of this process's memory in bytes: VmRSS now, VmHWM the peak since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_above(run: Callable[[], object]) -> int:
    """The most memory that running it takes at one time, above what is resident before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed must not serve again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def on_meta() -> dict[str, float]:
    """The whole model without its memory."""
    with torch.device("meta"):
        model = llama(layers=16, tokens=128_256)
    widths, found = timed(lambda: find_widths(model))
    figures = {"parameters": sum(p.numel() for p in model.parameters()), "find_seconds": found}
    figures["groups"] = len(widths.groups)
    for mode in MODES:
        cut = functools.partial(cut_module, model, widths, parts_of(widths, mode)[0])
        narrow, figures[f"{mode}_cut_seconds"] = timed(cut)
        figures[f"{mode}_parameters"] = sum(p.numel() for p in narrow.parameters())
    return figures


def one_layer(mode: str) -> dict[str, float]:
    """One real layer, cut and merged."""
    model = llama(layers=1, tokens=8)
    widths = find_widths(model)
    parts = parts_of(widths, mode)
    narrow: list[nn.Module] = []
    peak = peak_above(lambda: narrow.append(cut_module(model, widths, parts[0])))
    narrow += [cut_module(model, widths, part) for part in parts[1:]]
    states = (Tensors(part.state_dict()) for part in narrow)
    shares = [Contribution(p, state, 1.0) for p, state in zip(parts, states, strict=True)]
    rule, old = BLOCK if mode == "block" else AVERAGE, model.state_dict()
    _, seconds = timed(lambda: merge_state(old, shares, widths, rule))
    return {
        "base_bytes": size(model),
        f"{mode}_part_bytes": size(narrow[0]),
        f"{mode}_peak_bytes": peak,
        f"{mode}_merge_seconds": seconds,
    }


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    found = on_meta()
    for mode in MODES:
        found |= one_layer(mode)
    rows: dict[str, Callable[[str], str]] = {
        "cut on the meta device": lambda mode: f"{found[f'{mode}_cut_seconds']:.2f} s",
        "the part's parameters": lambda mode: f"{found[f'{mode}_parameters'] / 1e6:,.0f} M",
        "one layer's part": lambda mode: f"{found[f'{mode}_part_bytes'] / 1e6:,.1f} MB",
        "peak above the base while it is cut": (
            lambda mode: f"{found[f'{mode}_peak_bytes'] / 1e6:,.1f} MB"
        ),
        "merge of four": lambda mode: f"{found[f'{mode}_merge_seconds']:.2f} s",
    }
    billions = f"{found['parameters'] / 1e9:.2f} billion"
    table = Table(title=f"a quarter of a Llama of {billions} parameters", box=None)
    for column in ("", *MODES):
        table.add_column(column, justify="right")
    for name, cell in rows.items():
        table.add_row(name, *map(cell, MODES))
    console = wide_console()
    console.print(f"{found['groups']} width groups found in {found['find_seconds']:.2f} s")
    console.print(table)
    console.print(f"one layer of the base: {found['base_bytes'] / 1e6:,.0f} MB")
    if arguments.json:
        write_figures(arguments.json, found)


if __name__ == "__main__":
    main()
