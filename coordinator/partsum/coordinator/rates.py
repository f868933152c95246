"""How often somebody may do something. Pure: the time comes as an argument."""

from __future__ import annotations


class RateLimits:
    """A token bucket for each key, kept as one number: when the bucket will be full again.

    (The generic cell rate algorithm, which needs no refilling.)

    Args:
        per_second: in the long run.
        burst: at once, after a rest.
        keys: remembered at most; the one that was heard first is forgotten.
    """

    def __init__(self, per_second: float, burst: float, keys: int = 10_000) -> None:
        self._interval = 1.0 / per_second
        self._slack = max(0.0, burst - 1.0) * self._interval
        self._keys = keys
        self._full_at: dict[str, float] = {}

    def take(self, key: str, now: float) -> float:
        """Take one from the key's bucket; seconds to wait, and nothing taken, where it is empty."""
        full_at = max(self._full_at.get(key, now), now)
        wait = full_at - now - self._slack
        if wait > 0:
            return wait
        if key not in self._full_at and len(self._full_at) >= self._keys:
            self._forget(now)
        self._full_at[key] = full_at + self._interval
        return 0.0

    def _forget(self, now: float) -> None:
        self._full_at = {key: end for key, end in self._full_at.items() if end > now}
        while len(self._full_at) >= self._keys:
            del self._full_at[next(iter(self._full_at))]
