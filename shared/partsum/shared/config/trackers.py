"""Where a run's curves go beside its own files."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from partsum.shared.config.section import Section


class TrackersConfig(Section):
    """Trackers that get the run's curves as it goes, each behind an extra of its name."""

    tensorboard: bool | Annotated[str, Field(min_length=1)] = False
    """TensorBoard event files: true writes them to `tensorboard` in the run's folder, a folder's
    name to a folder of the run's name in there."""
    mlflow: Annotated[str | None, Field(min_length=1)] = None
    """Address of an MLflow tracking server (`http://HOST:5000`) or store; the run goes to the
    experiment named as `name` above. Secrets: MLFLOW_TRACKING_TOKEN in the environment."""
    wandb: Annotated[str | None, Field(min_length=1)] = None
    """Project, or ENTITY/PROJECT, of Weights & Biases; WANDB_MODE=offline in the environment sends
    nothing."""

    @field_validator("mlflow")
    @classmethod
    def _no_secret_in_address(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password is not None:
            raise ValueError(
                "the address holds a password, which would stand in the run's config and report. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return value
