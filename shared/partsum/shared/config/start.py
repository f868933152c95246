"""Trained models that the base begins as."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partsum.shared.config.section import NotNegative, Section


class StartConfig(Section):
    """Smaller trained models that the base is grown from, in place of a fresh one: docs/growing.md.

    Copies of them are kept in the run's folder.
    """

    models: list[str] = Field(default_factory=list)
    """Their safetensors files, such as a run's `final.safetensors`; relative to run.toml. None: the
    base is freshly initialised."""
    grow: Literal["fuse", "widen"] = "fuse"
    """fuse: models side by side, whose widths add up to the base's, compute their mean (Deep
    Fusion), and in mode block part k goes on from model k; widen: the units of one model are copied
    (Net2Net). One model as wide as the base is simply taken."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """Of fuse: how much each model counts in the mean; by default all the same."""
    noise: NotNegative = 0.0
    """Of widen: added to each matrix, as a share of its standard deviation, so that copies part.
    Without, they stay alike; with 0.1 the base computes nearly what the model does."""

    @model_validator(mode="after")
    def _fits_together(self) -> StartConfig:
        if not self.models:
            if self.grow != "fuse" or self.weights is not None or self.noise:
                raise ValueError(
                    "grow, weights and noise mean nothing without models; name the models to grow "
                    "from, or remove these"
                )
            return self
        if self.weights is not None and self.grow == "widen":
            raise ValueError('weights means nothing to grow = "widen"; remove it')
        if self.weights is not None and len(self.weights) != len(self.models):
            raise ValueError(
                f"weights has {len(self.weights)} entries, but there are {len(self.models)} models"
            )
        if self.grow == "fuse" and self.noise:
            raise ValueError('noise means nothing to grow = "fuse"; remove it')
        if self.grow == "widen" and len(self.models) != 1:
            raise ValueError(
                f'grow = "widen" takes one model, and there are {len(self.models)}; several are '
                'put side by side by grow = "fuse"'
            )
        return self
