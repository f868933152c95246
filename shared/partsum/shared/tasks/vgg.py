"""A VGG (Simonyan and Zisserman, 1409.1556), of any depth and width, for small images too.

Tensor names are torchvision's: ``features.i``, ``classifier.i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

VGG19 = (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0)
"""The original's channels; 0 halves the map."""


class Vgg(nn.Module):
    """3x3 convolutions with pooling between them, then a classifier with one width for each layer.

    Inputs float (n, colours, size, size) -> logits (n, classes). Mode residual needs `with_scales`.

    Args:
        size: of the square images, in pixels.
        colours: channels of the images.
        channels: of each convolution; 0 halves the map.
        hidden: widths of the classifier's hidden layers.
        classes: how many logits.
        norm: whether a batch norm follows each convolution.
        dropout: in the classifier, behind each hidden layer.

    Raises:
        ValueError: sizes that are not positive, or an image too small for so many halvings.
    """

    def __init__(
        self,
        size: int,
        colours: int,
        channels: Sequence[int],
        hidden: Sequence[int],
        classes: int,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = size >> list(channels).count(0)
        widths = [width for width in channels if width]
        if not widths or min(*widths, *hidden, classes) < 1:
            raise ValueError(
                f"channels = {list(channels)}, hidden = {list(hidden)}: there must be at least one "
                "convolution, and every width must be at least 1 (0 among the channels halves the "
                "map)"
            )
        if side < 1:
            raise ValueError(
                f"channels = {list(channels)} halve an image of {size} pixels to nothing"
            )
        self.features = nn.Sequential(*_features(colours, channels, norm))
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        sizes = [widths[-1] * side * side, *hidden, classes]
        self.classifier = nn.Sequential(*_classifier(sizes, dropout))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits


def _features(colours: int, channels: Sequence[int], norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    read = colours
    for width in channels:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(read, width, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
        read = width
    return layers


def _classifier(sizes: Sequence[int], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for read, made in pairwise(sizes):
        layers += [nn.Linear(read, made), nn.ReLU(), nn.Dropout(dropout)]
    return layers[:-2]  # the last are the logits
