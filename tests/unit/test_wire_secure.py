"""What is said for secure aggregation comes back from the wire as it was, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import secure as s
from partsum.shared import wire_secure as w
from partsum.shared.errors import WireError

sessions = st.text("0123456789abcdef", min_size=32, max_size=32)
keys = st.builds(
    s.PublicKeys, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)
)
members = st.integers(0, w.MEMBERS_LIMIT - 1)
shares = st.builds(s.Shares, sessions, st.dictionaries(members, st.binary(max_size=256)))
asks = st.builds(s.Ask, sessions, st.lists(members).map(tuple))
rosters = st.lists(st.tuples(st.text(max_size=9), keys)).flatmap(
    lambda found: st.builds(
        s.Roster,
        sessions,
        st.integers(0, 9),
        st.just(tuple(name for name, _ in found)),
        st.just(tuple(theirs for _, theirs in found)),
    )
)
maskings = st.builds(s.Masking, sessions, st.floats(0, 1, exclude_min=True))


@given(sessions, keys, rosters, shares, asks, maskings)
def test_everything_comes_back_as_it_was(
    session: str,
    key: s.PublicKeys,
    roster: s.Roster,
    share: s.Shares,
    ask: s.Ask,
    masking: s.Masking,
) -> None:
    assert w.open_from_wire(w.open_to_wire(s.SecureOpen(session))).session == session
    assert w.keys_from_wire(w.keys_to_wire(session, key)) == key
    assert w.roster_from_wire(w.roster_to_wire(roster)) == roster
    assert w.shares_from_wire(w.shares_to_wire(share)) == share
    assert w.ask_from_wire(w.ask_to_wire(ask)) == ask
    assert w.masking_from_wire(w.masking_to_wire(masking)) == masking


GOOD = "ab" * 16
SHARE = pb.SecureShare(member=1, data=b"x")


Message = (
    pb.SecureOpen | pb.SecureKeys | pb.SecureRoster | pb.SecureShares | pb.SecureAsk | pb.Masking
)


def read(message: Message) -> object:
    match message:
        case pb.SecureOpen():
            return w.open_from_wire(message)
        case pb.SecureKeys():
            return w.keys_from_wire(message)
        case pb.SecureRoster():
            return w.roster_from_wire(message)
        case pb.SecureShares():
            return w.shares_from_wire(message)
        case pb.SecureAsk():
            return w.ask_from_wire(message)
        case pb.Masking():
            return w.masking_from_wire(message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.SecureOpen(session="../x"), "is not a session"),
        (pb.SecureOpen(session=GOOD.upper()), "is not a session"),
        (pb.SecureKeys(session=GOOD, mask_key=b"x" * 31, seal_key=b"x" * 32), "32 bytes"),
        (pb.SecureRoster(members=[pb.SecureMember()] * (w.MEMBERS_LIMIT + 1)), "at most 10000"),
        (pb.SecureRoster(session=GOOD, members=[pb.SecureMember(node="a")]), "32 bytes"),
        (pb.SecureShares(session=GOOD, shares=[SHARE, SHARE]), "2 shares for 1 members"),
        (pb.SecureShares(shares=[pb.SecureShare(member=-1)]), "too large, or of a member"),
        (pb.SecureShares(shares=[pb.SecureShare(member=1, data=bytes(257))]), "too large"),
        (pb.SecureAsk(session=GOOD, survivors=[0] * (w.MEMBERS_LIMIT + 1)), "10001 survivors"),
        (pb.Masking(session=GOOD, share=0.0), "share in the mean cannot be 0.0"),
        (pb.Masking(session=GOOD, share=float("nan")), "cannot be nan"),
        (pb.Masking(session="", share=0.5), "is not a session"),
    ],
)
def test_what_cannot_be_is_refused(message: Message, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read(message)
