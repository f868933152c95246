"""The rules that come with partsum, one kind of layer a file; importing this registers them.

The last one registered is asked first: `relative` is a special case of `attention`.
"""

from partsum.shared.width.rules import attention, experts, feedforward, multihead, relative

__all__ = ["attention", "experts", "feedforward", "multihead", "relative"]
