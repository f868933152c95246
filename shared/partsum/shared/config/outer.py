"""The outer optimizer: how far the base goes where a round's updates point."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from partsum.shared.config.section import Betas, NotNegative, Section, pair

_SPEED = ("learning_rate", "momentum")
_ADAPTIVE = ("learning_rate", "betas", "epsilon")
_TAKES: dict[str, tuple[str, ...]] = {
    "average": ("learning_rate",),
    "momentum": _SPEED,
    "nesterov": _SPEED,
    "adam": _ADAPTIVE,
    "yogi": _ADAPTIVE,
}


LayerScaling = Annotated[tuple[NotNegative, NotNegative], BeforeValidator(pair)]


class OuterConfig(Section):
    """How the merged updates move the base, where parts share it; docs/optimizers.md compares."""

    optimizer: Literal["average", "momentum", "nesterov", "adam", "yogi"] = "average"
    """average: the merge is the next base; the others take its change as a gradient: momentum
    (FedAvgM), nesterov (DiLoCo), adam (FedAdam), yogi (FedYogi). All but average need planner =
    "full" or mode = "residual", and aggregate = "weights"."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the outer step, by default 1 for average and momentum, 0.7 for nesterov, 0.01 for adam and
    yogi. With average it is task arithmetic's coefficient times the number of parts."""
    layer_scaling: LayerScaling | None = None
    """LiNeS: how many times as far as that the first and the last layer go, and in between linearly
    with depth; by default all the same."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of momentum and nesterov: how much of its speed the base keeps; by default 0.9."""
    betas: Betas | None = None
    """Of adam and yogi: decay rates of the first and second moment; by default [0.9, 0.99]."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Of adam and yogi: added to the root of the second moment (the paper's tau); by default 0.001.
    Changes much smaller than this are not made larger."""

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> OuterConfig:
        known = _TAKES[self.optimizer]
        for name in ("learning_rate", "momentum", "betas", "epsilon"):
            if getattr(self, name) is not None and name not in known:
                raise ValueError(
                    f'{name} means nothing to optimizer = "{self.optimizer}", which takes '
                    f"{', '.join(known)}; remove it, or choose another optimizer"
                )
        return self
