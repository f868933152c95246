"""Central differential privacy: what one part's cluster of data can change is drowned in noise.

Each round releases the mean of clipped updates with Gaussian noise (DP-FedAvg, McMahan et al. 2018,
1710.06963, without sampling of nodes). The unit that is protected is a cluster: everything that one
part is trained on, in all rounds together. docs/security.md says against whom, and what is left.
"""

from __future__ import annotations

import importlib
import math
import secrets
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from partsum.coordinator.merge import Merging
from partsum.coordinator.noise import derived_key, gaussian
from partsum.coordinator.norms import has_batch_norm
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig
from partsum.shared.config.trust import PrivacyConfig
from partsum.shared.errors import ConfigError, TaskError

_FACT = "privacy"


def epsilon(privacy: PrivacyConfig, rounds: int) -> float:
    """What so many rounds spend, at `privacy.delta`.

    Gaussian mechanisms compose exactly: T of them with noise z are one with z / sqrt(T) (Dong et
    al. 2022, 1905.02383). Every node takes part in every round, so nothing is gained by sampling.

    Raises ConfigError where dp-accounting is not installed.
    """
    if not rounds:
        return 0.0
    try:
        accounting = importlib.import_module("dp_accounting")
    except ImportError as error:
        raise ConfigError(
            "privacy.noise_multiplier needs the accountant of dp-accounting, which is not "
            "installed here: pip install 'partsum[privacy]'"
        ) from error
    noise = privacy.noise_multiplier / math.sqrt(rounds)
    return float(accounting.get_epsilon_gaussian(noise, privacy.delta))


def epsilon_of(config: RunConfig) -> float | None:
    """What a whole run will spend; None where nothing is promised."""
    privacy = config.privacy
    return epsilon(privacy, config.parts.rounds) if privacy.noise_multiplier else None


def check_model(model: nn.Module) -> None:
    """Raise TaskError where a model holds more of the data than its clipped parameters."""
    if has_batch_norm(model):
        raise TaskError(
            "privacy.noise_multiplier needs a model without batch norm: its running statistics are "
            "taken from the data as they are, and clipping does not bound them. Use layer or group "
            "norm instead"
        )


class Ledger:
    """The run's secret key and what has been released, in its journal.

    A release counts before it is made, so that one lost to a crash is counted too. The noise is
    that of the release: the same updates of the same round get the same noise again, and others,
    after a round had to be done over, get noise of their own and count once more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self) -> None:
        """Draw the key where there is none yet."""
        if self._store.fact(_FACT) is None:
            self._store.note(**{_FACT: {"key": secrets.token_hex(32), "releases": []}})

    def release(self, round: int, updates: Iterable[str]) -> bytes:
        """Count a round's release, which is made of updates with these digests; its key."""
        noted = self._store.fact(_FACT)
        key = derived_key(bytes.fromhex(noted["key"]), str(round), *updates)
        name = derived_key(key, "release").hex()  # tells nothing of the key
        if name not in noted["releases"]:
            self._store.note(**{_FACT: {**noted, "releases": [*noted["releases"], name]}})
        return key

    def spent(self, config: RunConfig) -> float | None:
        """The epsilon of all releases so far; None where nothing is promised."""
        noted = self._store.fact(_FACT)
        return epsilon(config.privacy, len(noted["releases"])) if noted else None


class NoisyMerger:
    """Adds noise to what training changes. All else stays as it is in the base.

    ``trained`` gives each trained parameter the name that its noise is drawn by: tied ones, which
    are one parameter, the same.
    """

    def __init__(
        self, inner: Merging, trained: Mapping[str, str], key: bytes, deviation: float
    ) -> None:
        self._inner = inner
        self._trained = trained
        self._key = key
        self._deviation = deviation

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The merged tensor of that name, with noise; ``old`` where training does not change it."""
        if name not in self._trained:
            return old
        merged = self._inner.merge(name, old)
        noise = gaussian(derived_key(self._key, "tensor", self._trained[name]), merged.numel())
        noisy = merged.double() + self._deviation * noise.view(merged.shape)
        return noisy.to(merged.dtype)


def trained_names(model: nn.Module) -> dict[str, str]:
    """Every name of each parameter that is trained, and the first of its names."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def noise_deviation(privacy: PrivacyConfig, parts: int) -> float:
    """The noise's standard deviation in the mean over so many parts."""
    return privacy.noise_multiplier * privacy.clip_norm / parts
