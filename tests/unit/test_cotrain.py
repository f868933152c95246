"""Co-training as a run plans and commits it, without a network: who trains what, from where."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.test_search import (
    CPU,
    TASK,
    close_round,
    config_of,
    deliver,
    opened,
    samples,
)
from tests.unit.test_shared_weights import meet

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import write_clusters
from partsum.coordinator.events import Formed
from partsum.coordinator.gang_desk import GangDesk
from partsum.coordinator.phases import gang_rounds, phase_of, total_rounds
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.registry import Registry
from partsum.coordinator.search_plan import team_cost, team_text
from partsum.coordinator.store import Store
from partsum.coordinator.team_workshop import TeamWorkshop
from partsum.coordinator.terms import assignment, moments_travel, why_moved
from partsum.node.gang import Gang
from partsum.node.meeting import Meeting, own_address
from partsum.node.process import GangError
from partsum.node.trainer import Job, train
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.config import CotrainConfig, GangConfig, RunConfig, parse_config
from partsum.shared.errors import ConfigError, WireError
from partsum.shared.messages import GangPlace, Part, Update
from partsum.shared.tensors import load_tensors

COTRAIN = CotrainConfig(rounds=2, structures=2)
SEARCH = '[parts]\nplanner = "structures"\nrounds = 2\n'


def cotrained(**changes: object) -> RunConfig:
    text = SEARCH + "[cotrain]\nrounds = 2\nstructures = 2\n[handoff]\nenabled = false\n"
    return parse_config(text).model_copy(update=changes)


def test_rounds_of_co_training_follow_those_of_the_search() -> None:
    config = cotrained()
    assert total_rounds(config) == 4
    assert [phase_of(config, round) for round in range(4)] == ["parts"] * 2 + ["cotrain"] * 2
    assert gang_rounds(config) == range(2, 4)
    assert gang_rounds(parse_config("")) == range(4, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cotrain]\nrounds = 1", "cotrain.rounds = 1 needs a search"),
        (SEARCH.replace("2", "0") + "[cotrain]\nrounds = 1", "parts.rounds above 0"),
        (
            SEARCH + "[structures]\ncandidates = 4\n[cotrain]\nrounds = 1\nstructures = 5",
            "cotrain.structures = 5 is more than structures.candidates = 4",
        ),
        (
            SEARCH + '[structures]\ndata = "clusters"\n[cotrain]\nrounds = 1',
            'needs structures.data = "same"',
        ),
        (
            SEARCH + '[cotrain]\nrounds = 1\n[server]\nhost = "0.0.0.0"\nauth = "tokens"',
            "Say gang.trusted = true",
        ),
    ],
)
def test_co_training_that_cannot_be_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(text)
    assert said in str(error.value)


@pytest.mark.parametrize("more", ["[gang]\ntrusted = true", ""])
def test_a_gang_beyond_loopback_is_taken_where_its_network_is_vouched_for(more: str) -> None:
    insecure = "" if more else "insecure = true\n"
    server = f'[server]\nhost = "0.0.0.0"\nauth = "{"tokens" if more else "none"}"\n{insecure}'
    assert parse_config(f"{SEARCH}[cotrain]\nrounds = 1\n{server}{more}").cotrain.rounds == 1


def test_the_dry_run_says_what_members_exchange() -> None:
    config = cotrained()
    cost = team_cost(config, samples=1000, dense_bytes=4_000_000)
    assert (cost.samples, cost.steps, cost.step_bytes) == (500, 8, 4_000_000)
    assert "nodes send each other at most 4 MB a step, 32 MB a round" in team_text(config, cost)


# -- rounds ---------------------------------------------------------------------------------------


def searched(folder: Path) -> tuple[TeamWorkshop, Store]:
    """A search of one round is over; two rounds of co-training follow."""
    config = config_of(rounds=1).model_copy(update={"cotrain": COTRAIN})
    store = Store(folder)
    shop = TeamWorkshop(config, store, Base(TASK, CPU), samples(), samples())
    shop.first_base.write()
    write_clusters(folder / "clusters", [np.arange(48)])
    plan = opened(shop, 0)
    for k in range(len(plan.parts)):
        deliver(shop, plan, k)
    close_round(shop, plan)
    return shop, store


def train_in_step(shop: TeamWorkshop, plan: RoundPlan) -> None:
    """All of a round's parts, each by a thread, over real process groups."""
    paths = shop.cutter.blob_paths(plan)

    def member(gang: Gang) -> Update:
        k = gang.place.rank
        given = replace(assignment(shop.config, plan, k), gang=gang.place)
        assert given.start is not None
        start, out = paths[given.start.digest], shop.update_path(plan.round, k)
        job = Job(given, start, None, torch.arange(48), samples(), out, CPU, gang=gang)
        return train(TASK, job, lambda progress: None, lambda: False).update

    updates = meet([planned.part for planned in plan.parts], member)
    for k, update in enumerate(updates):
        change = shop.inspector.check(shop.update_path(plan.round, k), plan, k)
        shop.store.take_update(f"node-{k}", update, 0.0, change)


def test_the_best_structures_start_from_the_base_and_see_batches_of_their_own(
    tmp_path: Path,
) -> None:
    shop, store = searched(tmp_path)
    with closing(store):
        plan = opened(shop, 1)
        ranked = [one.bits for one in shop.board().ranked()]
        assert [shop.search.bits(planned.part) for planned in plan.parts] == ranked[:2]
        base = load_tensors(store.base_path(plan.base))
        for planned in plan.parts:
            assert planned.start is not None
            start = load_tensors(shop.cutter.blob_paths(plan)[planned.start.digest])
            assert all(torch.equal(tensor, base[name]) for name, tensor in start.items())
        assert len({planned.seed for planned in plan.parts}) == 2
        assert [planned.num_samples for planned in plan.parts] == [24, 24]
        assert [planned.first_sample for planned in plan.parts] == [0, 0]


def test_moments_stay_with_members_from_the_second_round_on() -> None:
    config = config_of(rounds=1).model_copy(update={"cotrain": COTRAIN})
    assert [moments_travel(config, round) for round in range(3)] == [True, False, False]


def test_what_members_hold_becomes_the_base_bit_for_bit(tmp_path: Path) -> None:
    shop, store = searched(tmp_path)
    with closing(store):
        before = load_tensors(store.base_path("base-00001.safetensors"))
        plan = opened(shop, 1)
        train_in_step(shop, plan)
        given = [assignment(shop.config, plan, k).settings for k in range(2)]
        assert [(s.carry_moments, s.keep_moments) for s in given] == [(False, False)] * 2
        updates = [load_tensors(shop.update_path(1, k)) for k in range(2)]
        result = close_round(shop, plan)
        base = load_tensors(store.base_path(result.base))
        for update in updates:
            assert all(torch.equal(base[name], tensor) for name, tensor in update.items())
            assert not all(torch.equal(before[name], tensor) for name, tensor in update.items())
        for name in set(base) - set(updates[0]) - set(updates[1]):
            assert torch.equal(base[name], before[name])
        board = shop.board()
        assert set(board.alive) == {shop.search.bits(planned.part) for planned in plan.parts}
        best = board.ranked()[0]
        assert best.last is not None
        assert best.last.round == 1
        assert store.fact("structure") == list(shop.search.part(best.bits).off)
        assert store.fact("parts") == {}
        following = opened(shop, 2)
        assert [p.part for p in following.parts] == [p.part for p in plan.parts]
        assert [p.holder for p in following.parts] == ["node-0", "node-1"]
        assert [p.first_sample for p in following.parts] == [24, 24]
        assert assignment(shop.config, following, 0).settings.keep_moments


def test_a_structure_without_a_node_keeps_its_own_weights(tmp_path: Path) -> None:
    shop, store = searched(tmp_path)
    with closing(store):
        before = load_tensors(store.base_path("base-00001.safetensors"))
        plan = opened(shop, 1)
        alone = replace(plan, parts=plan.parts[:1])
        train_in_step(shop, alone)
        update = load_tensors(shop.update_path(1, 0))
        result = close_round(shop, plan, missing=(1,))
        base = load_tensors(store.base_path(result.base))
        assert result.missing == (1,)
        assert all(torch.equal(base[name], update.get(name, before[name])) for name in base)


# -- where a gang meets ---------------------------------------------------------------------------


def place(rank: int, seconds: float = 5.0) -> GangPlace:
    return GangPlace("r0-g1", rank, (Part(), Part()), "gloo", "s", seconds)


def test_rank_0_is_where_the_others_come_to_and_says_so() -> None:
    said: list[pb.ControlRequest] = []

    async def meet() -> str:
        meeting = Meeting(lambda: "fd00::1", said.append)
        address = await meeting.address(place(0))
        meeting.opened("r0-g1", 4711)
        return address

    assert asyncio.run(meet()) == ""
    assert said[0].gang_opened == pb.GangOpened(gang="r0-g1", address="[fd00::1]:4711")


def test_the_others_learn_where_before_or_after_they_ask() -> None:
    async def meet(early: bool) -> str:
        meeting = Meeting(lambda: "127.0.0.1", lambda request: None)
        meeting.told("r0-g0", "127.0.0.1:1")  # of one that broke
        if early:
            meeting.told("r0-g1", "127.0.0.1:2")
        asked = asyncio.create_task(meeting.address(place(1)))
        await asyncio.sleep(0)
        meeting.told("r0-g1", "127.0.0.1:2")
        return await asked

    assert [asyncio.run(meet(early)) for early in (True, False)] == ["127.0.0.1:2"] * 2


def test_where_a_gang_meets_is_said_again_to_a_coordinator_that_may_have_missed_it() -> None:
    said: list[pb.ControlRequest] = []

    async def meet() -> None:
        meeting = Meeting(lambda: "127.0.0.1", said.append)
        await meeting.address(place(0))
        meeting.opened("r0-g1", 4711)
        meeting.say_again("r0-g2")
        meeting.say_again("r0-g1")

    asyncio.run(meet())
    assert said == [said[0]] * 2


def test_nobody_meets_again_in_a_gang_that_broke() -> None:
    async def meet(rank: int) -> None:
        meeting = Meeting(lambda: "127.0.0.1", lambda request: None)
        meeting.broke("r0-g1")
        await meeting.address(place(rank))

    for rank in (0, 1):
        with pytest.raises(GangError, match="has broken already"):
            asyncio.run(meet(rank))


def test_an_address_that_is_none_is_refused_where_it_is_said(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        registry = Registry({})
        nodes = dict(enumerate("ab"))
        for name in nodes.values():
            registry.join(name, name, 0.0, 1.0)
        desk = GangDesk(store, registry, GangConfig())
        desk.form(0, Formed(1, (0, 1)), nodes)
        first = registry.get("a")
        assert first is not None
        for address in ("nowhere", "host:port", "127.0.0.1:1\nforged"):
            with pytest.raises(WireError):
                desk.opened(first, pb.GangOpened(gang="r0-g1", address=address), nodes)
        desk.opened(first, pb.GangOpened(gang="r0-g1", address="127.0.0.1:1"), nodes)
        assert desk.gang is not None
        assert desk.gang.address == "127.0.0.1:1"
        assert GangDesk(store, registry, GangConfig()).restore(0) == Formed(1, (0, 1))


def test_moments_are_missed_where_a_gang_goes_on_and_not_where_it_begins(tmp_path: Path) -> None:
    shop, store = searched(tmp_path)
    with closing(store):
        plan = opened(shop, 1)
        assert why_moved(shop.config, plan, 0, "another") == ""
        later = replace(plan, round=2)
        assert "its moments are with" in why_moved(shop.config, later, 0, "another")


def test_a_rank_0_that_never_says_where_is_no_fault_of_the_others() -> None:
    async def meet() -> None:
        await Meeting(lambda: "127.0.0.1", lambda request: None).address(place(1, 0.01))

    with pytest.raises(GangError, match="has not said within"):
        asyncio.run(meet())


def test_a_nodes_own_address_is_the_one_on_the_way_to_the_coordinator() -> None:
    assert own_address("127.0.0.1:50061") == "127.0.0.1"
    with pytest.raises(GangError, match="with --gang-host"):
        own_address("no.such.host.invalid:50061")
