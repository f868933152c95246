"""The benchmark with a hostile node: its configs, its attacks, and one run."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from benchmarks.harness import to_toml
from benchmarks.hostile import DATA, RULES, config, figures, table
from benchmarks.robust.attacks import ATTACKS
from benchmarks.robust.cluster import Outcome, play
from benchmarks.robust.plot import draw
from rich.console import Console

from partsum.shared.config import parse_config

NAMED = {attack.name: attack for attack in ATTACKS}


def test_every_row_of_the_table_is_a_config_that_partsum_takes() -> None:
    for rule in RULES:
        for data in DATA.values():
            parsed = parse_config(to_toml(config(rule, data, 3, 2, "somewhere")))
            assert (parsed.merge.rule, parsed.parts.count) == (rule.merge["rule"], 5)


def test_attacks_do_what_they_are_called() -> None:
    update, start = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    generator = torch.Generator()

    def sent(name: str) -> torch.Tensor:
        tamper = NAMED[name].tamper
        assert tamper is not None
        return tamper(update, start, generator)["w"]

    assert sent("sign flip").item() == -1.0
    assert sent("sign flip x 8").item() == 1.0 - 8 * 2.0
    assert sent("nan").isnan().all()
    assert sent("noise").item() != 3.0
    assert NAMED["label flip"].flips
    assert [attack.name for attack in ATTACKS if attack.is_none] == ["none"]


def test_a_liar_is_found_and_the_result_is_the_one_without_it(tmp_path: Path) -> None:
    """The norm bound takes noise off, the door takes nan off; another node does the part."""
    bound = RULES[1]
    played = {}
    for name in ("none", "noise", "nan"):
        text = to_toml(config(bound, DATA["iid"], 0, 1, str(tmp_path / name)))
        played[name] = play(text, NAMED[name])
    assert dict(played["noise"].refused) == {"norm": 1}
    assert dict(played["nan"].refused) == {"not_finite": 1}
    assert len({(outcome.accuracy, outcome.loss) for outcome in played.values()}) == 1


def test_the_table_and_the_picture_show_every_cell(tmp_path: Path) -> None:
    cells = {
        (rule.name, attack.name): [Outcome(0.9, 0.4, Counter(norm=2), benched=True)]
        for rule in RULES
        for attack in ATTACKS
    }
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(table("iid", cells))
    assert console.export_text().count("90.0 (norm 2, benched)") == len(cells)
    assert figures("iid", cells)["iid/median/nan/refused"] == pytest.approx(2.0)
    draw([("iid", cells)], [r.name for r in RULES], list(NAMED), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
