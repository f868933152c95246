"""The tasks that come with partsum; name one as ``partsum.shared.tasks:digits``."""

from partsum.shared.tasks.blank import blank
from partsum.shared.tasks.images import (
    digits,
    digits_vit,
    image_mlp,
    image_residual_mlp,
    image_vit,
)
from partsum.shared.tasks.text import char_gpt

__all__ = [
    "blank",
    "char_gpt",
    "digits",
    "digits_vit",
    "image_mlp",
    "image_residual_mlp",
    "image_vit",
]
