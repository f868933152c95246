"""What kinds of layers there are to a width rule, and which dimension of their weight is which."""

from __future__ import annotations

from torch import Tensor, nn

from partsum.shared.errors import WidthError


def is_hugging_face_conv1d(module: object) -> bool:
    """Whether it is transformers' Linear with a transposed weight, found without importing it."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_linear(module: object) -> bool:
    """Whether it multiplies by one matrix: a Linear of torch, or Hugging Face's Conv1D."""
    return isinstance(module, nn.Linear) or is_hugging_face_conv1d(module)


def output_dim(module: nn.Module) -> int:
    """Which dimension of the module's weight its outputs are; its inputs are the other of 0 and 1.

    0, as in Linear and Conv layers; 1 in an Embedding, and in Hugging Face's ``Conv1D``, a Linear
    whose weight is (inputs, outputs).
    """
    return 1 if isinstance(module, nn.Embedding) or is_hugging_face_conv1d(module) else 0


def weight_of(module: nn.Module) -> Tensor:
    """The module's weight. Raises WidthError where it has none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise WidthError(f"{type(module).__name__} has no weight that a width group could lie in")
    return weight


def outputs_of(module: nn.Module) -> int:
    """How many numbers a linear layer makes, by its weight's shape."""
    return weight_of(module).shape[output_dim(module)]


def inputs_of(module: nn.Module) -> int:
    """How many numbers a linear layer reads, by its weight's shape."""
    return weight_of(module).shape[1 - output_dim(module)]


def is_norm(module: nn.Module) -> bool:
    """Whether it norms each position over its last dimension: LayerNorm, RMSNorm, and their kin.

    Libraries bring classes of their own (LlamaRMSNorm, T5LayerNorm), so it goes by structure: no
    inner modules, one weight a number, and a name that says so. Batch and group norms are others.
    """
    weight = getattr(module, "weight", None)
    is_other = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 1
        and not is_other
        and not any(True for _ in module.children())
        and "norm" in type(module).__name__.lower()
    )


def child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path below, or None."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def linears(module: nn.Module, paths: tuple[str, ...]) -> list[nn.Module] | None:
    """The linear layers at these paths, or None unless all are there."""
    found = [child(module, path) for path in paths]
    return [m for m in found if m is not None] if all(map(is_linear, found)) else None


def joined(path: str, name: str) -> str:
    """A path below a module's; the whole model's own is empty."""
    return f"{path}.{name}" if path else name
