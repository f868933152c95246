"""Sessions of secure aggregation: what the coordinator asks of its nodes, and carries among them.

One session for each opening of a round. The coordinator follows the protocol of Bonawitz et al.
2017 (10.1145/3133956.3133982) and learns the survivors' sum; `unmask` has the arithmetic.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from partsum.coordinator.registry import Node, Registry
from partsum.coordinator.unmask import LapsedError, threshold
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire_secure
from partsum.shared.errors import WireError
from partsum.shared.masks import check_key
from partsum.shared.secure import LEAST_MEMBERS, Ask, PublicKeys, Roster, SecureOpen, Shares
from partsum.shared.shamir import SHARE_BYTES

log = logging.getLogger(__name__)

Messages = Mapping[str, pb.ControlResponse]


@dataclass
class _Question:
    """What was asked of whom, and who has answered."""

    kind: str  # of the answer
    session: str
    messages: Messages
    enough: int  # answers, to go on without the rest
    absent: bool  # whether those who leave are waited for
    answers: dict[str, PublicKeys | Shares] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Secrecy:
    """Keeps the open round's session; lives in the daemon's loop.

    Args:
        registry: how to reach nodes.
        quorum: fewest updates that a round closes with.
        patience_seconds: how long an answer may take.
        failed: told of a node whose answer made no sense, or did not come.
    """

    def __init__(
        self,
        registry: Registry,
        quorum: int,
        patience_seconds: float,
        failed: Callable[[Node, str], None],
    ) -> None:
        self.roster: Roster | None = None
        self._registry = registry
        self._quorum = quorum
        self._patience_seconds = patience_seconds
        self._failed = failed
        self._question: _Question | None = None
        self._routed: dict[str, pb.ControlResponse] = {}  # shares, once all are there

    async def agree(self, names: Sequence[str]) -> Roster:
        """A new session with those of the nodes that answer. Raises LapsedError."""
        self.roster, self._routed = None, {}
        session = uuid.uuid4().hex
        opened = pb.ControlResponse(secure_open=wire_secure.open_to_wire(SecureOpen(session)))
        asked = _Question("secure_keys", session, dict.fromkeys(names, opened), len(names), False)
        keys = {n: a for n, a in (await self._ask(asked)).items() if isinstance(a, PublicKeys)}
        members = tuple(sorted(keys))
        least = max(LEAST_MEMBERS, self._quorum)
        if len(members) < least:
            raise LapsedError(f"only {len(members)} of {least} nodes sent keys for masks")
        enough = threshold(len(members), self._quorum)
        roster = Roster(session, enough, members, tuple(keys[name] for name in members))
        sent = pb.ControlResponse(secure_roster=wire_secure.roster_to_wire(roster))
        asked = _Question("secure_shares", session, dict.fromkeys(members, sent), len(keys), False)
        self.roster = roster
        sealed = {n: a for n, a in (await self._ask(asked)).items() if isinstance(a, Shares)}
        if missing := sorted(set(members) - set(sealed)):
            raise LapsedError(f"{', '.join(missing)} left while masks were agreed on")
        for me, name in enumerate(members):
            shares = {
                other: sealed[sender].shares[me]
                for other, sender in enumerate(members)
                if other != me
            }
            routed = wire_secure.shares_to_wire(Shares(session, shares))
            self._routed[name] = pb.ControlResponse(secure_shares=routed)
            self._send(name, self._routed[name])
        log.info("masks agreed on with %s; %d must survive", ", ".join(members), enough)
        return roster

    async def reveal(self, survivors: Sequence[int]) -> dict[int, Mapping[int, bytes]]:
        """What the members open for this set of survivors, by member. Raises LapsedError."""
        roster = self.roster
        assert roster is not None, "no session is open"
        ask = wire_secure.ask_to_wire(Ask(roster.session, tuple(survivors)))
        messages = dict.fromkeys(roster.names, pb.ControlResponse(secure_ask=ask))
        asked = _Question("secure_reveal", roster.session, messages, roster.threshold, True)
        answers = await self._ask(asked)
        if len(answers) < roster.threshold:
            raise LapsedError(
                f"only {len(answers)} of {roster.threshold} nodes opened what takes the masks off "
                "the sum"
            )
        return {
            roster.names.index(name): answer.shares
            for name, answer in answers.items()
            if isinstance(answer, Shares)
        }

    # -- questions and answers --------------------------------------------------------------------

    async def _ask(self, question: _Question) -> dict[str, PublicKeys | Shares]:
        """Ask, and wait until enough have answered, all others have left, or patience ends."""
        self._question = question
        for name, message in question.messages.items():
            self._send(name, message)
        self._look(question)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await question.done.wait()
        except TimeoutError:
            for name in self._silent(question):
                if node := self._registry.get(name):
                    self._failed(node, "it did not answer in a session of secure aggregation")
        finally:
            self._question = None
        return question.answers

    def _send(self, name: str, message: pb.ControlResponse) -> None:
        node = self._registry.get(name)
        if node is not None and node.session is not None:
            node.bytes_sent += message.ByteSize()
            node.session.send(message)

    def _silent(self, question: _Question) -> list[str]:
        """Who is connected and has not answered."""
        return [
            name
            for name in question.messages
            if name not in question.answers
            and (node := self._registry.get(name)) is not None
            and node.session is not None
        ]

    def _look(self, question: _Question) -> None:
        enough = len(question.answers) >= question.enough
        if enough or not (question.absent or self._silent(question)):
            question.done.set()

    def hear(self, node: Node, request: pb.ControlRequest) -> None:
        """A node's answer; what was not asked is not heard."""
        question = self._question
        kind = request.WhichOneof("kind")
        if question is None or kind != question.kind or node.name not in question.messages:
            return
        try:
            session, answer = _read(request)
            if session != question.session:
                return  # to an earlier question
            self._check(node, question, answer)
        except WireError as error:
            self._failed(node, str(error))
            return
        question.answers[node.name] = answer
        self._look(question)

    def _check(self, node: Node, question: _Question, answer: PublicKeys | Shares) -> None:
        """Raise WireError where an answer would spoil the session for the others."""
        if isinstance(answer, PublicKeys):
            check_key(answer.mask)
            check_key(answer.seal)
            return
        assert self.roster is not None, "shares are asked for by roster"
        members, found = set(range(len(self.roster.names))), set(answer.shares)
        if question.kind == "secure_reveal":
            sizes = {len(share) for share in answer.shares.values()}
            fits = found <= members and sizes <= {SHARE_BYTES}
        else:
            fits = found == members - {self.roster.names.index(node.name)}
        if not fits:
            raise WireError("its shares are not those of the members of the session")

    def back(self, name: str) -> None:
        """A member is ready again: it is told what it missed."""
        question = self._question
        if message := self._routed.get(name):
            self._send(name, message)
        if question and name in question.messages and name not in question.answers:
            self._send(name, question.messages[name])

    def left(self) -> None:
        """A node is gone; perhaps it is not waited for."""
        if self._question is not None:
            self._look(self._question)


def _read(request: pb.ControlRequest) -> tuple[str, PublicKeys | Shares]:
    """The session that an answer is for, and what it says. Raises WireError."""
    match request.WhichOneof("kind"):
        case "secure_keys":
            return request.secure_keys.session, wire_secure.keys_from_wire(request.secure_keys)
        case "secure_shares":
            shares = wire_secure.shares_from_wire(request.secure_shares)
        case _:
            shares = wire_secure.shares_from_wire(request.secure_reveal)
    return shares.session, shares
