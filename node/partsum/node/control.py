"""The control stream's messages as plain values, and their way from and to protobuf."""

from __future__ import annotations

import json
from dataclasses import dataclass

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire
from partsum.shared.errors import WireError
from partsum.shared.messages import Assignment, NodeProfile, Progress, TaskSpec

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
class Quarantined:
    """You get no more work in this run."""

    reason: str


Incoming = Welcome | Assignment | Cancel | Refused | Finished | Quarantined


def incoming(response: pb.ControlResponse) -> Incoming:
    """What the coordinator said. Raises WireError for what this version does not know."""
    match response.WhichOneof("kind"):
        case "welcome":
            return _welcome(response.welcome)
        case "assignment":
            return wire.assignment_from_wire(response.assignment)
        case "cancel":
            return Cancel(response.cancel.assignment, response.cancel.reason)
        case "refused":
            return Refused(response.refused.reason, response.refused.retry)
        case "finished":
            return Finished(response.finished.reason)
        case "quarantined":
            return Quarantined(response.quarantined.reason)
    raise WireError("the coordinator said something unknown; update partsum on this node")


def _welcome(welcome: pb.Welcome) -> Welcome:
    try:
        options = json.loads(welcome.task_options or "{}")
    except ValueError as error:
        raise WireError(f"the task's options are not JSON: {welcome.task_options!r}") from error
    if not isinstance(options, dict) or not welcome.heartbeat_seconds > 0:
        raise WireError(f"a welcome that makes no sense: {welcome}")
    return Welcome(
        run=welcome.run,
        task=TaskSpec(welcome.task, options),
        heartbeat_seconds=welcome.heartbeat_seconds,
        stream_samples=welcome.stream_samples,
    )


# ---- what the node says -------------------------------------------------------------------------


def hello(node: str, instance: str, version: str) -> pb.ControlRequest:
    """I am this node."""
    return pb.ControlRequest(
        hello=pb.Hello(node=node, instance=instance, protocol=wire.PROTOCOL, version=version)
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


def failed(assignment_id: str, reason: str) -> pb.ControlRequest:
    """I cannot do this assignment."""
    return pb.ControlRequest(failed=pb.Failed(assignment=assignment_id, reason=reason))
