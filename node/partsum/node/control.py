"""The control stream's messages as plain values, and their way from and to protobuf."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits, wire, wire_secure
from partsum.shared.errors import WireError
from partsum.shared.messages import Assignment, NodeProfile, Progress, TaskSpec
from partsum.shared.secure import Ask, PublicKeys, Roster, SecureOpen, Shares

# ---- what the coordinator says ------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """You are in; this is the run's task."""

    run: str
    task: TaskSpec
    heartbeat_seconds: float
    stream_samples: bool


@dataclass(frozen=True)
class Cancel:
    """Stop this assignment."""

    assignment_id: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """I will not have you, or, where ``retry``, not yet."""

    reason: str
    retry: bool


@dataclass(frozen=True)
class Finished:
    """There is no more work."""

    reason: str


@dataclass(frozen=True)
class GangMeet:
    """The members of this gang meet at this address."""

    gang: str
    address: str


@dataclass(frozen=True)
class Quarantined:
    """You get no more work in this run."""

    reason: str


Secure = SecureOpen | Roster | Shares | Ask
Incoming = Welcome | Assignment | Cancel | Refused | Finished | Quarantined | GangMeet | Secure


def incoming(response: pb.ControlResponse) -> Incoming:
    """What the coordinator said. Raises WireError for what this version does not know."""
    match response.WhichOneof("kind"):
        case "welcome":
            return _welcome(response.welcome)
        case "assignment":
            return wire.assignment_from_wire(response.assignment)
        case "cancel":
            return Cancel(
                limits.short(response.cancel.assignment, "an assignment's name"),
                limits.in_words(response.cancel.reason),
            )
        case "refused":
            return Refused(limits.in_words(response.refused.reason), response.refused.retry)
        case "finished":
            return Finished(limits.in_words(response.finished.reason))
        case "quarantined":
            return Quarantined(limits.in_words(response.quarantined.reason))
        case "gang_meet":
            return GangMeet(
                limits.short(response.gang_meet.gang, "a gang's name"),
                limits.short(response.gang_meet.address, "a gang's address"),
            )
        case "secure_open":
            return wire_secure.open_from_wire(response.secure_open)
        case "secure_roster":
            return wire_secure.roster_from_wire(response.secure_roster)
        case "secure_shares":
            return wire_secure.shares_from_wire(response.secure_shares)
        case "secure_ask":
            return wire_secure.ask_from_wire(response.secure_ask)
    raise WireError("the coordinator said something unknown; update partsum on this node")


def _welcome(welcome: pb.Welcome) -> Welcome:
    low, high = limits.BEAT_SECONDS
    return Welcome(
        run=limits.in_words(limits.short(welcome.run, "the run's name")),
        task=TaskSpec(limits.short(welcome.task, "the task's name"), _options(welcome)),
        heartbeat_seconds=limits.within(welcome.heartbeat_seconds, low, high, "heartbeat_seconds"),
        stream_samples=welcome.stream_samples,
    )


def _options(welcome: pb.Welcome) -> dict[str, Any]:
    """The task's options: what a config can hold, and nothing else."""
    text = limits.short(welcome.task_options, "the task's options", limits.OPTIONS_BYTES)
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise WireError(f"the task's options are not JSON: {text[:200]!r}") from error
    if not isinstance(options, dict) or not all(map(_is_option, options.values())):
        raise WireError(
            "the task's options are not an object of numbers, texts, truth values and lists of "
            f"whole numbers: {text[:200]!r}"
        )
    return options


def _is_option(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int) for item in value)
    return isinstance(value, int | float | str)


# ---- what the node says -------------------------------------------------------------------------


def hello(node: str, instance: str, version: str) -> pb.ControlRequest:
    """I am this node."""
    return pb.ControlRequest(
        hello=pb.Hello(
            node=node,
            instance=instance,
            protocol=wire.PROTOCOL,
            version=version,
            encodings=wire.ENCODINGS,
        )
    )


def ready(profile: NodeProfile) -> pb.ControlRequest:
    """I have the task; this is what I can do."""
    return pb.ControlRequest(
        ready=pb.Ready(
            device=profile.device,
            memory_bytes=profile.memory_bytes,
            gflops=profile.gflops,
            task_digest=profile.task_digest,
            data_digest=profile.data_digest,
            deepspeed=profile.deepspeed,
        )
    )


def heartbeat() -> pb.ControlRequest:
    """I live."""
    return pb.ControlRequest(heartbeat=pb.Heartbeat())


def progress(progress: Progress) -> pb.ControlRequest:
    """I train."""
    return pb.ControlRequest(
        progress=pb.Progress(
            assignment=progress.assignment_id,
            samples_done=progress.samples_done,
            loss=progress.loss,
            samples_per_second=progress.samples_per_second,
        )
    )


def failed(assignment_id: str, reason: str, gang: bool = False) -> pb.ControlRequest:
    """I cannot do this assignment; ``gang``: for another member's fault."""
    return pb.ControlRequest(failed=pb.Failed(assignment=assignment_id, reason=reason, gang=gang))


def gang_opened(gang: str, address: str) -> pb.ControlRequest:
    """The members of this gang can meet here."""
    return pb.ControlRequest(gang_opened=pb.GangOpened(gang=gang, address=address))


def secure_keys(session: str, keys: PublicKeys) -> pb.ControlRequest:
    """These are my public keys for this session."""
    return pb.ControlRequest(secure_keys=wire_secure.keys_to_wire(session, keys))


def secure_shares(sealed: Shares) -> pb.ControlRequest:
    """My secrets' shares, sealed for the other members."""
    return pb.ControlRequest(secure_shares=wire_secure.shares_to_wire(sealed))


def secure_reveal(opened: Shares) -> pb.ControlRequest:
    """My shares of what takes the masks off the sum."""
    return pb.ControlRequest(secure_reveal=wire_secure.shares_to_wire(opened))
