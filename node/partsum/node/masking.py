"""Masks on an update's file, tensor by tensor, in the worker: it has torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partsum.shared.errors import PartsumError
from partsum.shared.masks import Mask, apply_masks, to_words
from partsum.shared.messages import Blob, Update
from partsum.shared.secure import Masking
from partsum.shared.tensors import TensorFile, TensorWriter


def mask_update(
    update: Update, path: Path, masking: Masking, masks: Sequence[Mask], output: Path
) -> Update:
    """Write the update in ``path`` to ``output`` with the masks on; returns it as it is then.

    Every tensor becomes 64-bit integers: its values times ``masking.share`` in fixed point, plus
    the masks, modulo 2^64. Raises PartsumError with the tensor's name where a value does not fit.
    """
    with TensorFile(path) as file:
        shapes = {name: (torch.int64, info.shape) for name, info in file.tensors.items()}
        writer = TensorWriter(output, shapes)
        try:
            for number, name in enumerate(writer.order):
                words = _masked(name, file.read(name), masking.share, masks, number)
                writer.write(name, words.view(shapes[name][1]))
            digest = writer.commit(durable=False)
        except BaseException:
            writer.abandon()
            raise
    blob = Blob(digest, output.stat().st_size)
    # An encoded update would travel in place of the masked one.
    return replace(update, blob=blob, session=masking.session, encoded=None, encoding="float32")


def _masked(name: str, tensor: Tensor, share: float, masks: Sequence[Mask], number: int) -> Tensor:
    try:
        words = to_words(tensor.to(torch.float64).reshape(-1).numpy(), share)
    except PartsumError as error:
        raise PartsumError(f"tensor {name!r} cannot be masked: {error}") from error
    return torch.from_numpy(apply_masks(words, masks, number).view(np.int64))
