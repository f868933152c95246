"""Who may look at the live page: host names on loopback, operators' tokens beyond it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from partsum.coordinator import issue
from partsum.coordinator.access import open_access
from partsum.coordinator.live.guard import Guard, TurnedAway
from partsum.shared.cli import main
from partsum.shared.config import ServerConfig
from partsum.shared.credentials import load_credentials

LOOPBACK = Guard(None, ServerConfig())
WIDE = {"metrics_host": "0.0.0.0"}


def request(host: str = "", token: str = "", cookie: str = "", port: int = 9464) -> dict[str, Any]:
    environ = {"HTTP_HOST": host, "REMOTE_ADDR": "192.0.2.1", "SERVER_PORT": str(port)}
    if token:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    if cookie:
        environ["HTTP_COOKIE"] = cookie.partition(";")[0]
    return environ


def refused(guard: Guard, environ: dict[str, Any]) -> str:
    with pytest.raises(TurnedAway) as caught:
        guard.check(environ)
    return caught.value.status


class Door:
    """A guard beyond loopback, with a register in this folder."""

    def __init__(self, auth: str = "tokens") -> None:
        issue.init(Path("access"), [])
        for role, name in (("operator", "eve"), ("node", "gpu1")):
            assert main(["tokens", role, name]) == 0
        self.now = 2e9
        config = ServerConfig.model_validate({"auth": auth, **WIDE})
        access = open_access(config, 0.0)
        self.counted: list[str] = []
        self.guard = Guard(access, config, self.counted.append, lambda: self.now)
        self.again = Guard(access, config, now=lambda: self.now)  # after a restart

    def token(self, name: str, role: Any = "operator") -> str:
        return load_credentials(Path(f"{name}.credentials.toml"), role).token or ""


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Door:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: 2e9)
    return Door(getattr(request, "param", "tokens"))


@pytest.mark.parametrize(
    "host", ["localhost:9464", "127.0.0.1", "127.0.0.1:80", "[::1]:9464", "LOCALHOST", "localhost."]
)
def test_on_loopback_who_asks_for_this_host_sees_the_page(host: str) -> None:
    LOOPBACK.check(request(host))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "", "localhost.evil.example", "192.0.2.7:9464"]
)
def test_on_loopback_a_name_that_was_pointed_here_does_not(host: str) -> None:
    assert refused(LOOPBACK, request(host)).startswith("421")


def test_an_insecure_coordinator_shows_its_page_to_addresses_and_its_own_name() -> None:
    guard = Guard(None, ServerConfig.model_validate({"insecure": True, **WIDE}))
    for host in ("192.0.2.7:9464", f"{socket.gethostname()}:9464", "localhost"):
        guard.check(request(host))
    assert refused(guard, request("evil.example")).startswith("421")


def test_beyond_loopback_without_a_register_nobody_sees_it_and_is_told_what_to_do() -> None:
    guard = Guard(None, ServerConfig.model_validate(WIDE))
    with pytest.raises(TurnedAway, match=r'set auth = "tokens".*ssh -L') as caught:
        guard.check(request("192.0.2.7", token="anything"))
    assert caught.value.status.startswith("403")
    assert not caught.value.login


@pytest.mark.parametrize("door", ["tokens", "certificates"], indirect=True)
def test_beyond_loopback_an_operator_shows_a_token(door: Door) -> None:
    door.guard.check(request(token=door.token("eve")))
    assert refused(door.guard, request()).startswith("401")
    assert refused(door.guard, request(token="partsum-wrong")).startswith("401")
    assert refused(door.guard, request(token=door.token("gpu1", "node"))).startswith("403")
    assert door.counted == ["UNAUTHENTICATED", "PERMISSION_DENIED"]
    assert "in the clear" in door.guard.advice()


def test_a_cookie_stands_for_the_token_it_was_given_for_and_outlives_a_restart(door: Door) -> None:
    given = door.guard.cookie(request(), door.token("eve"))
    assert "HttpOnly" in given
    assert "SameSite=Strict" in given
    assert door.token("eve") not in given
    for guard in (door.guard, door.again):
        guard.check(request(cookie=given))
    assert main(["tokens", "revoke", "eve"]) == 0
    assert refused(door.guard, request(cookie=given)).startswith("401")


def test_a_cookie_that_is_old_forged_or_of_another_port_is_none(door: Door) -> None:
    given = door.guard.cookie(request(), door.token("eve")).partition(";")[0]
    digest, until, seal = given.partition("=")[2].split(".")
    name = given.partition("=")[0]
    for wrong in (
        f"{name}={digest}.{int(until) + 1}.{seal}",
        f"{name}={'0' * 64}.{until}.{seal}",
        f"{name}={digest}.{until}",
        f"{name}=...",
        f'{name}="{digest}',
        f'{name}="a.99999999999.\u00e9"',
        "=;=;\x00",
    ):
        assert refused(door.guard, request(cookie=wrong)).startswith("401"), wrong
    assert refused(door.guard, request(cookie=given, port=9465)).startswith("401")
    door.now += 13 * 3600
    assert refused(door.guard, request(cookie=given)).startswith("401")


def test_who_tries_one_token_after_the_other_has_to_wait(door: Door) -> None:
    said = [refused(door.guard, request(token=f"partsum-{k}"))[:3] for k in range(30)]
    assert said[0] == "401"
    assert said[-1] == "429"
    door.guard.check(request(token=door.token("eve")))  # a right one is let in all the same


def test_a_cookie_for_a_wrong_token_is_not_given(door: Door) -> None:
    with pytest.raises(TurnedAway) as caught:
        door.guard.cookie(request(), "partsum-wrong")
    assert caught.value.login
    with pytest.raises(TurnedAway, match="nobody needs to log in here"):
        LOOPBACK.cookie(request("localhost"), "x")
