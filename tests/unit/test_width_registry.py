"""Rules that users add, and units that own some of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_state
from partsum.shared.errors import WidthError
from partsum.shared.part import Part, cut_module, cut_tensors, index_map
from partsum.shared.width import (
    Axis,
    LeftOut,
    Slot,
    WidthGroup,
    Widths,
    check_widths,
    find_widths,
    register,
    register_whole,
    registry,
    widths_by_rules,
)


@pytest.fixture(autouse=True)
def rules_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_rules", list(registry._rules))
    monkeypatch.setattr(registry, "_whole_rules", list(registry._whole_rules))


# -- rules that are added ------------------------------------------------------------------------


class Mixer(nn.Module):
    """A branch whose layers have names that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.gather = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.gather(self.spread(stream).relu())  # type: ignore[no-any-return]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixer, self.fc1, self.fc2 = (
            nn.Linear(4, 6),
            Mixer(),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.mixer(self.stem(inputs))
        return self.head(stream + self.fc2(self.fc1(stream).relu()))  # type: ignore[no-any-return]


def mixer_rule(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
    assert isinstance(module, Mixer)
    axis = Axis(model, f"{path}.spread", module.spread.out_features, "hidden")
    yield axis.made_by(f"{path}.spread").read_by(f"{path}.gather").done()


def test_a_rule_for_a_kind_of_module_takes_a_few_lines() -> None:
    refused = find_widths(Mixed())
    assert "no rule knows the output: mixer.spread" in refused.block_refusal
    register(Mixer)(mixer_rule)
    widths = find_widths(Mixed())
    assert [(g.name, g.units) for g in widths.groups] == [
        ("stream", 6),
        ("mixer.spread", 12),
        ("hidden", 8),
    ]
    assert widths.readouts == ("head.weight",)
    assert widths.block_refusal == ""


def test_the_newest_rule_is_asked_first_and_what_it_claims_is_claimed() -> None:
    @register(lambda module: hasattr(module, "fc1"))
    def pairs(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
        axis = Axis(model, "pairs", 4, "hidden").made_by("fc1", block=2)
        yield axis.read_by("fc2", block=2).done()

    names = {group.name: group.units for group in find_widths(Mixed()).groups}
    assert names["pairs"] == 4
    assert "hidden" not in names


def test_a_rule_may_say_that_a_tensor_stays_whole() -> None:
    @register(lambda module: hasattr(module, "fc1"))
    def never(model: nn.Module, path: str, module: nn.Module) -> Iterable[LeftOut]:
        return [LeftOut("fc1.weight", "it is dear to me")]

    register(Mixer)(mixer_rule)
    widths = find_widths(Mixed())
    assert [group.name for group in widths.groups] == ["mixer.spread"]
    assert widths.block_refusal == "fc1.weight stays whole: it is dear to me"


def test_a_model_may_start_from_what_the_rules_find() -> None:
    class Own(Mixed):
        def width_groups(self) -> Widths:
            found = widths_by_rules(self)
            return Widths((*found.groups, *mixer_rule(self, "mixer", self.mixer)))

    assert [group.name for group in find_widths(Own()).groups] == ["hidden", "mixer.spread"]


def test_a_rule_for_whole_models_is_asked_before_those_for_modules() -> None:
    expected = Widths((next(iter(mixer_rule(Mixed(), "mixer", Mixer()))),))

    @register_whole
    def mixed(model: nn.Module) -> Widths | None:
        return expected if isinstance(model, Mixed) else None

    assert find_widths(Mixed()) == expected
    assert find_widths(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))).groups[0].name == "0"


# -- units that own some of a dimension ----------------------------------------------------------


def latent() -> nn.Sequential:
    """A layer of 2 shared rows, then 3 units of 2 rows; and of 1 row each after those."""
    return nn.Sequential(nn.Linear(4, 11), nn.Linear(11, 5))


def latent_widths(model: nn.Module) -> Widths:
    axis = Axis(model, "units", 3, "hidden").made_by("0", 2, (2,)).made_by("0", 1, (8,))
    return Widths((axis.read_by("1", 2, (2,)).read_by("1", 1, (8,)).done(),))


def test_units_may_have_several_slots_in_one_dimension_and_leave_some_of_it_whole() -> None:
    model = latent()
    widths = latent_widths(model)
    check_widths(model, widths)
    assert Slot("0.weight", 0, 2, (2,), size=11) in widths.groups[0].slots
    kept = index_map(widths, Part({"units": (0, 2)}))
    assert kept["0.weight"][0].tolist() == [0, 1, 2, 3, 6, 7, 8, 10]
    assert kept["1.weight"][1].tolist() == [0, 1, 2, 3, 6, 7, 8, 10]


def test_what_of_a_cut_tensor_all_parts_share_is_their_weighted_mean() -> None:
    model = latent()
    widths, state = latent_widths(model), model.state_dict()
    parts = [Part({"units": (k,)}) for k in range(3)]
    cuts = [cut_tensors(state, widths, part) for part in parts]
    same = [Contribution(p, Tensors(c), 1.0) for p, c in zip(parts, cuts, strict=True)]
    merged = merge_state(state, same, widths, AVERAGE)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())
    moved = [
        Contribution(p, Tensors({n: t + k for n, t in c.items()}), float(k))
        for k, (p, c) in enumerate(zip(parts, cuts, strict=True), start=1)
    ]
    for rule in (AVERAGE, BLOCK):
        bias = merge_state(state, moved, widths, rule)["0.bias"] - state["0.bias"]
        mean = (1 + 4 + 9) / 6
        expected = torch.tensor([mean, mean, 1, 1, 2, 2, 3, 3, 1, 2, 3])
        torch.testing.assert_close(bias, expected)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (
            [Slot("0.weight", 0, 2, (2,), 11), Slot("0.weight", 0, 1, (7,), 11)],
            "own each index once",
        ),
        ([Slot("0.weight", 0, 2, (2,), 12)], "whose shape is"),
        ([Slot("0.weight", 0, 2, (2,))], "the rest is kept whole"),
        ([Slot("0.weight", 0, 2, (6,), 11)], "at offsets"),
    ],
    ids=["twice", "another size", "a rest in silence", "out of range"],
)
def test_slots_that_do_not_fit_are_refused_in_words(slots: list[Slot], said: str) -> None:
    group = WidthGroup("units", 3, "hidden", tuple(slots))
    with pytest.raises(WidthError, match=said):
        check_widths(latent(), Widths((group,)))


def test_a_tensor_of_two_names_is_cut_under_both_whoever_names_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
            self.two.weight = self.one.weight

        def width_groups(self) -> Widths:
            axis = Axis(self, "units", 6, "hidden").made_by("one").held_by("two.bias", 0)
            return Widths((axis.read_by("down").done(),))

    model = Tied()
    widths, part = find_widths(model), Part({"units": (1, 4)})
    cut = cut_module(model, widths, part)
    assert cut.get_parameter("two.weight") is cut.get_parameter("one.weight")
    tensors = cut_tensors(model.state_dict(), widths, part)
    assert {n: t.shape for n, t in tensors.items()} == {
        n: t.shape for n, t in cut.state_dict().items()
    }
