"""Which structures are trained in a rung of the search. Pure.

A structure is named by its gates in order, 1 for on: ``111011`` lacks the fourth of six branches.
Successive halving (Jamieson and Talwalkar, 1502.07943) over rungs: all train a little, the best go
on. Where there are too many to enumerate, the first rung is a sample, and later ones make room for
mutants of the best (regularised evolution, 1802.01548, has the same step).
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_TRIES = 64  # for a mutant that is not known yet; where all neighbours are, there is none


@dataclass(frozen=True)
class Newcomer:
    """A structure of a rung, and the one whose weights it starts from; empty: the base's."""

    bits: str
    parent: str = ""


def first_rung(gates: int, limit: int, seed: int) -> list[Newcomer]:
    """All 2^gates structures, the dense one first; or a sample of ``limit`` that has the dense one.

    Same seed, same structures.
    """
    if 2**gates <= limit:
        return [Newcomer(f"{k:0{gates}b}" if gates else "") for k in reversed(range(2**gates))]
    draw = random.Random(f"{seed}/structures")
    found = dict.fromkeys(["1" * gates])
    while len(found) < limit:
        found[f"{draw.getrandbits(gates):0{gates}b}"] = None
    return [Newcomer(bits) for bits in found]


def rung_size(first: int, rung: int, eta: float, keep: int) -> int:
    """How many structures a rung has, of ``first`` in rung 0."""
    size = first
    for _ in range(rung):
        size = min(size, max(keep, math.ceil(size / eta)))
    return size


def next_rung(
    ranked: Sequence[str], known: Collection[str], size: int, fresh: int, draw: random.Random
) -> list[Newcomer]:
    """The best of a rung, and ``fresh`` mutants of them that nobody has tried, in ``size`` places.

    ``ranked`` are the rung's structures, the best first. A mutant is its parent with one gate
    flipped. Where there are fewer mutants than places, more of the rung stay.
    """
    elite = list(ranked[: max(1, size - fresh)])
    tried = set(known)
    mutants: list[Newcomer] = []
    for _ in range(_TRIES * fresh):
        if len(mutants) == min(fresh, size - len(elite)):
            break
        parent = elite[len(mutants) % len(elite)]
        place = draw.randrange(len(parent))
        bits = parent[:place] + ("0" if parent[place] == "1" else "1") + parent[place + 1 :]
        if bits not in tried:
            tried.add(bits)
            mutants.append(Newcomer(bits, parent))
    stay = ranked[: size - len(mutants)]
    return [*(Newcomer(bits) for bits in stay), *mutants]


def gates_of(bits: str, names: Sequence[str]) -> Mapping[str, bool]:
    """The gates that are off in the structure, as a part says them."""
    return {name: False for name, bit in zip(names, bits, strict=True) if bit == "0"}


def bits_of(off: Collection[str], names: Sequence[str]) -> str:
    """The structure's name, of the gates that are off in it."""
    return "".join("0" if name in off else "1" for name in names)
