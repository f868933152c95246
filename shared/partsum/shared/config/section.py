"""A table of run.toml, and the numbers that its keys may have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def pair(value: Any) -> Any:
    """A list as a tuple: TOML knows lists alone."""
    return tuple(value) if isinstance(value, list) else value


Betas = Annotated[tuple[Fraction, Fraction], BeforeValidator(pair)]


class Section(BaseModel):
    """A table of run.toml: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
