"""A hand-off over nodes as rounds: what the config asks, and which steps each takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partsum.coordinator.handoff_plan import rounds_config, steps_of
from partsum.coordinator.phases import gang_rounds, handoff_rounds, phase_of, total_rounds
from partsum.coordinator.records import PlannedPart, RoundPlan
from partsum.coordinator.terms import assignment, round_settings, why_anew
from partsum.shared import wire
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import ConfigError
from partsum.shared.messages import Blob, Part

BLOB = Blob("0" * 32, 8)


def config_of(section: str, more: str = "") -> RunConfig:
    return parse_config(f'[handoff]\nover = "nodes"\nbatch_size = 10\n{section}\n{more}')


def plan_of(config: RunConfig, round: int) -> RoundPlan:
    steps = steps_of(config, round, 1000, 4, 0.25, [Part({"g": (0, 1)})])
    part = PlannedPart(Part(), 7, BLOB, BLOB, 0, steps.count * steps.batch, f"node-{round}")
    return RoundPlan(round, "base", (part, part), (0.25, 0.5), handoff=steps)


def test_the_hand_offs_rounds_follow_those_of_the_parts() -> None:
    config = config_of("rounds = 3")
    assert handoff_rounds(config) == range(4, 7)
    assert total_rounds(config) == 7
    assert [phase_of(config, round) for round in (0, 3, 4, 6)] == ["parts"] * 2 + ["handoff"] * 2
    assert not gang_rounds(config)
    together = config_of('how = "together"\nrounds = 3')
    assert gang_rounds(together) == range(4, 7)
    assert round_settings(together).gangs == range(4, 7)
    assert total_rounds(parse_config("")) == 4


@pytest.mark.parametrize("how", ["apart", "together"])
def test_the_rounds_share_all_steps_and_each_has_at_least_one(how: str) -> None:
    config = config_of(f'how = "{how}"\nrounds = 3\nepochs = 1.0')
    steps = [steps_of(config, round, 1000, 4, 0.0) for round in handoff_rounds(config)]
    assert [(one.first, one.count) for one in steps] == [(0, 33), (33, 33), (66, 34)]
    assert steps[0].batch == (2 if how == "apart" else 10)
    few = [steps_of(config, round, 1, 4, 0.0) for round in handoff_rounds(config)]
    assert [(one.first, one.count, one.total) for one in few] == [(0, 1, 3), (1, 1, 3), (2, 1, 3)]


def test_only_nodes_apart_take_outer_steps_and_send_what_can_be_encoded() -> None:
    more = '[wire]\nup = "int8"\n[outer]\noptimizer = "average"'
    apart = rounds_config(config_of("outer_momentum = 0.5", more), ["gate"])
    assert (apart.outer.optimizer, apart.outer.learning_rate, apart.outer.momentum) == (
        "nesterov",
        0.7,
        0.5,
    )
    assert (apart.wire.up, apart.wire.down) == ("int8", "float32")
    assert apart.parts.planner == "full"
    assert apart.gates.off == ["gate"]
    together = rounds_config(config_of('how = "together"', more), [])
    assert (together.outer.optimizer, together.wire.up) == ("average", "float32")


def test_an_assignment_of_the_hand_off_comes_through_the_wire_as_it_was() -> None:
    config = config_of('how = "together"\ndata = "clusters"\nzero_stage = 3\noffload = false')
    given = assignment(rounds_config(config, []), plan_of(config, 5), 1)
    assert given.zero is not None
    assert given.zero.own_data
    assert given.zero.norm_parts == (Part({"g": (0, 1)}),)
    assert given.settings.batch_size == 10
    assert wire.assignment_from_wire(wire.assignment_to_wire(given)) == given


def test_a_gang_that_is_not_the_last_one_begins_without_its_moments_and_it_is_said() -> None:
    config = config_of('how = "together"')
    first, later = plan_of(config, 4), plan_of(config, 5)
    assert why_anew(first, (0, 1), {0: "x", 1: "y"}) == ""
    assert why_anew(later, (0, 1), {0: "node-5", 1: "node-5"}) == ""
    assert "begin anew" in why_anew(later, (0,), {0: "node-5"})
    parts = tuple(replace(part, holder="") for part in later.parts)
    assert "begin anew" in why_anew(replace(later, parts=parts), (0,), {0: "node-5"})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('how = "pipeline"', "needs handoff.zero_stage = 1, not 2"),
        ('how = "pipeline"\nzero_stage = 1\nmicro_batches = 3', "does not split into"),
        ('how = "pipeline"\nzero_stage = 1\nprecision = "bfloat16"', 'precision = "float32"'),
        ('how = "together"\nouter_momentum = 0.5', 'means nothing without over = "nodes" and how'),
        ('how = "together"\n[server]\nhost = "10.0.0.1"\nauth = "tokens"', "gang.trusted = true"),
        ("local_world_size = 2", 'means nothing without over = "host"'),
        ('deepspeed_config = "mine.json"', "does not go with handoff.deepspeed_config"),
        ("[parts]\ncount = 11", "at least parts.count = 11"),
    ],
)
def test_what_nodes_could_not_do_is_refused_in_words(section: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(section)


def test_keys_for_nodes_mean_nothing_to_a_hand_off_on_the_host() -> None:
    with pytest.raises(ConfigError, match=r"rounds = 7 means nothing without over = .nodes."):
        parse_config("[handoff]\nrounds = 7")
