"""Co-training of the best structures, beside what else their nodes could do with the time.

    python benchmarks/cotrain.py [--quick] [--json FILE] [--models ...] [--seeds ...]

Fashion-MNIST; a residual MLP and a small ViT with six gates each. Four nodes search all 64
structures by successive halving; then they have as much time again as half the search took, and
spend it in turn on: the best structure, on one node or data-parallel on all; the best four by
themselves, and the average of their weights; the best four in a gang, from the winner's weights or
from their average. Beside these the dense base, data-parallel on four nodes or on one, for the time
of all of it. Time is simulated by FLOPs (equal speed, free network); the arithmetic is the
product's, in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, wide_console, write_figures

from partsum.coordinator.cost import part_cost
from partsum.coordinator.merge import AVERAGE, Contribution, Tensors, merge_state
from partsum.coordinator.planner.structures import first_rung, gates_of, rung_size
from partsum.coordinator.search_workshop import first_samples
from partsum.node.shared_weights import carriers_of
from partsum.shared.gates import find_structure
from partsum.shared.part import WHOLE, Part, cut_module, cut_tensors
from partsum.shared.schedule import rate
from partsum.shared.task import Samples, Task, evaluate, gather, walk
from partsum.shared.tasks import image_residual_mlp, image_vit

NODES, KEEP, RUNGS = 4, 4, 4
RANKED_ON = 2_000  # validation samples
BATCH, PEAK, WARMUP = 64, 2e-3, 0.01
State = dict[str, Tensor]
TASKS: dict[str, tuple[Callable[[], Task], int]] = {
    "residual MLP": (lambda: image_residual_mlp(width=128, hidden=256, layers=6), 3_000),
    "ViT": (lambda: image_vit(width=48, heads=4, layers=3, mlp_ratio=2, patch=7), 1_500),
}
"""The tasks, and how many samples a structure sees in a rung."""


@dataclass
class Learner:
    """A structure, its weights and its optimizer."""

    part: Part
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def set_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * rate(min(progress, 1.0), WARMUP)


class Bench:
    """One seed of one task."""

    def __init__(self, task: Task, seed: int, samples: int) -> None:
        self.task, self.seed, self.samples = task, seed, samples
        train, self.validation = task.train(), task.validation()
        assert isinstance(train, TensorDataset)
        self.train = train
        torch.manual_seed(seed)
        self.base = task.model()
        self.start: State = {n: t.clone() for n, t in self.base.state_dict().items()}
        self.widths = find_structure(self.base)
        self.gates = tuple(gate.name for gate in self.widths.gates)
        with torch.device("meta"):
            self.shape = task.model()
        self.costs: dict[Part, int] = {}

    def flops(self, part: Part) -> int:
        """Of training, for a sample."""
        if part not in self.costs:
            cost = part_cost(self.shape, self.widths, part, self.task, self.train, BATCH)
            self.costs[part] = cost.flops_per_sample
        return self.costs[part]

    def learner(self, part: Part, state: Mapping[str, Tensor]) -> Learner:
        model = cut_module(self.base, self.widths, part)
        model.load_state_dict(cut_tensors(state, self.widths, part))
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.99))
        return Learner(part, model.train(), optimizer)

    def batches(self, stream: int, first: int, count: int) -> Iterator[Tensor]:
        everything = torch.arange(len(self.train))
        return walk(self.seed * 1_000_003 + stream, everything, first, count, BATCH)

    def backward(self, learner: Learner, indices: Tensor) -> None:
        inputs, targets = gather(self.train, indices)
        learner.optimizer.zero_grad()
        torch.autograd.backward(self.task.loss(learner.model(inputs), targets))

    def alone(self, learner: Learner, first: int, count: int, way: tuple[float, float]) -> None:
        """Train on so many samples; ``way`` is where on the schedule that begins and ends."""
        done = 0
        for indices in self.batches(0, first, count):
            learner.set_rate(way[0] + (way[1] - way[0]) * done / count)
            self.backward(learner, indices)
            learner.optimizer.step()
            done += len(indices)

    def together(self, team: Sequence[Learner], count: int, way: tuple[float, float]) -> None:
        """Train in step, each on so many samples of its own, as a gang does."""
        carriers = carriers_of(self.task.model, [one.part for one in team], 0)
        named = [dict(one.model.named_parameters()) for one in team]
        done = 0
        for batches in zip(*(self.batches(k, 0, count) for k in range(len(team))), strict=True):
            for learner, indices in zip(team, batches, strict=True):
                learner.set_rate(way[0] + (way[1] - way[0]) * done / count)
                self.backward(learner, indices)
            for name, ranks in carriers.items():
                mean = torch.stack([_gradient(named[r][name]) for r in ranks]).mean(0)
                for r in ranks:
                    named[r][name].grad = mean.clone()
            for learner in team:
                learner.optimizer.step()
            done += len(batches[0])

    def merged(self, team: Sequence[Learner], state: State) -> State:
        """A base with the mean of what each of its tensors is in the structures that have it."""
        shares = [Contribution(one.part, Tensors(one.model.state_dict()), 1.0) for one in team]
        return merge_state(state, shares, self.widths, AVERAGE)

    def accuracy(self, part: Part, state: Mapping[str, Tensor]) -> float:
        return self.score(self.learner(part, state).model)

    def score(self, model: nn.Module, samples: Samples | None = None) -> float:
        model.eval()
        shown = self.validation if samples is None else samples
        found = evaluate(model, self.task, shown, torch.device("cpu")).accuracy
        model.train()
        return found

    # -- the search, and what may follow it -------------------------------------------------------

    def search(self, share: float) -> tuple[list[Learner], float]:
        """The structures of the last rung, the best first, and the FLOPs of each node."""
        rung, spent = [one.bits for one in first_rung(len(self.gates), 64, self.seed)], 0.0
        learners = {bits: self.learner(self.part(bits), self.start) for bits in rung}
        for number in range(RUNGS):
            way = (share * number / RUNGS, share * (number + 1) / RUNGS)
            for bits in rung:
                self.alone(learners[bits], number * self.samples, self.samples, way)
                spent += self.samples * self.flops(learners[bits].part) / NODES
            few = first_samples(self.validation, RANKED_ON)
            rung.sort(key=lambda bits: -self.score(learners[bits].model, few))
            if number + 1 < RUNGS:
                rung = rung[: rung_size(64, number + 1, 2.0, KEEP)]
        return [learners[bits] for bits in rung], spent

    def part(self, bits: str) -> Part:
        return Part(gates=gates_of(bits, self.gates))

    def copies(self, learners: Sequence[Learner], moments: bool = True) -> list[Learner]:
        """The same once more, to go on from."""
        made = []
        for one in learners:
            copy = self.learner(one.part, self.start | one.model.state_dict())
            if moments:
                copy.optimizer.load_state_dict(one.optimizer.state_dict())
            made.append(copy)
        return made

    def methods(self) -> dict[str, float]:
        """Accuracies on validation data, by what was done."""
        share = 2 / 3
        ranked, spent = self.search(share)
        best, team = ranked[0], ranked[:KEEP]
        more = spent * (1 - share) / share  # FLOPs of each node
        seen, way = RUNGS * self.samples, (share, 1.0)
        counts = {one.part: int(more / self.flops(one.part)) for one in team}
        slowest = min(counts.values())
        average = self.merged(team, self.start)
        found = {
            "search's best": self.score(best.model),
            "average of the four, as found": self.accuracy(best.part, average),
        }
        apart = self.copies(team)
        for one in apart:
            self.alone(one, seen, counts[one.part], way)
        found["best, trained on alone"] = self.score(apart[0].model)
        found["best of the four, trained on alone"] = max(self.score(one.model) for one in apart)
        found["average of the four, trained on alone"] = self.accuracy(
            best.part, self.merged(apart, self.start)
        )
        replicas = self.copies([best] * NODES)
        self.together(replicas, counts[best.part], way)
        found["best, data-parallel on four"] = self.score(replicas[0].model)
        for name, state in (
            ("co-trained from the best", self.merged([best], self.start)),
            ("co-trained from the average", average),
        ):
            gang = [self.learner(one.part, state) for one in team]
            self.together(gang, slowest, way)
            base = self.merged(gang, state)
            found[f"{name}: its best structure"] = max(self.score(one.model) for one in gang)
            found[f"{name}: dense"] = self.accuracy(WHOLE, base)
        whole = int((spent + more) / self.flops(WHOLE))
        dense = [self.learner(WHOLE, self.start) for _ in range(NODES)]
        self.together(dense, whole, (0.0, 1.0))
        found["dense base, data-parallel on four"] = self.score(dense[0].model)
        single = self.learner(WHOLE, self.start)
        self.alone(single, 0, whole, (0.0, 1.0))
        found["dense base, on one node"] = self.score(single.model)
        return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def main() -> int:
    """Train, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    flags.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = flags.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for model in options.models:
        make, samples = TASKS[model]
        seeds = options.seeds[:1] if options.quick else options.seeds
        runs = []
        for seed in seeds:
            runs.append(Bench(make(), seed, samples // 20 if options.quick else samples).methods())
            print(model, seed, {k: round(100 * v, 2) for k, v in runs[-1].items()}, flush=True)
        made = Table(title=f"{model}, {len(seeds)} seed(s)", box=None, header_style="dim")
        made.add_column("what the nodes did")
        made.add_column("accuracy, %")
        for name in runs[0]:
            spread = Spread.of([run[name] for run in runs])
            made.add_row(name, spread.text(2, 100))
            figures[f"{model}: {name}"] = sum(run[name] for run in runs) / len(runs)
        wide_console().print(made)
    if options.json:
        write_figures(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
