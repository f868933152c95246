"""`partsum grow`: the base that a run would start from, as a file."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from partsum.coordinator.base import Base
from partsum.coordinator.folder import given_models
from partsum.coordinator.growth.start import Start
from partsum.shared.config import load_config
from partsum.shared.errors import EXIT_OK, ConfigError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_samples, load_task


def write_grown(path: Path, out: Path) -> int:
    """Write base 0 of the config at ``path`` to ``out``; raises what the run itself would."""
    config = load_config(path)
    if not config.start.models:
        raise ConfigError(f"{path} has no [start] with models to grow from (docs/growing.md)")
    if out.exists():
        raise ConfigError(f"{out} exists already; remove it, or name another --out")
    task = load_task(TaskSpec(config.task.name, config.task.options))
    base = Base(task, torch.device("cpu"))
    start = Start(config, base, given_models(config, path))
    start.check()
    samples = load_samples(task.validation, "validation")
    try:
        with TemporaryDirectory(dir=out.parent, prefix=".grow-") as folder:
            fresh = Path(folder) / "fresh"
            base.initial(fresh, config.seed, start.scale)
            said = start.grow(fresh, out, samples)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    print(f"{out}: {said}")
    return EXIT_OK
