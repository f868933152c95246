"""How much a message may say. What crosses the network is held to this before it costs memory.

Each function returns the value that it was given, or raises WireError with the value, the limit
and the field: honest peers of one version never meet a limit.
"""

from __future__ import annotations

from typing import TypeVar

from partsum.shared.errors import WireError

Number = TypeVar("Number", int, float)

NAME_CHARACTERS = 256  # of a run, a task, a device, a width group, an assignment
WORDS_CHARACTERS = 2000  # of a reason, for a log and a report
OPTIONS_BYTES = 64 << 10  # of a task's options, as JSON
GROUPS = 1 << 16  # width groups of a part
GATES = 1 << 12  # of a part
MEMBERS = 1 << 10  # of a gang
UNITS = 1 << 22  # of all of a part's width groups together: each is an int in memory (32 B)
COUNT = 1 << 48  # samples, bytes: beyond any run, and far from where int64 ends
BATCH_SIZE = 1 << 20
SPLITS = 64  # of a layer whose sums are taken in random groups
GFLOPS = 1e9  # of a device: a thousand petaflops
BEAT_SECONDS = (0.01, 3600.0)  # between heartbeats
TENSORS_HEADER_BYTES = 16 << 20  # of a tensor file: JSON costs up to 20 times that while it is read
TENSOR_DIMENSIONS = 16


def within(value: Number, low: float, high: float, what: str) -> Number:
    """A number from ``low`` to ``high``, both included; NaN never is."""
    if not low <= value <= high:
        raise WireError(f"{what} is {value}, which is not between {low} and {high}")
    return value


def short(text: str, what: str, limit: int = NAME_CHARACTERS) -> str:
    """A text of at most ``limit`` characters."""
    if len(text) > limit:
        raise WireError(f"{what} has {len(text)} characters, more than {limit}: {text[:40]!r}...")
    return text


def in_words(text: str) -> str:
    """What the other side says to people, fit for one line of a log: cut, and nothing but text.

    A line break would let it forge lines, and an escape code would speak to the terminal.
    """
    cut = text[:WORDS_CHARACTERS]
    return "".join(letter if letter.isprintable() else " " for letter in cut)
