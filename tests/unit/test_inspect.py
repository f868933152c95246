"""partsum inspect: what it finds, how it says it, and what it draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from partsum.coordinator.base import Base
from partsum.coordinator.inspection import Inspection, inspect_base
from partsum.shared.cli import main
from partsum.shared.errors import EXIT_OK, EXIT_USAGE
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task

VIT = "partsum.shared.tasks:digits_vit"
VIT_OPTIONS = {"width": 16, "heads": 4, "layers": 1, "patch": 4}
VIT_FLAGS = [flag for key, value in VIT_OPTIONS.items() for flag in ("--option", f"{key}={value}")]


def inspected(name: str, parts: int = 4, **options: Any) -> Inspection:
    task = load_task(TaskSpec(name, options))
    return inspect_base(Base(task, torch.device("cpu")), name, parts, task.validation)


@pytest.fixture(scope="module")
def vit() -> Inspection:
    return inspected(VIT, **VIT_OPTIONS)


def test_every_parameter_is_counted_once_by_what_cuts_it(vit: Inspection) -> None:
    assert sum(vit.covered.values()) == vit.parameters
    assert vit.covered["whole"] == 10  # the head's bias
    assert vit.covered["hidden"] == sum(
        tensor.numel for tensor in vit.tensors if tensor.cover == "hidden"
    )


def test_both_depths_have_a_cost_and_a_certificate(vit: Inspection) -> None:
    hidden, everything = vit.depths
    assert (hidden.depth, everything.depth) == ("hidden", "all")
    assert (hidden.outcome, everything.outcome) == ("passed", "passed")
    assert hidden.parameters is not None
    assert everything.parameters is not None
    assert everything.parameters < hidden.parameters < vit.parameters


def test_a_part_of_one_in_four_costs_what_cutting_it_costs(vit: Inspection) -> None:
    narrow = load_task(TaskSpec(VIT, {**VIT_OPTIONS, "width": 4, "heads": 1})).model()
    everything = vit.depths[1]
    assert everything.parameters == sum(p.numel() for p in narrow.parameters())
    state = narrow.state_dict().values()
    assert everything.state_bytes == sum(t.numel() * t.element_size() for t in state)


def test_more_parts_than_units_are_refused_for_both_depths_in_words() -> None:
    seen = inspected(VIT, parts=8, **VIT_OPTIONS)
    for depth in seen.depths:
        assert depth.outcome == "refused"
        assert "has 4 units, too few for 8 parts" in depth.said
        assert depth.parameters is None


def test_a_count_that_no_depth_can_be_cut_into_is_a_mistake_of_the_flags(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", VIT, *VIT_FLAGS, "--parts", "100", "--shapes-only"]) == EXIT_USAGE
    assert "too few for 100 parts" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", VIT, *VIT_FLAGS, "--parts", "4", "--shapes-only"]) == EXIT_OK


def test_what_stays_whole_is_listed_with_the_reason_and_refuses_mode_block() -> None:
    seen = inspected("tests.inspected_task:unet")
    whole = {tensor.name: tensor.reason for tensor in seen.tensors if tensor.cover == "whole"}
    assert "operation cat" in whole["down.bias"]
    assert seen.depths[0].outcome == "passed"
    assert seen.depths[1].outcome == "refused"
    assert "deep.3" in seen.block_refusal
    assert "deep.3 (ConvTranspose2d) adds up" in seen.residual_refusal


def test_the_gates_are_listed_with_what_leaves_with_them(
    vit: Inspection, capsys: pytest.CaptureFixture[str]
) -> None:
    residual = {gate.name: gate for gate in vit.gates if gate.kind == "residual"}
    model = load_task(TaskSpec(VIT, VIT_OPTIONS)).model()
    assert residual
    for gate in residual.values():
        left = [p for m in gate.modules for p in model.get_submodule(m).parameters()]
        assert gate.parameters >= sum(p.numel() for p in left) > 0
    code, said = run(capsys, VIT, *VIT_FLAGS, "--shapes-only")
    assert code == 0
    for gate in vit.gates:
        assert gate.name in said


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["inspect", *arguments])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())  # a terminal's line breaks mean nothing


def test_the_table_names_groups_tensors_shared_ones_costs_and_the_certificate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(capsys, VIT, *VIT_FLAGS)
    assert code == 0
    assert "blocks.0.heads: hidden, 4 units" in said
    assert "blocks.0.attention.qkv.weight 48x16 0: 4 a unit, 3 times" in said
    assert "blocks.0.norm1.{weight, bias} 16 0" in said
    assert "readouts, weighed by the merge: head.weight" in said
    assert "1 of 4 parts, everything (mode block)" in said
    assert said.count("passed: a cut model computes what the whole one does") == 2


def test_a_groups_counted_attributes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "tests.inspected_task:resnext", "--parts", "2")
    assert code == 0
    assert "counted by layer1.0.conv2.groups, layer1.0.conv2.in_channels" in said
    assert "layer1.0.bn1.{weight, bias, running_mean, running_var} 8 0: 2 a unit" in said


def test_a_wrong_group_fails_in_words_and_by_the_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(capsys, "tests.inspected_task:wrong")
    assert code == 1
    assert "failed: a cut model does not" in said


def test_without_data_the_certificate_is_not_run_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(capsys, "tests.inspected_task:no_data")
    assert code == 0
    assert "not run: the validation data is not on this machine: no pictures here" in said
    code, said = run(capsys, "tests.inspected_task:no_data", "--shapes-only")
    assert code == 0
    assert "not run: only shapes were looked at" in said


def test_json_has_all_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", VIT, *VIT_FLAGS, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["groups"][0]["name"] == "stream"
    assert figures["covered"]["whole"] == 10
    qkv = next(t for t in figures["tensors"] if t["name"] == "blocks.0.attention.qkv.weight")
    assert [(cut["group"], cut["dim"], cut["offsets"]) for cut in qkv["cuts"]] == [
        ("stream", 1, [0]),
        ("blocks.0.heads", 0, [0, 16, 32]),
    ]


def test_a_config_gives_the_task_its_options_and_the_number_of_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    options = ", ".join(f"{key} = {value}" for key, value in VIT_OPTIONS.items())
    config.write_text(f'[task]\nname = "{VIT}"\noptions = {{ {options} }}\n[parts]\ncount = 2\n')
    flags = ["--config", str(config), "--option", "layers=2", "--shapes-only", "--json"]
    assert main(["inspect", *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["task"], figures["parts"], len(figures["groups"])) == (VIT, 2, 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a task, as in partsum inspect"),
        ([VIT, "--parts", "0"], "--parts 0: there must be at least one part"),
        ([VIT, "--option", "width"], "--option 'width' is not of the form key=value"),
        ([VIT, "--option", "depth=3"], "does not take these options"),
        (["partsum.shared.tasks:nothing"], "has no function 'nothing'"),
        (["tests.inspected_task:undecided"], "layers of Undecided cannot be followed: torch.fx"),
        ([VIT, "--svg", "/nowhere/at/all.svg", "--shapes-only"], "cannot write the picture"),
    ],
)
def test_flags_and_models_that_cannot_be_used_are_refused_in_words(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, found = run(capsys, *arguments)
    assert code == 2
    assert said in found


def test_an_option_is_a_toml_value_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(
        capsys, "partsum.shared.tasks:image_vgg", "--option", "channels=[4, 0, 8, 0]",
        "--option", "hidden=[]", "--option", "folder=/none", "--shapes-only",
    )  # fmt: skip
    assert code == 0
    assert "features.4: stream, 8 units" in said


def test_the_picture_stands_alone_and_shows_each_tensor_and_its_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vit.svg"
    assert main(["inspect", VIT, *VIT_FLAGS, "--svg", str(path), "--shapes-only"]) == 0
    capsys.readouterr()
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "blocks.0.attention.qkv.weight" in texts
    assert "dim 0 blocks.0.heads, dim 1 stream" in texts
    styles = [box.get("class") for box in root.iter(f"{space}rect")]
    assert "shared" in styles  # the head's bias
    assert {"g0", "g0 rest", "g1", "g2"} <= set(styles)
    assert not any("href" in name for element in root.iter() for name in element.attrib)


def test_a_picture_of_many_tensors_leaves_out_those_of_one_dimension(tmp_path: Path) -> None:
    path = tmp_path / "deep.svg"
    flags = [*VIT_FLAGS[:-2], "--option", "layers=9", "--shapes-only", "--json"]
    assert main(["inspect", VIT, *flags, "--svg", str(path)]) == 0
    drawn = path.read_text(encoding="utf-8")
    assert "tensors of one dimension are not shown" in drawn
    assert "blocks.8.up.weight" in drawn
    assert "blocks.8.up.bias" not in drawn
