"""What is said for secure aggregation, to protobuf and back; the rest is in `wire`.

Nothing from the network is believed before its sizes have been checked.
"""

from __future__ import annotations

import math
import re

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import secure as s
from partsum.shared.errors import WireError

MEMBERS_LIMIT = 10_000  # their shares fit into one message
_SHARE_LIMIT_BYTES = 256
_SESSION = re.compile(r"[0-9a-f]{32}")


def open_to_wire(opened: s.SecureOpen) -> pb.SecureOpen:
    """A SecureOpen as protobuf."""
    return pb.SecureOpen(session=opened.session)


def open_from_wire(opened: pb.SecureOpen) -> s.SecureOpen:
    """Raises WireError for a session that is not one."""
    return s.SecureOpen(_session(opened.session))


def keys_to_wire(session: str, keys: s.PublicKeys) -> pb.SecureKeys:
    """A member's PublicKeys as protobuf."""
    return pb.SecureKeys(session=session, mask_key=keys.mask, seal_key=keys.seal)


def keys_from_wire(keys: pb.SecureKeys | pb.SecureMember) -> s.PublicKeys:
    """Raises WireError where a key has another size."""
    if len(keys.mask_key) != s.KEY_BYTES or len(keys.seal_key) != s.KEY_BYTES:
        raise WireError(f"a public key for secure aggregation must have {s.KEY_BYTES} bytes")
    return s.PublicKeys(keys.mask_key, keys.seal_key)


def roster_to_wire(roster: s.Roster) -> pb.SecureRoster:
    """A Roster as protobuf."""
    members = [
        pb.SecureMember(node=name, mask_key=keys.mask, seal_key=keys.seal)
        for name, keys in zip(roster.names, roster.keys, strict=True)
    ]
    return pb.SecureRoster(session=roster.session, threshold=roster.threshold, members=members)


def roster_from_wire(roster: pb.SecureRoster) -> s.Roster:
    """Raises WireError where it cannot be one."""
    if len(roster.members) > MEMBERS_LIMIT:
        raise WireError(f"a roster of {len(roster.members)} members; at most {MEMBERS_LIMIT}")
    return s.Roster(
        session=_session(roster.session),
        threshold=roster.threshold,
        names=tuple(member.node for member in roster.members),
        keys=tuple(keys_from_wire(member) for member in roster.members),
    )


def shares_to_wire(shares: s.Shares) -> pb.SecureShares:
    """Shares as protobuf."""
    return pb.SecureShares(
        session=shares.session,
        shares=[pb.SecureShare(member=m, data=data) for m, data in shares.shares.items()],
    )


def shares_from_wire(shares: pb.SecureShares) -> s.Shares:
    """Raises WireError for a member named twice, and for shares too many or too large."""
    found = {share.member: share.data for share in shares.shares}
    if len(found) != len(shares.shares) or len(found) > MEMBERS_LIMIT:
        raise WireError(f"{len(shares.shares)} shares for {len(found)} members make no sense")
    if any(not 0 <= m < MEMBERS_LIMIT or len(d) > _SHARE_LIMIT_BYTES for m, d in found.items()):
        raise WireError("a share that is too large, or of a member that there cannot be")
    return s.Shares(_session(shares.session), found)


def ask_to_wire(ask: s.Ask) -> pb.SecureAsk:
    """An Ask as protobuf."""
    return pb.SecureAsk(session=ask.session, survivors=ask.survivors)


def ask_from_wire(ask: pb.SecureAsk) -> s.Ask:
    """Raises WireError where there are more survivors than there can be members."""
    if len(ask.survivors) > MEMBERS_LIMIT:
        raise WireError(f"{len(ask.survivors)} survivors; at most {MEMBERS_LIMIT}")
    return s.Ask(_session(ask.session), tuple(ask.survivors))


def masking_to_wire(masking: s.Masking) -> pb.Masking:
    """A Masking as protobuf."""
    return pb.Masking(session=masking.session, share=masking.share)


def masking_from_wire(masking: pb.Masking) -> s.Masking:
    """Raises WireError for a share that is none."""
    if not (math.isfinite(masking.share) and 0 < masking.share <= 1):
        raise WireError(f"an update's share in the mean cannot be {masking.share}")
    return s.Masking(_session(masking.session), masking.share)


def _session(session: str) -> str:
    if not _SESSION.fullmatch(session):
        raise WireError(f"{session[:40]!r} is not a session")
    return session
