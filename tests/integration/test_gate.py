"""Nobody without valid credentials gets a byte of the model: a table of visitors at a real door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.hand_node import TOML, HandNode, joined, opened

from partsum.coordinator.access import AccessFolder
from partsum.coordinator.certs import make_authority, make_server
from partsum.coordinator.members import Kind
from partsum.coordinator.operator import Target, statuses
from partsum.coordinator.server import serve
from partsum.node import control
from partsum.node.client import Client
from partsum.node.client import UnreachableError as NodeUnreachableError
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared.credentials import Credentials, Role, read_credentials
from partsum.shared.errors import RefusedError
from partsum.shared.logs import set_up_logging
from partsum.shared.transport import SERVER_NAME, SERVER_OPTIONS, open_channel

DAY = 86400.0
NOT_IN = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAVAILABLE,  # TLS itself said no
    grpc.StatusCode.INTERNAL,  # gRPC's client, refused before its first message was on its way
}


class Issuer:
    """An access folder, and credentials of every kind of quality from it."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self.folder, self.kind = AccessFolder(path), kind
        self.folder.start()
        authority = make_authority(time.time())
        self.folder.keep("authority", authority)
        self.folder.keep("server", make_server(authority, (), time.time(), 9))

    def give(
        self,
        name: str,
        role: Role = "node",
        kind: Kind | None = None,
        ago: float = 0.0,
        days: int = 9,
        register: bool = True,
    ) -> Credentials:
        """What the commands give, as if given some seconds ago."""
        then = time.time() - ago
        key, made = self.folder.make(
            kind or self.kind, name, role, then, days, secrets.token_bytes(32)
        )
        if register:
            with self.folder.changing() as members:
                members.give(name, role, key)
        return self.written(made)

    def written(self, made: Credentials) -> Credentials:
        """As a node reads them."""
        path = self.folder.path / f"{made.name}-{len(list(self.folder.path.iterdir()))}.toml"
        path.write_text(made.text())
        return read_credentials(path)

    def rotate(self, name: str, grace: float, ago: float) -> Credentials:
        key, made = self.folder.make(
            self.kind, name, "node", time.time() - ago, 9, secrets.token_bytes(32)
        )
        with self.folder.changing() as members:
            members.rotate(name, key, grace)
        return self.written(made)

    def revoke(self, name: str) -> None:
        with self.folder.changing() as members:
            members.revoke(name, self.kind)


@dataclass
class Visitor:
    """Somebody who comes with these credentials, says this name, and tries the calls of a role."""

    what: str
    credentials: Credentials | None
    name: str
    tries: Literal["node", "operator", "both"]
    sentence: str  # that it is told; empty lets it in


@dataclass
class Door:
    """A served run."""

    address: str
    issuer: Issuer

    def channel(self, credentials: Credentials | None) -> grpc.aio.Channel:
        return open_channel(self.address, credentials, [("grpc.use_local_subchannel_pool", 1)])


def at_the_door(
    folder: Path, issuer: Issuer, test: Callable[[Door], Awaitable[None]], server: str
) -> None:
    """Serve a run that asks for credentials, and let the test come to it."""
    auth = {"token": "tokens", "certificate": "certificates"}[issuer.kind]
    asks = f'auth = "{auth}", access = "{issuer.folder.path}", {server}, port = 0'
    text = TOML.replace("server = {{ port = 0", f"server = {{{{ {asks}")
    text = text.replace("heartbeat_seconds = 5.0", "heartbeat_seconds = 60.0, return_seconds = 0.1")

    async def main() -> None:
        serving = asyncio.create_task(serve(run))
        while not (address := run.store.fact("address")):
            assert not serving.done(), serving.exception()
            await asyncio.sleep(0.01)
        try:
            await test(Door(str(address), issuer))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    with opened(folder, text) as run:
        asyncio.run(main())


async def hello(name: str) -> AsyncIterator[pb.ControlRequest]:
    yield control.hello(name, "1", "test")


async def words(door: Door, visitor: Visitor) -> str:
    """What the real client of that role tells its user; empty where it is let in.

    Dials again as a node does: a refusal that is faster than the call's first message can end as
    an internal error of gRPC's client.
    """
    for _ in range(3):
        with contextlib.suppress(NodeUnreachableError):
            return await words_once(door, visitor)
    return await words_once(door, visitor)


async def words_once(door: Door, visitor: Visitor) -> str:
    try:
        if visitor.tries == "operator":
            async for _ in statuses(Target(door.address, None, visitor.credentials)):
                return ""
        client = Client(door.address, visitor.name, credentials=visitor.credentials)
        await client.dial()
        try:
            async for message in client.control(hello(visitor.name)):
                return message.reason if isinstance(message, control.Refused) else ""
        finally:
            await client.close()
    except RefusedError as error:
        return str(error)
    raise AssertionError(f"{visitor.what}: neither in nor out")


async def loot(door: Door, visitor: Visitor, digest: str) -> None:
    """Try every call; each must be refused, and no byte of a blob may come."""
    async with door.channel(visitor.credentials) as channel:
        node, operator = rpc.CoordinatorServiceStub(channel), rpc.OperatorServiceStub(channel)
        offer = pb.OfferRequest(node=visitor.name, update=pb.Update())
        pull = pb.PullRequest(node=visitor.name, digest=digest)

        async def push() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)

        async def answered(call: Any) -> object:
            return await call

        calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "node": [
                lambda: node.Pull(pull).read(),
                lambda: node.Control(hello(visitor.name)).read(),
                lambda: answered(node.Offer(offer)),
                lambda: answered(node.Push(push())),
            ],
            "operator": [
                lambda: operator.Watch(pb.WatchRequest()).read(),
                lambda: answered(operator.Stop(pb.StopRequest())),
            ],
        }
        for call in calls.get(visitor.tries) or [*calls["node"], *calls["operator"]]:
            answer = await asyncio.gather(asyncio.wait_for(call(), 10), return_exceptions=True)
            match answer[0]:
                case grpc.aio.AioRpcError() as error:
                    assert error.code() in NOT_IN, (visitor, error)
                case pb.ControlResponse() as said:
                    assert said.WhichOneof("kind") == "refused", (visitor, said)
                case other:
                    raise AssertionError(f"it came in: {visitor}, {other!r}")


async def come_in_turn(door: Door, right: Credentials, visitors: list[Visitor]) -> None:
    """Each visitor of the table, while a right node holds an assignment."""
    async with door.channel(right) as channel:
        good = HandNode(rpc.CoordinatorServiceStub(channel), door.issuer.folder.path, right.name)
        cluster = (await joined(good)).cluster
        for visitor in visitors:
            said = await words(door, visitor)
            assert visitor.sentence in said, f"{visitor.what}: {said}"
            assert bool(said) == bool(visitor.sentence), f"{visitor.what}: {said}"
            if visitor.sentence:
                await loot(door, visitor, cluster.digest)
        request = pb.PullRequest(node=right.name, digest=cluster.digest)
        blobs = [response async for response in good.stub.Pull(request)]
        assert sum(len(response.chunk.data) for response in blobs) == cluster.size_bytes


def table(issuer: Issuer, other: Issuer, right: Credentials) -> list[Visitor]:
    """Who comes, and what they are told; an empty sentence lets them in."""
    kind = issuer.kind
    operator = issuer.give("boss", "operator")
    issuer.give("gone")
    gone = issuer.give("revoked")
    issuer.revoke("revoked")
    old, older = issuer.give("rotated", ago=100), issuer.give("stale", ago=100)
    new = issuer.rotate("rotated", grace=3600.0, ago=50)
    issuer.rotate("stale", grace=10.0, ago=50)
    late = issuer.give("late", ago=3 * DAY, days=1)
    unknown = issuer.give("unknown", register=False)
    barred = issuer.give("barred")
    forged = other.give("good").model_copy(update={"authority": right.authority})
    forged = other.written(forged)
    expired = {"token": "the token of node late has expired", "certificate": "it is too old"}
    return [
        Visitor("in the clear", None, "good", "both", "asks for credentials"),
        Visitor("of another coordinator", other.give("x"), "x", "both", "not the one that these"),
        Visitor(
            "not registered", unknown, "unknown", "both", f"{kind} is not in the coordinator's"
        ),
        Visitor("revoked", gone, "revoked", "both", f"the {kind} of node revoked was revoked"),
        Visitor("after its grace", older, "stale", "both", "of node stale has expired"),
        Visitor("expired", late, "late", "both", expired[kind]),
        Visitor(
            "not allowed here", barred, "barred", "both", "not among those that this run allows"
        ),
        Visitor("forged", forged, "good", "both", FORGED[kind]),
        Visitor("operator as node", operator, "boss", "node", "boss has the role operator"),
        Visitor("node as operator", right, "good", "operator", "good has the role node"),
        Visitor("in another's name", new, "good", "node", "which cannot speak for 'good'"),
        Visitor("within its grace", old, "rotated", "node", ""),
        Visitor("rotated", new, "rotated", "node", ""),
        Visitor("operator", operator, "boss", "operator", ""),
    ]


FORGED = {
    "token": "this token is not in the coordinator's register",
    "certificate": "another authority signed it",
}


@pytest.mark.parametrize("kind", ["token", "certificate"])
def test_nobody_gets_in_without_the_right_credentials_and_all_are_told_why(
    tmp_path: Path, kind: Kind
) -> None:
    issuer, other = Issuer(tmp_path / "access", kind), Issuer(tmp_path / "other", kind)
    right = issuer.give("good")
    visitors = table(issuer, other, right)
    mixed = issuer.give("mixed", kind="certificate" if kind == "token" else "token")
    asks = "this coordinator asks for a token" if kind == "token" else "asks for a certificate"
    visitors.append(Visitor("the other kind", mixed, "mixed", "both", asks))

    async def test(door: Door) -> None:
        await come_in_turn(door, right, visitors)
        async with door.channel(right) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    allowed = 'calls_per_second = 1e4, allow = ["good", "rotated", "revoked", "stale", "late"]'
    at_the_door(tmp_path, issuer, test, allowed)


def test_a_node_is_cut_off_within_a_heartbeat_of_its_revocation_and_others_stay(
    tmp_path: Path,
) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    thief, good = issuer.give("thief"), issuer.give("good")

    async def test(door: Door) -> None:
        async with door.channel(thief) as one, door.channel(good) as two:
            stolen = HandNode(rpc.CoordinatorServiceStub(one), tmp_path, "thief")
            honest = HandNode(rpc.CoordinatorServiceStub(two), tmp_path, "good")
            cluster = (await joined(stolen)).cluster
            honest.hello()
            await honest.heard("welcome")
            issuer.revoke("thief")
            request = pb.PullRequest(node="thief", digest=cluster.digest)
            with pytest.raises(grpc.aio.AioRpcError, match="was revoked") as caught:
                await stolen.stub.Pull(request).read()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            stolen.outbox.put_nowait(control.heartbeat())  # an honest node's next one
            with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
                print(await asyncio.wait_for(anext(stolen.answers), 10))
            honest.ready()
            await honest.heard("assignment")

    at_the_door(tmp_path, issuer, test, "calls_per_second = 1e4")


def test_a_running_node_takes_its_new_credentials_when_the_old_ones_end(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    old = issuer.give("good")

    async def test(door: Door) -> None:
        client = Client(door.address, "good", credentials=old)
        outbox: asyncio.Queue[pb.ControlRequest] = asyncio.Queue()

        async def outgoing() -> AsyncIterator[pb.ControlRequest]:
            while (request := await outbox.get()).WhichOneof("kind") != "ready":
                yield request

        await client.dial()
        outbox.put_nowait(control.hello("good", "1", "test"))
        messages = client.control(outgoing())
        assert isinstance(await anext(messages), control.Welcome)
        old.path.write_text(issuer.rotate("good", grace=0.0, ago=0.0).text())
        outbox.put_nowait(control.heartbeat())
        with pytest.raises(NodeUnreachableError, match="there are newer credentials to show"):
            await asyncio.wait_for(anext(messages), 10)
        outbox.put_nowait(pb.ControlRequest(ready=pb.Ready()))
        await client.dial()
        welcome = await anext(client.control(hello("good")))
        assert isinstance(welcome, control.Welcome)
        await client.close()

    at_the_door(tmp_path, issuer, test, "calls_per_second = 1e4")


def test_a_revoked_node_that_keeps_silent_is_told_nothing_any_more(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    thief = issuer.give("thief")

    async def test(door: Door) -> None:
        async with door.channel(thief) as channel:
            stolen = HandNode(rpc.CoordinatorServiceStub(channel), tmp_path, "thief")
            stolen.hello()
            await stolen.heard("welcome")
            stolen.ready()
            issuer.revoke("thief")
            with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
                print(await asyncio.wait_for(anext(stolen.answers), 10))

    at_the_door(tmp_path, issuer, test, "calls_per_second = 1e4")


def test_who_cannot_read_the_register_lets_nobody_in_until_it_can(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    good = issuer.give("good")
    register = tmp_path / "access" / "members.json"

    async def test(door: Door) -> None:
        text = register.read_text()
        register.write_text("{")
        visitor = Visitor("", good, "good", "node", "")
        with pytest.raises(NodeUnreachableError, match="cannot read its register"):
            await words(door, visitor)
        register.write_text(text)
        assert await words(door, visitor) == ""

    at_the_door(tmp_path, issuer, test, "calls_per_second = 1e4")


def test_who_calls_too_often_is_refused_for_a_while_and_who_talks_too_much_is_heard_slowly(
    tmp_path: Path,
) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    loud, good = issuer.give("loud"), issuer.give("good")

    async def test(door: Door) -> None:
        async with door.channel(loud) as channel, door.channel(good) as other:
            node = HandNode(rpc.CoordinatorServiceStub(channel), tmp_path, "loud")
            assignment = await joined(node)
            for _ in range(230):  # 5 seconds' worth may come at once: 200
                node.outbox.put_nowait(control.heartbeat())
            start = time.monotonic()
            node.outbox.put_nowait(control.failed(assignment.id, "too loud"))
            await node.heard("assignment")
            assert time.monotonic() - start > 0.5
            calls = [node.stub.Offer(pb.OfferRequest(node="loud")) for _ in range(150)]
            said = [str(error) for error in await asyncio.gather(*calls, return_exceptions=True)]
            assert any("more than 40 calls a second" in sentence for sentence in said)
            quiet = HandNode(rpc.CoordinatorServiceStub(other), tmp_path, "good")
            quiet.hello()
            await quiet.heard("welcome")

    at_the_door(tmp_path, issuer, test, "calls_per_second = 40.0")


def test_a_member_has_a_few_calls_open_at_once_and_a_stranger_none(tmp_path: Path) -> None:
    """Each that is not read costs memory and an open file."""
    issuer = Issuer(tmp_path / "access", "token")
    wide, good = issuer.give("wide"), issuer.give("good")

    async def silent() -> AsyncIterator[pb.PushRequest]:
        await asyncio.sleep(60)
        yield pb.PushRequest()

    async def test(door: Door) -> None:
        async with door.channel(wide) as channel, door.channel(good) as other:
            stub = rpc.CoordinatorServiceStub(channel)
            calls = [asyncio.create_task(_ending(stub.Push(silent()))) for _ in range(20)]
            done, open_still = await asyncio.wait(calls, timeout=2.0)
            assert [call.result() for call in done] == ["wide has 16 calls open already"] * 4
            node = HandNode(rpc.CoordinatorServiceStub(other), tmp_path, "good")
            node.hello()
            await node.heard("welcome")
            for call in open_still:
                call.cancel()
            await asyncio.wait(open_still)
            health = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health.Watch(health_pb2.HealthCheckRequest(service="x" * 1000)).read()
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    at_the_door(tmp_path, issuer, test, "calls_per_second = 200.0")


def test_a_stranger_cannot_fill_the_log_with_bytes_that_are_no_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read before anybody is asked who is there, so no rate limit counts them."""
    issuer = Issuer(tmp_path / "access", "token")
    authority = issuer.give("good").authority.encode()
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with own_logging():

        async def test(door: Door) -> None:
            tls = grpc.ssl_channel_credentials(authority)
            async with grpc.aio.secure_channel(door.address, tls, options=options) as channel:
                offer: Any = channel.unary_unary("/partsum.protos.v1.CoordinatorService/Offer")
                for _ in range(50):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await offer(b"no message")

        at_the_door(tmp_path, issuer, test, "calls_per_second = 200.0")
    said = capsys.readouterr().err
    assert said.count("DecodeError") == 1
    assert "Traceback" not in said


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """As a command logs, and then as pytest does again."""
    loggers = [logging.getLogger(name) for name in ("partsum", "grpc")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    set_up_logging()
    try:
        yield
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)


async def _ending(call: Any) -> str:
    """Why a call was refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.details())
    return ""


def test_who_fails_too_often_is_not_even_told_why(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    wrong, good = issuer.give("wrong", register=False), issuer.give("good")

    async def test(door: Door) -> None:
        async with door.channel(wrong) as channel:
            stub = rpc.CoordinatorServiceStub(channel)
            codes = []
            for _ in range(30):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Offer(pb.OfferRequest(node="wrong"))
                codes.append(caught.value.code())
            assert set(codes[:20]) == {grpc.StatusCode.UNAUTHENTICATED}
            assert codes[-1] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await words(door, Visitor("", good, "good", "node", "")) == ""  # same address

    at_the_door(tmp_path, issuer, test, "calls_per_second = 200.0")


def test_a_node_cannot_pose_as_the_coordinator(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "certificate")
    node, thief = issuer.give("good"), issuer.give("partsum-coordinator")

    async def main() -> None:
        pair = (str(thief.key).encode(), str(thief.certificate).encode())
        server = grpc.aio.server(options=SERVER_OPTIONS)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        await server.start()
        door = Door(f"127.0.0.1:{port}", issuer)
        said = await words(door, Visitor("", node, "good", "node", ""))
        assert "is not the one that these credentials are for" in said
        await server.stop(0)

    asyncio.run(main())


def test_credentials_never_go_to_a_server_that_speaks_no_tls(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "token")
    node = issuer.give("good")

    async def main() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        said = await words(Door(f"127.0.0.1:{port}", issuer), Visitor("", node, "good", "node", ""))
        assert "does not speak TLS, so no credentials go there" in said
        await server.stop(0)

    asyncio.run(main())


def test_a_tunnel_with_nobody_at_its_end_is_waited_for(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "access", "certificate")
    node = issuer.give("good")

    async def main() -> None:
        def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        tunnel = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = tunnel.sockets[0].getsockname()[1]
        for credentials in (node, None):
            visitor = Visitor("", credentials, "good", "node", "")
            with pytest.raises(NodeUnreachableError):
                await words(Door(f"127.0.0.1:{port}", issuer), visitor)
        tunnel.close()

    asyncio.run(main())
