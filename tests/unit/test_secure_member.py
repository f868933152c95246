"""A node in a session of secure aggregation: what it answers, and what it does not give away."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tests.session import SESSION, Agreed, member, say

from partsum.shared.errors import PartsumError, WireError
from partsum.shared.secure import Ask, Masking, PublicKeys, Roster, SecureOpen, Shares
from partsum.shared.shamir import join


def test_a_node_never_opens_both_secrets_of_anybody(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 4, 3)
    first = agreed.opened([0, 1, 2], [0])
    assert agreed.opened([2, 1, 0], [0]) == first  # asked again, it says the same
    for survivors in ([0, 1, 2, 3], [1, 2, 3]):
        with pytest.raises(WireError, match="both of somebody's secrets"):
            agreed.opened(survivors, [0])
    again = member(tmp_path, "a", 9)  # not after a restart either
    with pytest.raises(WireError, match="both of somebody's secrets"):
        again.answer(Ask(SESSION, (0, 1, 2, 3)))


def test_a_node_opens_nothing_for_too_few_survivors(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 4, 3)
    for survivors in ([], [0, 1], [0, 0, 0]):
        with pytest.raises(WireError, match="survivors are too few"):
            agreed.opened(survivors, [0])


def test_masks_are_for_one_update_only_also_after_a_restart(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 3, 2)
    masking = Masking(SESSION, 0.5)
    masks = agreed.members[0].masks(masking, "f" * 32)
    assert len(masks) == 3
    again = member(tmp_path, "a", 9)
    assert again.masks(masking, "f" * 32) == masks
    with pytest.raises(PartsumError, match="masks were for another update"):
        again.masks(masking, "e" * 32)
    with pytest.raises(PartsumError, match="no longer has the masks"):
        again.masks(Masking("cd" * 16, 0.5), "f" * 32)


def test_what_was_asked_before_is_answered_the_same_also_after_a_restart(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 3, 2)
    again = member(tmp_path, "b", 9)
    keys = say(again, SecureOpen(SESSION)).secure_keys
    assert keys.mask_key == agreed.roster.keys[1].mask
    shares = {share.member: share.data for share in say(again, agreed.roster).secure_shares.shares}
    assert shares == agreed.sealed[1].shares


def test_a_new_session_has_new_keys_and_the_old_one_is_forgotten(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 3, 2)
    fresh = say(agreed.members[0], SecureOpen("cd" * 16)).secure_keys
    assert fresh.mask_key != agreed.roster.keys[0].mask
    assert agreed.members[0].answer(Ask(SESSION, (0, 1))) is None
    agreed.members[1].forget()
    assert not (tmp_path / "b.json").exists()
    assert agreed.members[1].answer(agreed.roster) is None


def test_nobody_else_on_the_host_may_read_the_secrets(tmp_path: Path) -> None:
    Agreed(tmp_path, 3, 2)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_roster_that_would_not_protect_the_node_is_refused(tmp_path: Path) -> None:
    alone = member(tmp_path, "a", 1)
    keys = say(alone, SecureOpen(SESSION)).secure_keys
    mine = PublicKeys(keys.mask_key, keys.seal_key)
    other, third = PublicKeys(b"1" * 32, b"1" * 32), PublicKeys(b"2" * 32, b"2" * 32)
    good = Roster(SESSION, 2, ("a", "b", "c"), (mine, other, third))
    bad = [
        (Roster(SESSION, 2, ("a", "b"), (mine, other)), "2 nodes and a threshold of 2"),
        (replace(good, threshold=1), "threshold of 1 do not protect"),
        (replace(good, threshold=4), "threshold of 4 do not protect"),
        (replace(good, names=("x", "b", "c")), "not on the roster"),
        (replace(good, keys=(third, other, mine)), "not on the roster"),
        (replace(good, names=("a", "b", "b")), "on the roster twice"),
        (replace(good, keys=(mine, other, other)), "on the roster twice"),
    ]
    for roster, reason in bad:
        with pytest.raises(WireError, match=reason):
            alone.answer(roster)
    assert alone.answer(good) is not None
    with pytest.raises(WireError, match="two rosters"):
        alone.answer(replace(good, threshold=3))


def test_shares_that_were_changed_or_sent_astray_are_not_kept(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 3, 2)
    good = agreed.routed(0).shares
    damaged = good[1][:-1] + bytes([good[1][-1] ^ 1])
    before = agreed.opened([0, 1, 2], [0])
    for shares in ({1: damaged}, {1: good[2]}, {1: agreed.sealed[1].shares[2]}):
        agreed.members[0].answer(Shares(SESSION, shares))
        assert agreed.opened([0, 1, 2], [0]) == before
    for stranger in (0, 3):
        with pytest.raises(WireError, match="not on the roster"):
            agreed.members[0].answer(Shares(SESSION, {stranger: good[1]}))


def test_fewer_than_the_threshold_learn_no_secret(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 5, 4)
    opened = agreed.opened([0, 1, 2, 3], [0, 1, 2])
    for subject in range(5):
        shares = {sender: shares[subject] for sender, shares in opened.items()}
        with pytest.raises(ValueError, match="do not make up a secret"):
            join(shares)
