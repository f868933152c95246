"""A gang's members, each in a thread of its own, over real process groups on loopback."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from tests.unit.test_trainer import SETTINGS
from torch import Tensor, nn

from partsum.node.gang import Gang, GangBrokeError, interface_of
from partsum.node.model import PartModel, build_part
from partsum.node.optimizer import make_optimizer
from partsum.node.shared_weights import SharedWeights, carriers_of
from partsum.node.step import Stepper
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.messages import Assignment, Blob, GangPlace, Part
from partsum.shared.tasks.residual import ResidualMlp

Result = TypeVar("Result")

DENSE = Part()
NO_FIRST = Part(gates={"blocks.0": False})
NO_SECOND = Part(gates={"blocks.1": False})
NO_BRANCH = Part(gates={"blocks.0": False, "blocks.1": False})


BUILDING = threading.Lock()


def make_model() -> nn.Module:
    return ResidualMlp(6, 8, 12, 2, 3)


def meet(
    parts: Sequence[Part], work: Callable[[Gang], Result], timeout_seconds: float = 20.0
) -> list[Result]:
    """What each member makes of its gang, by rank."""
    port = queue.SimpleQueue[int]()

    def member(rank: int) -> Result:
        place = GangPlace("g1", rank, tuple(parts), "gloo", "secret", timeout_seconds)
        address = "" if rank == 0 else f"127.0.0.1:{port.get(timeout=20)}"
        cpu = torch.device("cpu")

        def opened(number: int) -> None:
            for _ in parts[1:]:
                port.put(number)

        return work(Gang.join(place, "127.0.0.1", address, cpu, opened))

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(member, range(len(parts))))


def member_of(gang: Gang, seed: int = 0) -> tuple[PartModel, SharedWeights]:
    """A structure of the base of that seed."""
    part = gang.place.parts[gang.place.rank]
    with BUILDING:  # torch has one generator, for all threads
        model, base = build_part(make_model, part, 0, None), make_model_at(seed).state_dict()
    model.module.load_state_dict({name: base[name] for name in model.module.state_dict()})
    return model, SharedWeights(gang, model.module, carriers(gang.place.parts))


def carriers(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    return carriers_of(make_model, parts, 0)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_carriers_are_the_members_that_have_a_weight() -> None:
    found = carriers([DENSE, NO_FIRST, NO_SECOND])
    assert {ranks for name, ranks in found.items() if name.startswith("blocks.0")} == {(0, 2)}
    assert {ranks for name, ranks in found.items() if name.startswith("blocks.1")} == {(0, 1)}
    assert {ranks for name, ranks in found.items() if "blocks" not in name} == {(0, 1, 2)}


def test_parts_of_different_units_share_no_tensors() -> None:
    with pytest.raises(WireError, match="keep different units"):
        carriers([DENSE, Part(units={"blocks.0": (0, 1)})])


def test_each_gradient_becomes_the_mean_over_the_members_that_have_its_weight() -> None:
    parts = [DENSE, NO_FIRST, NO_BRANCH]
    inputs = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))

    def work(gang: Gang) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model, shared = member_of(gang)
        model.module(inputs[gang.place.rank]).square().mean().backward()
        own = gradients(model.module)
        shared.average_gradients()
        return own, gradients(model.module)

    seen = meet(parts, work)
    having = carriers(parts)
    for own, averaged in seen:
        for name in own:
            ranks = having[name]
            mean = torch.stack([seen[rank][0][name] for rank in ranks]).sum(0) / len(ranks)
            torch.testing.assert_close(averaged[name], mean)
    for name, ranks in having.items():  # not nearly: the same bits
        assert all(torch.equal(seen[ranks[0]][1][name], seen[r][1][name]) for r in ranks)


def test_a_weight_that_a_members_loss_does_not_depend_on_counts_as_a_gradient_of_zero() -> None:
    def work(gang: Gang) -> Tensor:
        model, shared = member_of(gang)
        if gang.place.rank == 0:
            model.module(torch.ones(2, 6)).sum().backward()
        shared.average_gradients()
        grad = next(model.module.parameters()).grad
        assert grad is not None
        return grad

    alone = build_part(make_model, DENSE, 0, None).module
    alone(torch.ones(2, 6)).sum().backward()
    grad = next(alone.parameters()).grad
    assert grad is not None
    for averaged in meet([DENSE, DENSE], work):
        torch.testing.assert_close(averaged, grad / 2)


def test_gradients_are_clipped_by_the_norm_of_all_members_weights_together() -> None:
    parts = [NO_FIRST, NO_SECOND]

    def work(gang: Gang) -> dict[str, Tensor]:
        model, shared = member_of(gang)
        for parameter in model.module.parameters():
            parameter.grad = torch.ones_like(parameter)
        shared.clip_gradients(2.0)
        return gradients(model.module)

    seen = meet(parts, work)
    union = seen[0] | seen[1]
    norm = torch.cat([grad.flatten() for grad in union.values()]).norm()
    assert set(union) == {name for name, _ in make_model().named_parameters()}
    torch.testing.assert_close(norm, torch.tensor(2.0))


def assignment_of(gang: Gang) -> Assignment:
    place = gang.place
    return Assignment(
        id="r0-p0-g1",
        round=0,
        part_index=place.rank,
        part=place.parts[place.rank],
        seed=place.rank,
        start=None,
        cluster=Blob("0" * 32, 0),
        samples=None,
        first_sample=0,
        num_samples=100,
        progress=(0.0, 1.0),
        settings=replace(SETTINGS, gradient_clip=0.5, warmup=0.0),
        gang=place,
    )


def steps(gang: Gang, model: PartModel, shared: SharedWeights, count: int) -> torch.optim.AdamW:
    a = assignment_of(gang)
    optimizer = make_optimizer(model, a.settings, torch.device("cpu"))
    shared.share_moments(optimizer)
    stepper = Stepper(model.module, optimizer, a, shared)
    draw = torch.Generator().manual_seed(gang.place.rank)
    for done in range(count):
        inputs = torch.randn(4, 6, generator=draw)
        stepper.step(model.module(inputs).square().mean(), done)
    return optimizer


def test_structures_that_step_together_keep_the_same_bits_of_what_they_share() -> None:
    def work(gang: Gang) -> dict[str, Tensor]:
        model, shared = member_of(gang)
        steps(gang, model, shared, 5)
        shared.check()
        return {name: p.detach().clone() for name, p in model.module.named_parameters()}

    parts = [DENSE, NO_FIRST, NO_SECOND]
    seen, start = meet(parts, work), dict(make_model_at(0).named_parameters())
    for name, ranks in carriers(parts).items():
        assert all(torch.equal(seen[ranks[0]][name], seen[rank][name]) for rank in ranks), name
        assert not torch.equal(seen[ranks[0]][name], start[name])


def make_model_at(seed: int) -> nn.Module:
    return build_part(make_model, DENSE, seed, None).module


def test_members_that_hold_different_values_are_told_so() -> None:
    def work(gang: Gang) -> str:
        _, shared = member_of(gang, seed=gang.place.rank)
        with pytest.raises(GangBrokeError, match="different values of the weights that they share"):
            shared.check()
        return "told"

    assert meet([DENSE, DENSE], work) == ["told", "told"]


def test_a_member_without_moments_goes_on_with_those_of_one_that_has_them() -> None:
    parts = [NO_FIRST, DENSE]

    def work(gang: Gang) -> dict[str, Tensor]:
        model, shared = member_of(gang)
        optimizer = steps(gang, model, shared, 3)
        if gang.place.rank == 0:  # it has lost them
            optimizer.state.clear()
        shared.share_moments(optimizer)
        return {
            f"{name}/{key}": value.clone()
            for name, parameter in model.module.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }

    lost, had = meet(parts, work)
    assert lost
    for name, value in lost.items():
        assert torch.equal(value, had[name])
        assert not name.endswith("/step") or value == 3


def test_a_member_that_never_comes_breaks_the_gang_in_words() -> None:
    place = GangPlace("g1", 0, (DENSE, DENSE), "gloo", "secret", 0.5)
    with pytest.raises(GangBrokeError, match="the gang's members could not meet: "):
        Gang.join(place, "127.0.0.1", "", torch.device("cpu"), lambda port: None)


def test_a_member_that_leaves_breaks_the_gang_of_the_others() -> None:
    def work(gang: Gang) -> str:
        if gang.place.rank == 1:
            return "left"
        with pytest.raises(GangBrokeError, match="could not add up tensors"):
            gang.sum(torch.ones(3), (0, 1))
        return "broke"

    assert meet([DENSE, DENSE], work, timeout_seconds=1.0) == ["broke", "left"]


def test_members_of_another_gang_are_not_met() -> None:
    """Each gang has a name of its own in the store, so that one's leftovers confuse no other."""
    port = queue.SimpleQueue[int]()
    place = GangPlace("g1", 0, (DENSE, DENSE), "gloo", "secret", 1.0)
    stranger = replace(place, rank=1, secret="guess")
    cpu = torch.device("cpu")

    def dial() -> None:
        address = f"127.0.0.1:{port.get(timeout=20)}"
        with pytest.raises(GangBrokeError):
            Gang.join(stranger, "127.0.0.1", address, cpu, lambda number: None)

    with ThreadPoolExecutor(1) as threads:
        dialled = threads.submit(dial)
        with pytest.raises(GangBrokeError):
            Gang.join(place, "127.0.0.1", "", cpu, port.put)
        dialled.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_whose_address_is_not_its_own_is_to_blame_itself(rank: int) -> None:
    place = GangPlace("g1", rank, (DENSE, DENSE), "gloo", "secret", 1.0)
    with pytest.raises(PartsumError, match="partsum node --gang-host") as told:
        Gang.join(place, "192.0.2.1", "127.0.0.1:1", torch.device("cpu"), lambda port: None)
    assert not isinstance(told.value, GangBrokeError)


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") == ""
