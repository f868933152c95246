"""Settings for all tests."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

# Tiny models gain nothing from threads, and on a busy machine threads wait for each other.
torch.set_num_threads(1)

# Times on a shared machine say nothing; what is drawn is the same on every machine.
settings.register_profile(
    "partsum",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("partsum")
