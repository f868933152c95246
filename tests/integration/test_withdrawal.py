"""An update that was taken at the door, and does not pass beside the others when it is merged."""

from __future__ import annotations

from pathlib import Path

from tests.hand_node import played

from partsum.shared.tensors import load_tensors


def test_an_outlier_is_withdrawn_and_its_part_goes_to_another_node_within_the_round(
    tmp_path: Path,
) -> None:
    summary, heard = played(tmp_path, 1, liar_by=5.0)
    (round,) = summary.rounds
    assert round.missing_parts == ()
    (refusal,) = round.refused
    assert (refusal.kind, refusal.node) == ("norm", "a")
    (told,) = [incident for incident in summary.incidents if incident.kind == "refused:norm"]
    assert "500 times as much as the median" in told.text
    assert "tensor '" in told.text
    assert sorted(kinds.count("assignment") for kinds in heard) == [1, 1, 2]
    assert heard[0].count("assignment") == 1
    first, last = (load_tensors(p) for p in sorted((tmp_path / "latest" / "bases").glob("base-*")))
    for name, tensor in last.items():  # what it sent is in no weight of the base
        assert (tensor - first[name] - 0.01).abs().max() < 1e-5


def test_a_node_whose_updates_are_withdrawn_again_and_again_is_quarantined(tmp_path: Path) -> None:
    """Each was accepted at the door, which must not make the one before forgotten."""
    summary, heard = played(tmp_path, 4, liar_by=5.0)
    refused = [refusal for round in summary.rounds for refusal in round.refused]
    assert [(refusal.kind, refusal.node) for refusal in refused] == [("norm", "a")] * 2
    assert heard[0].count("assignment") == 2
    assert heard[0].count("quarantined") == 1
    assert "quarantined" not in heard[1] + heard[2]
    assert "benched" in {incident.kind for incident in summary.incidents}


def test_updates_within_the_bound_are_all_merged(tmp_path: Path) -> None:
    summary, _ = played(tmp_path, 2, liar_by=0.09)
    assert not any(round.refused for round in summary.rounds)
