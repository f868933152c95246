"""Image tasks: scikit-learn's digits (embedded), and sets in IDX form such as Fashion-MNIST."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from partsum.shared.errors import DataError
from partsum.shared.structural import with_structural_experts
from partsum.shared.task import Task
from partsum.shared.tasks.idx import find_idx, read_idx
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.residual import ResidualMlp
from partsum.shared.tasks.transformer import Vit
from partsum.shared.tasks.vgg import Vgg
from partsum.shared.width import with_scales

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where the Debian package dataset-fashion-mnist puts its files."""

_CLASSES = 10
_DIGITS_SIZE = 8
_IDX_SIZE = 28
_IDX_MEAN, _IDX_STD = 0.2860, 0.3530  # of Fashion-MNIST's training pixels, scaled to [0, 1]


def digits(widths: Sequence[int] = (256, 256, 256), validation: int = 360, seed: int = 0) -> Task:
    """An MLP on scikit-learn's 1797 digits, which need no download.

    Args:
        widths: the hidden layers' widths.
        validation: how many samples are held out.
        seed: draws which.
    """
    return _digits_task(lambda: Mlp(_DIGITS_SIZE**2, widths, _CLASSES), validation, seed)


def digits_vit(
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    mlp_ratio: int = 4,
    patch: int = 2,
    validation: int = 360,
    seed: int = 0,
    experts: int = 0,
    experts_per_token: int = 1,
) -> Task:
    """A small vision transformer on scikit-learn's digits; options as in `digits`, `image_vit`."""

    def model() -> nn.Module:
        vit = Vit(_DIGITS_SIZE, patch, width, heads, layers, mlp_ratio * width, _CLASSES)
        return with_structural_experts(vit, experts, experts_per_token) if experts else vit

    return _digits_task(model, validation, seed)


def image_mlp(folder: str = FASHION_MNIST, widths: Sequence[int] = (640, 640, 640)) -> Task:
    """An MLP on an image set in IDX form.

    Args:
        folder: holds the set's four files, gzipped or plain.
        widths: the hidden layers' widths.
    """
    return _idx_task(lambda: Mlp(_IDX_SIZE**2, widths, _CLASSES), folder)


def image_vit(
    folder: str = FASHION_MNIST,
    width: int = 96,
    heads: int = 8,
    layers: int = 4,
    mlp_ratio: int = 4,
    patch: int = 4,
    experts: int = 0,
    experts_per_token: int = 1,
) -> Task:
    """A vision transformer on an image set in IDX form.

    Args:
        folder: holds the set's four files, gzipped or plain.
        width: of the residual stream; a multiple of ``heads``.
        heads: attention heads in each block.
        layers: blocks.
        mlp_ratio: each block's hidden axis is this many times the width.
        patch: side of the square patches; 4 makes 49 tokens of an image, 7 makes 16.
        experts: structures of each block's MLP among which its router chooses, a power of two; 0
            leaves the MLPs dense (docs/experts.md).
        experts_per_token: how many of them each token takes.
    """

    def model() -> nn.Module:
        vit = Vit(_IDX_SIZE, patch, width, heads, layers, mlp_ratio * width, _CLASSES)
        return with_structural_experts(vit, experts, experts_per_token) if experts else vit

    return _idx_task(model, folder)


def image_residual_mlp(
    folder: str = FASHION_MNIST, width: int = 192, hidden: int = 768, layers: int = 4
) -> Task:
    """A residual MLP on an image set in IDX form; each of its blocks is a gate.

    Args:
        folder: holds the set's four files, gzipped or plain.
        width: of the residual stream.
        hidden: of each block's branch.
        layers: blocks.
    """
    return _idx_task(lambda: ResidualMlp(_IDX_SIZE**2, width, hidden, layers, _CLASSES), folder)


def image_vgg(
    folder: str = FASHION_MNIST,
    channels: Sequence[int] = (32, 32, 0, 64, 64, 0, 128, 128, 0),
    hidden: Sequence[int] = (256,),
    norm: bool = True,
    dropout: float = 0.0,
) -> Task:
    """A VGG on an image set in IDX form.

    Args:
        folder: holds the set's four files, gzipped or plain.
        channels: of each 3x3 convolution; 0 halves the map.
        hidden: widths of the classifier's hidden layers.
        norm: a batch norm behind each convolution.
        dropout: behind each hidden layer of the classifier.
    """

    def model() -> nn.Module:
        return with_scales(Vgg(_IDX_SIZE, 1, channels, hidden, _CLASSES, norm, dropout))

    return _idx_task(model, folder)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers: logits (n, classes), targets int64 (n,) -> 0-dim."""
    return (logits.argmax(dim=-1) == targets).float().mean()


def _digits_task(model: Callable[[], nn.Module], validation: int, seed: int) -> Task:
    return Task(
        model=model,
        train=lambda: _digits_split(validation, seed)[0],
        validation=lambda: _digits_split(validation, seed)[1],
        loss=functional.cross_entropy,
        metrics={"accuracy": accuracy},
    )


def _digits_split(validation: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and validation data: images float32 (n, 1, 8, 8) in [0, 1], labels int64 (n,)."""
    table = _digits_table()
    images = torch.from_numpy(table[:, :-1]).float().div_(16).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1]).long()
    if not 0 < validation < len(labels):
        raise DataError(f"validation = {validation}: digits has {len(labels)} samples in all")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held, rest = order[:validation], order[validation:]
    return TensorDataset(images[rest], labels[rest]), TensorDataset(images[held], labels[held])


def _digits_table() -> np.ndarray:
    """A digit in each row of float64: 64 pixels from 0 to 16, and which digit it is.

    Read from scikit-learn's file without importing scikit-learn, which takes longer than all else
    that a process does before it trains on digits (1.1 s measured).
    """
    found = find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",")


def _idx_task(model: Callable[[], nn.Module], folder: str) -> Task:
    return Task(
        model=model,
        train=lambda: _idx_samples(Path(folder), "train"),
        validation=lambda: _idx_samples(Path(folder), "t10k"),
        loss=functional.cross_entropy,
        metrics={"accuracy": accuracy},
    )


def _idx_samples(folder: Path, split: str) -> TensorDataset:
    """Images float32 (n, 1, 28, 28), standardised, and labels int64 (n,).

    Raises:
        FileNotFoundError: a file is not there.
        DataError: a file is damaged, or not of 28 x 28 images in ten classes.
    """
    images_path = find_idx(folder, f"{split}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{split}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (_IDX_SIZE, _IDX_SIZE):
        raise DataError(f"{images_path} holds images of {images.shape[1:]} pixels, not (28, 28)")
    if len(images) != len(labels):
        raise DataError(f"{folder} holds {len(images)} {split} images, but {len(labels)} labels")
    if len(labels) and labels.max() >= _CLASSES:
        raise DataError(f"{labels_path} holds the label {labels.max()}; ten classes are 0 to 9")
    return TensorDataset(_standardised(images), torch.from_numpy(labels).long())


def _standardised(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images).unsqueeze(1).float()
    return pixels.div_(255).sub_(_IDX_MEAN).div_(_IDX_STD)
