"""Small convolutional nets as people write them, with torchvision's names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    read: int, made: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without a bias and its batch norm."""
    conv = nn.Conv2d(read, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(made)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a way around them."""

    def __init__(self, read: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(read, width, 3, stride)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv_norm(width, width, 3)
        around = stride != 1 or read != width
        self.downsample = nn.Sequential(*conv_norm(read, width, 1, stride)) if around else None

    def forward(self, stream: Tensor) -> Tensor:
        around = stream if self.downsample is None else self.downsample(stream)
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(stream)))))
        branch += around
        outputs: Tensor = self.relu(branch)
        return outputs


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups where asked), 1x1 to twice the width."""

    def __init__(self, read: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(read, width)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, groups)
        self.conv3, self.bn3 = conv_norm(width, 2 * width)
        self.relu = nn.ReLU(inplace=True)
        around = stride != 1 or read != 2 * width
        self.downsample = nn.Sequential(*conv_norm(read, 2 * width, 1, stride)) if around else None

    def forward(self, stream: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(stream)))
        branch = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(branch)))))
        around = stream if self.downsample is None else self.downsample(stream)
        outputs: Tensor = self.relu(branch + around)
        return outputs


class ResNet(nn.Module):
    """Two stages of two blocks (He et al., 1512.03385; in groups, 1611.05431)."""

    def __init__(self, block: type[BasicBlock | Bottleneck], groups: int = 1) -> None:
        super().__init__()
        grown = 2 if block is Bottleneck else 1
        self.conv1, self.bn1 = conv_norm(3, 8, 3, 2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 1, 1)
        self.layer1 = nn.Sequential(block(8, 8, 1, groups), block(8 * grown, 8, 1, groups))
        self.layer2 = nn.Sequential(
            block(8 * grown, 16, 2, groups), block(16 * grown, 16, 1, groups)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16 * grown, 5)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outputs: Tensor = self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(stream))), 1))
        return outputs


class SqueezeExcite(nn.Module):
    """Gates each channel by what all of them show on average (Hu et al., 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1: nn.Module = nn.Conv2d(channels, squeezed, 1)
        self.fc2: nn.Module = nn.Conv2d(squeezed, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(maps, 1)
        outputs: Tensor = torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled)))) * maps
        return outputs


class LinearSqueezeExcite(SqueezeExcite):
    """The same with Linear layers and sizes asked of the map, as many write it."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__(channels, squeezed)
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, maps: Tensor) -> Tensor:
        count, channels, _, _ = maps.shape
        pooled = maps.mean((2, 3)).view(count, channels)
        gates = torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))
        outputs: Tensor = maps * gates.view(count, channels, 1, 1)
        return outputs


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, gate, project (Howard et al., 1905.02244)."""

    def __init__(
        self, read: int, made: int, grown: int, stride: int, gate: type[SqueezeExcite]
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Sequential(*conv_norm(read, grown), nn.Hardswish()),
            nn.Sequential(*conv_norm(grown, grown, 3, stride, grown), nn.Hardswish()),
            gate(grown, 8),
            nn.Sequential(*conv_norm(grown, made)),
        )
        self.is_residual = stride == 1 and read == made

    def forward(self, stream: Tensor) -> Tensor:
        branch = self.block(stream)
        outputs: Tensor = stream + branch if self.is_residual else branch
        return outputs


class MobileNet(nn.Module):
    """A stem, three inverted residuals, a classifier of two layers."""

    def __init__(self, gate: type[SqueezeExcite] = SqueezeExcite) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(*conv_norm(3, 8, 3, 2), nn.Hardswish()),
            InvertedResidual(8, 12, 16, 2, gate),
            InvertedResidual(12, 12, 24, 1, gate),
            InvertedResidual(12, 12, 24, 1, gate),
            nn.Sequential(*conv_norm(12, 32), nn.Hardswish()),
        )
        self.classifier = nn.Sequential(nn.Linear(32, 24), nn.Hardswish(), nn.Linear(24, 5))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(images).mean([2, 3]))
        return outputs


class GroupNormNet(nn.Module):
    """Group norms, PReLU, a transposed convolution, and a head that paints."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm1 = nn.GroupNorm(8, 16)
        self.act = nn.PReLU(16)
        self.across = nn.Conv2d(16, 16, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        small = self.act(self.norm1(self.down(images)))
        small = functional.relu(small + self.norm2(self.across(small)))
        outputs: Tensor = self.head(functional.relu(self.up(small)))
        return outputs


class UNet(nn.Module):
    """One level down and up, joined by concatenation: that axis stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 2, 2),
        )
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.down(images))
        outputs: Tensor = self.head(torch.cat([maps, torch.relu(self.deep(maps))], dim=1))
        return outputs


class HuggingFace(nn.Module):
    """A classifier of transformers, which says its logits alone."""

    def __init__(self, kind: str, **sizes: object) -> None:
        super().__init__()
        library = pytest.importorskip("transformers")
        config = getattr(library, f"{kind}Config")(**sizes, num_labels=5)
        self.inner = getattr(library, f"{kind}ForImageClassification")(config)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images).logits
        return logits
