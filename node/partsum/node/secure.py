"""The node's side of secure aggregation: its keys, its shares, and what it gives away of them.

Practical Secure Aggregation, Bonawitz et al. 2017 (10.1145/3133956.3133982), against a coordinator
that follows the protocol but is curious. Needs no torch: `masking` puts the masks on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from partsum.node import control
from partsum.node.secrets import Secrets, SecretsFile
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.masks import Mask, pair_purpose, public_key, shared_key, sign
from partsum.shared.secure import (
    KEY_BYTES,
    LEAST_MEMBERS,
    Ask,
    Masking,
    PublicKeys,
    Roster,
    SecureOpen,
    Shares,
)
from partsum.shared.shamir import SHARE_BYTES, RandomBytes, split

log = logging.getLogger(__name__)

_NONCE = bytes(12)  # each sealing key seals one message


class SecureMember:
    """This node as a member of a session. What it knows is on disk before it answers.

    Args:
        file: keeps the secrets.
        name: this node's, in the roster.
        random_bytes: nobody may guess them.
    """

    def __init__(self, file: SecretsFile, name: str, random_bytes: RandomBytes) -> None:
        self._file = file
        self._name = name
        self._random_bytes = random_bytes
        self._secrets = file.read()

    def answer(self, said: control.Secure) -> pb.ControlRequest | None:
        """What to answer the coordinator; the same again to the same question.

        Raises WireError where the answer would not protect this node's update.
        """
        if isinstance(said, SecureOpen):
            return control.secure_keys(said.session, self._open(said.session))
        if self._secrets is None or self._secrets.session != said.session:
            log.warning("this node does not know the session %s of masks", said.session)
            return None
        match said:
            case Roster():
                return control.secure_shares(self._share(self._secrets, said))
            case Shares():
                self._take(self._secrets, said)
                return None
            case Ask():
                return control.secure_reveal(self._reveal(self._secrets, said))

    def masks(self, masking: Masking, update: str) -> list[Mask]:
        """All masks of the update with this digest.

        Raises PartsumError where the session is not this node's, or where its masks were for
        another update: the difference of the two would be there for the coordinator to read.
        """
        known = self._secrets
        if known is None or known.session != masking.session or known.roster is None:
            raise PartsumError("this node no longer has the masks of this round")
        if known.masked not in {"", update}:
            raise PartsumError("this round's masks were for another update of this node")
        self._keep(replace(known, masked=update))
        me, purpose = known.roster.names.index(self._name), pair_purpose(known.session)
        pairs = [
            (shared_key(known.mask, keys.mask, purpose), sign(me, other))
            for other, keys in enumerate(known.roster.keys)
            if other != me
        ]
        return [(known.seed, 1), *pairs]

    def forget(self) -> None:
        """The run is done."""
        self._secrets = None
        self._file.remove()

    def _keep(self, secrets: Secrets) -> None:
        self._file.write(secrets)
        self._secrets = secrets

    def _open(self, session: str) -> PublicKeys:
        if self._secrets is None or self._secrets.session != session:
            mask, seal, seed = (self._random_bytes(KEY_BYTES) for _ in range(3))
            self._secrets = Secrets(session, mask, seal, seed)
            self._keep(self._secrets)
        return PublicKeys(public_key(self._secrets.mask), public_key(self._secrets.seal))

    # -- shares -----------------------------------------------------------------------------------

    def _share(self, known: Secrets, roster: Roster) -> Shares:
        """Shares of both secrets, sealed for each other member."""
        if known.roster is None:
            self._check(known, roster)
            me, count = roster.names.index(self._name), len(roster.names)
            of_key = split(known.mask, roster.threshold, count, self._random_bytes)
            of_seed = split(known.seed, roster.threshold, count, self._random_bytes)
            both = [key + seed for key, seed in zip(of_key, of_seed, strict=True)]
            given = {
                other: ChaCha20Poly1305(self._seal_key(known, roster, me, other)).encrypt(
                    _NONCE, both[other], None
                )
                for other in range(count)
                if other != me
            }
            known = replace(known, roster=roster, given=given, held={me: both[me]})
            self._keep(known)
        elif known.roster != roster:
            raise WireError("the coordinator sent two rosters for one session of masks")
        return Shares(known.session, known.given)

    def _check(self, known: Secrets, roster: Roster) -> None:
        """Raise WireError for a roster under which the coordinator could read this update."""
        count = len(roster.names)
        if count < LEAST_MEMBERS or not count / 2 < roster.threshold <= count:
            raise WireError(
                f"{count} nodes and a threshold of {roster.threshold} do not protect an update: at "
                f"least {LEAST_MEMBERS} nodes, and more than half of them, are needed"
            )
        mine = PublicKeys(public_key(known.mask), public_key(known.seal))
        if (self._name, mine) not in zip(roster.names, roster.keys, strict=True):
            raise WireError("this node is not on the roster of its own round")
        if len(set(roster.names)) < count or len({keys.mask for keys in roster.keys}) < count:
            raise WireError("a node is on the roster twice")

    def _seal_key(self, known: Secrets, roster: Roster, sender: int, receiver: int) -> bytes:
        """The key of what one of two members, of whom this node is one, seals for the other."""
        other = receiver if roster.names[sender] == self._name else sender
        purpose = f"partsum seal {known.session} {sender} {receiver}"
        return shared_key(known.seal, roster.keys[other].seal, purpose)

    def _take(self, known: Secrets, shares: Shares) -> None:
        """Open what the others have sealed for this node, and keep it.

        What cannot be opened is left out: its sender is to blame, and not the coordinator, who will
        miss the share of it.
        """
        if known.roster is None:
            raise WireError("shares came before the roster")
        me, held = known.roster.names.index(self._name), dict(known.held)
        for other, sealed in shares.shares.items():
            if not 0 <= other < len(known.roster.names) or other == me:
                raise WireError(f"a share came from member {other}, who is not on the roster")
            try:
                cipher = ChaCha20Poly1305(self._seal_key(known, known.roster, other, me))
                held[other] = cipher.decrypt(_NONCE, sealed, None)
            except InvalidTag:
                log.warning("what %s sealed cannot be opened", known.roster.names[other])
        self._keep(replace(known, held=held))

    def _reveal(self, known: Secrets, ask: Ask) -> Shares:
        """The shares that take the masks off the sum over these survivors, and nothing else."""
        survivors = tuple(sorted(set(ask.survivors)))
        if known.roster is None or len(survivors) < known.roster.threshold:
            raise WireError(f"{len(survivors)} survivors are too few to open shares for")
        if known.survivors not in {None, survivors}:
            raise WireError("the coordinator asks for both of somebody's secrets")
        self._keep(replace(known, survivors=survivors))
        opened = {
            member: both[SHARE_BYTES:] if member in survivors else both[:SHARE_BYTES]
            for member, both in known.held.items()
        }
        return Shares(known.session, opened)
