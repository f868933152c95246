"""run.toml: what is wrong is said in words, all at once, with the key and the value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from partsum.shared.config import RunConfig, Section, load_config, parse_config
from partsum.shared.errors import ConfigError
from partsum.shared.messages import TrainSettings


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "mine.toml")
    return str(caught.value)


def sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


def test_an_empty_file_is_a_config_of_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert load_config(path) == RunConfig()


@pytest.mark.parametrize("section", list(sections(RunConfig)), ids=lambda section: section.__name__)
def test_every_field_of_every_section_says_what_it_does(section: type[Section]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            assert inner.__doc__, name
        else:
            assert field.description, f"{section.__name__}.{name}"


def test_training_settings_on_the_wire_are_named_as_in_the_config() -> None:
    known = {*RunConfig().training.__class__.model_fields, "aggregate", "deterministic"} | {
        "carry_moments",
        "keep_moments",
        "encoding",
        "regularisation",
    }
    assert {field.name for field in dataclasses.fields(TrainSettings)} <= known


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().parts.count = 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede = 1", "sede: unknown key; did you mean 'seed'?"),
        ("[sever]\nport = 1", "sever: unknown key; did you mean 'server'?"),
        ("[parts]\ncuont = 3", "parts.cuont: unknown key; did you mean 'count'?"),
        ("[handoff]\nzero = 2", "handoff.zero: unknown key; did you mean 'zero_stage'?"),
        ("[data]\nxyzzy = 2", "data.xyzzy: unknown key; known here: clusters, label_alpha"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(text: str, said: str) -> None:
    assert said in complaint(text)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed = 'x'", "seed:", "'x'"),
        ("[parts]\ncount = 0", "parts.count:", "0"),
        ("[parts]\ncount = 2.5", "parts.count:", "2.5"),
        ("[parts]\ncount = true", "parts.count:", "True"),
        ("[parts]\nmode = 'blocks'", "parts.mode:", "'blocks'"),
        ("[parts]\nfractions = [0.5, 2]", "parts.fractions:", "2"),
        ("[training]\nbetas = [0.9]", "training.betas:", "0.9"),
        ("[training]\nbetas = [0.9, 1.5]", "training.betas:", "1.5"),
        ("[training]\nparts_share = 3", "training.parts_share:", "3"),
        ("[training]\nlearning_rate = nan", "training.learning_rate:", "nan"),
        ("[training]\nlearning_rate = inf", "training.learning_rate:", "inf"),
        ("[handoff]\nepochs = -inf", "handoff.epochs:", "-inf"),
        ("[server]\nport = 99999", "server.port:", "99999"),
        ("[task.options]\na = [1.5]", "task.options.a:", "1.5"),
        ("name = '../x'", "name:", "'../x'"),
        ("training = 3", "training:", "3"),
        ("parts = [1]", "parts:", "[1]"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(text: str, key: str, value: str) -> None:
    message = complaint(text)
    assert f"\n  {key}" in message
    assert value in message
    assert "constrained" not in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = complaint("sede = 1\n[parts]\ncount = 'many'\n[server]\nhots = 'x'")
    assert message.startswith("mine.toml cannot be used:")
    assert "sede" in message
    assert "parts.count" in message
    assert "server.hots" in message


def test_fractions_must_be_one_for_each_part_and_add_up_to_one() -> None:
    assert "3 entries, but count is 4" in complaint("[parts]\nfractions = [0.25, 0.25, 0.5]")
    assert "add up to 0.9" in complaint("[parts]\ncount = 2\nfractions = [0.5, 0.4]")
    config = parse_config("[parts]\ncount = 3\nfractions = [0.2, 0.3, 0.5]")
    assert config.parts.fractions == [0.2, 0.3, 0.5]


def test_gradients_are_refused_in_mode_block_and_taken_where_parts_share_parameters() -> None:
    assert 'mode = "residual"' in complaint("[parts]\naggregate = 'gradients'")
    parse_config("[parts]\naggregate = 'gradients'\nmode = 'residual'")
    parse_config("[parts]\naggregate = 'gradients'\nplanner = 'full'")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[parts]\nmode = 'residual'", "a part is cut anew from the base each round"),
        ("[parts]\nplanner = 'full'\naggregate = 'gradients'", "nodes do not step"),
        ("proximal = 0.1\n[parts]\nplanner = 'full'", "does not go with training.proximal"),
        ("[parts]\nplanner = 'full'", "needs deterministic = false here"),
        ("[wire]\nup = 'int8'", "needs deterministic = false here"),
    ],
)
def test_training_ahead_is_refused_where_it_would_be_in_vain_or_break_a_promise(
    text: str, why: str
) -> None:
    assert why in complaint(f"[training]\nahead = true\n{text}")


def test_training_ahead_is_taken_where_the_next_assignment_can_be_known() -> None:
    assert parse_config("[training]\nahead = true").training.ahead
    free = "deterministic = false\n[training]\nahead = true\n"
    assert parse_config(free + "[parts]\nplanner = 'full'").training.ahead
    assert parse_config(free + "[wire]\nup = 'int8'").training.ahead


def test_a_host_that_others_can_reach_must_be_asked_for_in_so_many_words() -> None:
    message = complaint("[server]\nhost = '0.0.0.0'")
    assert "'0.0.0.0'" in message
    assert "insecure = true" in message
    assert parse_config("[server]\nhost = '0.0.0.0'\ninsecure = true").server.insecure


def test_a_run_with_nothing_to_do_is_refused() -> None:
    assert "nothing to do" in complaint("[parts]\nrounds = 0\n[handoff]\nenabled = false")


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*none.toml"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path / "latin.toml")
    assert "mine.toml is not valid TOML" in complaint("seed = ")


@pytest.mark.parametrize(
    ("rule", "count", "hostile", "least"),
    [("trimmed_mean", 4, 2, 5), ("krum", 4, 1, 5), ("multi_krum", 6, 2, 7)],
)
def test_a_robust_rule_needs_enough_parts_to_hold(
    rule: str, count: int, hostile: int, least: int
) -> None:
    def text(count: int) -> str:
        merge = f"[merge]\nrule = '{rule}'\nhostile = {hostile}"
        return f"{merge}\n[parts]\nplanner = 'full'\ncount = {count}"

    assert f"needs at least {least} parts" in complaint(text(count))
    assert parse_config(text(least)).merge.hostile == hostile


def test_an_allow_list_that_cannot_be_kept_or_lets_nobody_in_is_refused() -> None:
    assert "needs auth" in complaint("[server]\nallow = ['a']")
    assert "server.allow" in complaint("[server]\nauth = 'tokens'\nallow = []")
    assert parse_config("[server]\nauth = 'tokens'\nallow = ['a']").server.allow == ["a"]


def test_robust_merging_is_refused_where_each_weight_has_one_source() -> None:
    message = complaint("merge = { rule = 'median' }")
    assert "needs parts that overlap" in message
    assert 'parts.planner = "full"' in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("outer = { optimizer = 'nesterov' }", 'outer.optimizer = "nesterov"'),
        ("outer = { learning_rate = 1.5 }", "outer.learning_rate = 1.5"),
        ("outer = { layer_scaling = [0.5, 1.0] }", "outer.layer_scaling = [0.5, 1.0]"),
        ("training = { proximal = 0.1 }", "training.proximal = 0.1"),
    ],
)
def test_what_needs_a_shared_base_is_refused_where_there_is_none(text: str, key: str) -> None:
    message = complaint(text)
    assert f"{key} needs parts that" in message
    assert "goes on from its own last weights" in message
    for parts in ("planner = 'full'", "mode = 'residual'"):
        parse_config(f"{text}\nparts = {{ {parts} }}")
        message = complaint(f"{text}\nparts = {{ {parts}, aggregate = 'gradients' }}")
        assert f'{key} needs parts.aggregate = "weights"' in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", 'needs parts.mode = "residual", not "block"'),
        ("mode = 'copies'", 'needs parts.mode = "residual", not "copies"'),
        ("mode = 'residual'\naggregate = 'gradients'", 'needs parts.aggregate = "weights"'),
        ("mode = 'residual'\ncount = 1", "needs parts.count above 1"),
        ("mode = 'residual'\nrounds = 0", "needs parts.rounds above 0"),
        ("mode = 'residual'\n[relevance]\nepochs = 0", "needs relevance.epochs above 0"),
    ],
)
def test_ranking_units_is_refused_where_it_is_for_nothing(text: str, why: str) -> None:
    assert why in complaint(f"[parts]\nplanner = 'relevance'\n{text}")


def test_a_ranking_that_nobody_looks_at_is_refused() -> None:
    said = complaint("[parts]\nmode = 'residual'\n[relevance]\nshared = 0.2")
    assert 'needs parts.planner = "relevance", not "complement"' in said
    text = "[parts]\nplanner = 'relevance'\nmode = 'residual'\n[relevance]\nshared = 0.2"
    assert parse_config(text).parts.is_residual


def test_an_outer_optimizer_takes_its_own_keys_and_no_other() -> None:
    full = "parts = { planner = 'full' }\n"
    adam = parse_config(
        f"{full}outer = {{ optimizer = 'adam', betas = [0.8, 0.9], epsilon = 0.1 }}"
    )
    assert adam.outer.betas == (0.8, 0.9)
    message = complaint(f"{full}outer = {{ optimizer = 'yogi', momentum = 0.5 }}")
    assert 'momentum means nothing to optimizer = "yogi"' in message
    assert "takes learning_rate, betas, epsilon" in message
    assert "which takes learning_rate;" in complaint(f"{full}outer = {{ momentum = 0.5 }}")
    assert parse_config(f"{full}outer = {{ learning_rate = 0.5 }}").outer.learning_rate == 0.5
    wrong = complaint(f"{full}outer = {{ optimizer = 'adam', betas = [0.9, 1.5], epsilon = 0 }}")
    assert "outer.betas: Input should be less than 1 (got 1.5)" in wrong
    assert "outer.epsilon" in wrong


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        ("planner = 'full'|mode = 'residual'", "a slice comes from one node alone"),
        ("enabled = false|enabled = true", "trains on all data without any noise"),
        ("rule = 'mean'|rule = 'median'", "mean of clipped updates"),
        ("delta = 1e-5|secure_aggregation = true", "so it has to see it"),
    ],
)
def test_differential_privacy_is_refused_where_it_would_not_hold(instead: str, reason: str) -> None:
    text = (
        "parts = { planner = 'full' }\nhandoff = { enabled = false }\nmerge = { rule = 'mean' }\n"
        "privacy = { noise_multiplier = 1.0, delta = 1e-5 }"
    )
    assert parse_config(text).privacy.noise_multiplier == 1.0
    before, after = instead.split("|")
    message = complaint(text.replace(before, after))
    assert "privacy.noise_multiplier" in message
    assert reason in message


def test_a_second_copy_before_the_usual_time_is_refused_in_words() -> None:
    assert parse_config("[rounds]\nbackup_after = 0").rounds.backup_after == 0
    with pytest.raises(ConfigError, match="sooner than usual"):
        parse_config("[rounds]\nbackup_after = 0.5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[start]\nnoise = 0.1\ngrow = 'widen'", "mean nothing without models"),
        ("[regularisation]\nschedule = 'constant'", "means nothing while survival is 1"),
    ],
)
def test_keys_that_nothing_would_look_at_are_refused(text: str, said: str) -> None:
    assert said in complaint(text)
