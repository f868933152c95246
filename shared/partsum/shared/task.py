"""The task: what the user brings, and how it is found, checked and fed in batches."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from partsum.shared.errors import DataError, PartsumError, TaskError
from partsum.shared.messages import TaskSpec

_NAME = re.compile(r"[^\W\d_]\w*(\.[^\W\d_]\w*)*:[^\W\d_]\w*")

Samples = Dataset[Any]
"""A map-style data set of (input, target) pairs; a TensorDataset of two is the fast case."""


@dataclass(frozen=True)
class Task:
    """A model to train and the data to train it on.

    ``loss(outputs, targets)`` is a batch's mean, 0-dim. Each metric is likewise a mean over the
    batch; the first one is the run's headline and is shown as its accuracy. ``train`` and
    ``validation`` may raise FileNotFoundError where this machine has no copy of the data.
    """

    model: Callable[[], nn.Module]
    train: Callable[[], Samples]
    validation: Callable[[], Samples]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    features: Callable[[Samples], np.ndarray] | None = None
    """(samples) -> float array (n, f) that k-means clusters by."""
    keys: Callable[[Samples], np.ndarray] | None = None
    """(samples) -> int array (n,): each sample's natural cluster (a speaker, a site)."""


def load_task(spec: TaskSpec) -> Task:
    """Import ``package.module:function`` and call it with the spec's options.

    A node is told the name and the options by its coordinator, so not everything that can be
    imported may be called: only a function that is declared to return a Task (``-> Task``), and
    nothing of Python's own library is imported for it.

    Raises:
        TaskError: the path does not resolve, names no task, the options do not fit, or no Task
            comes back.
    """
    function = _find(spec.name)
    try:
        inspect.signature(function).bind(**spec.options)
    except TypeError as error:
        raise TaskError(
            f"task {spec.name} does not take these options: {error}. "
            f"It is {function.__name__}{inspect.signature(function)}"
        ) from error
    try:
        task = function(**spec.options)
    except PartsumError:
        raise
    except Exception as error:
        raise TaskError(f"task {spec.name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"task {spec.name} returned {type(task).__name__}; it must return a "
            "partsum.shared.task.Task"
        )
    return task


def _find(name: str) -> Callable[..., object]:
    module_name, _, function_name = name.partition(":")
    if not _NAME.fullmatch(name):
        raise TaskError(
            f"task name {name[:80]!r} is not of the form package.module:function, with names that "
            "do not begin with an underscore"
        )
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise TaskError(
            f"task {name}: {module_name.partition('.')[0]} is a module of Python's own library, "
            "which has no tasks; give your module another name"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a task's module may fail in any way on import
        raise TaskError(
            f"cannot import the task's module {module_name!r}: "
            f"{type(error).__name__}: {error}. It must be installed, or be importable from where "
            "the command was started, on the coordinator and every node"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        offered = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise TaskError(
            f"module {module_name} has no function {function_name!r}; it has "
            f"{', '.join(sorted(offered)) or 'none'}"
        )
    if not _returns_task(function):
        raise TaskError(
            f"{name} is not declared as a task, so it is not called; write it as "
            f"`def {function_name}(...) -> Task:`, with Task from partsum.shared.task"
        )
    return cast(Callable[..., object], function)


def _returns_task(function: Callable[..., object]) -> bool:
    """Whether it is a function whose annotation says that it returns a Task."""
    if not inspect.isroutine(function):
        return False  # a class: to call it is to make one
    try:
        returned = inspect.signature(function).return_annotation
    except (TypeError, ValueError):  # of C, without a signature
        return False
    if isinstance(returned, str):  # from __future__ import annotations
        return returned.strip("'\"").rpartition(".")[2] == Task.__name__
    return returned is Task


def task_digest(spec: TaskSpec) -> str:
    """A digest of the task's name, options and source, so that two hosts can compare theirs."""
    function = _find(spec.name)
    module = sys.modules[spec.name.partition(":")[0]]
    try:
        source = inspect.getsource(module)
    except OSError:
        source = repr(function)
    version = metadata.version("partsum")
    text = json.dumps([spec.name, dict(spec.options), source, version], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def num_samples(samples: Samples) -> int:
    """How many samples there are."""
    return len(cast(Sized, samples))


def gather(samples: Samples, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The samples at ``indices`` (int64, 1-D) as one batch of inputs and targets."""
    if isinstance(samples, TensorDataset):
        inputs, targets = samples.tensors
        return inputs[indices], targets[indices]
    inputs, targets = default_collate([samples[int(i)] for i in indices])
    return inputs, targets


def data_digest(samples: Samples) -> str:
    """A digest of a data set, equal on every host that has the same one.

    All of a TensorDataset is hashed; of any other, its length and 64 samples spread over it.
    """
    digest = xxhash.xxh3_128(str(num_samples(samples)).encode())
    if isinstance(samples, TensorDataset):
        tensors = samples.tensors
    else:
        spread = torch.linspace(0, num_samples(samples) - 1, 64, dtype=torch.float64).long()
        tensors = gather(samples, spread)
    for tensor in tensors:
        flat = tensor.detach().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_samples(make: Callable[[], Samples], what: str) -> Samples:
    """Call a task's data function; a missing file is a DataError that says which."""
    try:
        samples = make()
    except FileNotFoundError as error:
        raise DataError(f"the {what} data is not on this machine: {error}") from error
    if not isinstance(samples, Sized):
        raise DataError(f"the {what} data set has no length; partsum needs a map-style one")
    if num_samples(samples) == 0:
        raise DataError(f"the {what} data set is empty")
    return samples


@dataclass(frozen=True)
class Scores:
    """What evaluation found: the mean loss and the headline metric over a data set."""

    loss: float
    accuracy: float


def evaluate(
    outputs: Callable[[Tensor], Tensor],
    task: Task,
    samples: Samples,
    device: torch.device,
    batch_size: int = 512,
) -> Scores:
    """Mean loss and headline metric of a model (any inputs -> outputs) over a data set.

    Both are nan where the task's loss or metric fails over outputs that are not finite, as many do:
    the model has diverged, and that is no error.
    """
    metric = next(iter(task.metrics.values()), None)
    total = num_samples(samples)
    loss_sum = metric_sum = 0.0
    with torch.no_grad():
        for indices in torch.split(torch.arange(total), batch_size):
            inputs, targets = (t.to(device) for t in gather(samples, indices))
            predicted = outputs(inputs)
            try:
                loss_sum += float(task.loss(predicted, targets)) * len(indices)
                if metric is not None:
                    metric_sum += float(metric(predicted, targets)) * len(indices)
            except Exception:
                if bool(torch.isfinite(predicted).all()):
                    raise
                return Scores(float("nan"), float("nan"))
    return Scores(loss_sum / total, metric_sum / total if metric else float("nan"))


def walk(seed: int, cluster: Tensor, first: int, count: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of an endless shuffled walk over a cluster, from its ``first``-th sample on.

    Each pass is a new permutation, drawn from (seed, pass), so a walk cut anywhere goes on where
    it was. Yields int64 index tensors; the last may be shorter than ``batch_size``.
    """
    size = len(cluster)
    position = first
    order = torch.empty(0, dtype=torch.int64)
    order_pass = -1
    while position < first + count:
        wanted = min(batch_size, first + count - position)
        picked = []
        while wanted:
            this_pass, offset = divmod(position, size)
            if this_pass != order_pass:
                generator = torch.Generator().manual_seed((seed * 1_000_003 + this_pass) % 2**63)
                order, order_pass = torch.randperm(size, generator=generator), this_pass
            taken = order[offset : offset + wanted]
            picked.append(cluster[taken])
            position += len(taken)
            wanted -= len(taken)
        yield torch.cat(picked)
