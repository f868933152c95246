"""Training that can be repeated: random numbers by seed, and deterministic algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from partsum.shared.messages import Assignment


class Settled:
    """Random numbers from (seed, round), and deterministic algorithms where they are asked for.

    The process's own are left as they were. An assignment may be trained in several stretches; each
    draws on where the one before it ended.
    """

    def __init__(self, assignment: Assignment, device: torch.device) -> None:
        self._assignment = assignment
        self._cuda = device if device.type == "cuda" else None
        self._states: list[Tensor] = []  # of the generators: the CPU's, and the device's

    @contextmanager
    def stretch(self) -> Iterator[None]:
        """Train within this."""
        a = self._assignment
        before = torch.are_deterministic_algorithms_enabled()
        with torch.random.fork_rng(devices=[self._cuda] if self._cuda else []):
            self._seed()
            # On CUDA some operations have no deterministic form: there they warn, not end training.
            warn = self._cuda is not None
            torch.use_deterministic_algorithms(a.settings.deterministic, warn_only=warn)
            try:
                yield
            finally:
                torch.use_deterministic_algorithms(before)
                self._states = [torch.get_rng_state()]
                if self._cuda:
                    self._states.append(torch.cuda.get_rng_state(self._cuda))

    def _seed(self) -> None:
        if not self._states:
            torch.manual_seed((self._assignment.seed * 1_000_003 + self._assignment.round) % 2**63)
            return
        torch.set_rng_state(self._states[0])
        if self._cuda:
            torch.cuda.set_rng_state(self._states[1], self._cuda)
