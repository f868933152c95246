"""Random gates in training, on against off: training and validation loss, and the gap between.

    python benchmarks/regularisation.py [--quick] [--json FILE]

Fashion-MNIST, a residual MLP and a small ViT, each trained on the first 4,000 images for long
enough to overfit, with AdamW and a cosine schedule; scores are those of the model in evaluation, on
these images and on the 10,000 test images. One process, one thread, plain PyTorch around the
product's own `regularise`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, wide_console, write_figures

from partsum.shared.messages import Regularisation
from partsum.shared.regularisation import regularise
from partsum.shared.schedule import rate
from partsum.shared.task import Scores, Task, evaluate, gather, walk
from partsum.shared.tasks import image_residual_mlp, image_vit

SAMPLES = 4_000
BATCH = 64
SEEDS = (0, 1, 2)
TASKS: dict[str, tuple[Callable[[], Task], float]] = {
    "residual MLP": (lambda: image_residual_mlp(width=96, hidden=192, layers=6), 20),
    "ViT": (lambda: image_vit(width=32, heads=4, layers=3, patch=7), 20),
}
"""The tasks, and over how many epochs each is trained."""
WAYS = {
    "off": Regularisation(),
    "survival 0.8, linear": Regularisation(survival=0.8),
    "survival 0.5, linear": Regularisation(survival=0.5),
    "gates_on 0.8, 7 splits": Regularisation(gates_on=0.8, splits=7),
}


@dataclass(frozen=True)
class Seen:
    """Scores in evaluation at the end."""

    train: Scores
    validation: Scores


def trained(task: Task, epochs: float, wanted: Regularisation, seed: int, samples: int) -> Seen:
    """One training run."""
    torch.manual_seed(seed)
    model = regularise(task.model(), wanted).train()
    train = task.train()
    assert isinstance(train, TensorDataset)
    few = TensorDataset(*(tensor[:samples] for tensor in train.tensors))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    count = round(samples * epochs)
    for number, indices in enumerate(walk(seed, torch.arange(samples), 0, count, BATCH)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate(number * BATCH / count, 0.01)
        inputs, targets = gather(few, indices)
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(model(inputs), targets))
        optimizer.step()
    model.eval()
    return Seen(scores(model, task, few), scores(model, task, task.validation()))


def scores(model: nn.Module, task: Task, samples: object) -> Scores:
    """Loss and accuracy over a data set."""
    assert isinstance(samples, TensorDataset)
    return evaluate(model, task, samples, torch.device("cpu"))


def row(name: str, way: str, seen: list[Seen]) -> list[str]:
    """A row of the table."""
    gaps = Spread.of([one.validation.loss - one.train.loss for one in seen])
    losses = Spread.of([one.validation.loss for one in seen])
    accuracies = Spread.of([one.validation.accuracy for one in seen])
    train = statistics.fmean(one.train.loss for one in seen)
    return [name, way, f"{train:.3f}", losses.text(3), gaps.text(3), accuracies.text(2, 100)]


def main() -> int:
    """Train, print, write."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "").parse_args()
    torch.set_num_threads(1)
    seeds, samples = (SEEDS[:1], 1_000) if options.quick else (SEEDS, SAMPLES)
    made = Table(title=f"{samples} images", box=None, header_style="dim")
    for column in ("model", "random gates", "train loss", "validation loss", "gap", "accuracy, %"):
        made.add_column(column)
    figures = {}
    for name, (make, epochs) in TASKS.items():
        for way, wanted in WAYS.items():
            seen = [trained(make(), epochs, wanted, seed, samples) for seed in seeds]
            made.add_row(*row(name, way, seen))
            gaps = [one.validation.loss - one.train.loss for one in seen]
            figures[f"{name}, {way}: gap"] = statistics.fmean(gaps)
            figures[f"{name}, {way}: accuracy"] = statistics.fmean(
                one.validation.accuracy for one in seen
            )
    wide_console().print(made)
    if options.json:
        write_figures(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
