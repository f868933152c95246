"""Who is in the register, what its files give away, and how often one may come."""

from __future__ import annotations

import argparse
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.coordinator import issue
from partsum.coordinator.access import AccessFolder, open_access, write_secret
from partsum.coordinator.certs import expires
from partsum.coordinator.members import (
    Key,
    Kind,
    Members,
    certificate_digest,
    parse_members,
    token_digest,
)
from partsum.coordinator.operator import target_of
from partsum.coordinator.rates import RateLimits
from partsum.node.commands import _check, add_commands
from partsum.shared.config import ServerConfig
from partsum.shared.credentials import load_credentials
from partsum.shared.errors import ConfigError, RefusedError, StateError

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccessFolder:
    monkeypatch.chdir(tmp_path)
    issue.init(Path("access"), ["train.example", "192.0.2.7"])
    return AccessFolder(tmp_path / "access")


def key(token: str, issued: float = 0.0, expires: float = 100 * HOUR) -> Key:
    return Key("token", token_digest(token), issued, expires)


def test_a_rotated_token_holds_for_its_grace_and_a_revoked_one_not_a_moment() -> None:
    members = Members()
    members.give("a", "node", key("one"))
    members.rotate("a", key("two", issued=HOUR), grace_seconds=2 * HOUR)
    now = 2 * HOUR
    assert members.find("token", token_digest("one"), now)[0].name == "a"
    assert members.find("token", token_digest("two"), now)[0].name == "a"
    with pytest.raises(RefusedError, match="the token of node a has expired"):
        members.find("token", token_digest("one"), 4 * HOUR)
    with pytest.raises(RefusedError, match="not in the coordinator's register"):
        members.find("certificate", token_digest("two"), now)
    members.revoke("a", "token")
    for token in ("one", "two"):
        with pytest.raises(RefusedError, match="was revoked"):
            members.find("token", token_digest(token), now)
    members.give("a", "node", key("three", issued=now))
    assert members.find("token", token_digest("three"), now)[0].name == "a"


def test_rotating_never_makes_a_token_hold_longer() -> None:
    members = Members()
    members.give("a", "node", key("one", expires=2 * HOUR))
    members.rotate("a", key("two", issued=HOUR), grace_seconds=99 * HOUR)
    with pytest.raises(RefusedError, match="has expired"):
        members.find("token", token_digest("one"), 3 * HOUR)


def test_a_name_is_given_once_in_one_role_and_only_if_it_is_one() -> None:
    members = Members()
    members.give("a", "node", key("one"))
    with pytest.raises(ConfigError, match="partsum tokens rotate a"):
        members.give("a", "node", key("two"))
    with pytest.raises(ConfigError, match="a is a node here already"):
        members.give("a", "operator", key("two"))
    for name in ("", "../a", "a b", "x" * 65, "-a"):
        with pytest.raises(ConfigError, match="may hold letters"):
            members.give(name, "node", key("two"))
    with pytest.raises(ConfigError, match="nobody named 'b' has a token"):
        members.revoke("b", "token")


def test_the_register_comes_back_from_its_file_and_damage_is_said() -> None:
    members = Members()
    members.give("a", "node", key("one"))
    again = parse_members(members.text())
    assert list(again) == list(members)
    late = members.text().replace("360000.0", '"never"')  # it would be compared with the time
    assert late != members.text()
    for damaged in ("", "{}", '{"members": [{"name": "a"}]}', "[1]", late):
        with pytest.raises(StateError, match="register of members is damaged"):
            parse_members(damaged)


def test_files_of_secrets_are_for_their_owner_and_the_register_holds_none(
    folder: AccessFolder,
) -> None:
    issue.give(folder.path, "token", "a", "node", 9, None)
    issue.give(folder.path, "certificate", "b", "node", 9, None)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    files = [*folder.path.glob("*.*"), *Path().glob("*.credentials.toml")]
    assert len(files) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    a = load_credentials(Path("a.credentials.toml"), "node")
    b = load_credentials(Path("b.credentials.toml"), "node")
    assert a.token is not None
    assert b.certificate is not None
    assert len(a.token) > 43  # 256 bits in base64
    register = (folder.path / "members.json").read_text()
    assert a.token not in register
    assert a.token not in repr(a)
    assert str(b.key) not in repr(b)
    digests = {k["digest"] for m in json.loads(register)["members"] for k in m["keys"]}
    assert {token_digest(a.token), certificate_digest(b.certificate)} < digests
    assert expires(b.certificate) == pytest.approx(b.expires.timestamp(), abs=2)


def test_who_made_the_file_of_a_secret_beforehand_does_not_read_it(tmp_path: Path) -> None:
    """In a folder like /tmp somebody may guess its draft's name, and keep it open."""
    draft = tmp_path / f".secret.{os.getpid()}"
    with open(draft, "w+") as theirs:
        write_secret(tmp_path / "secret", "precious")
        assert theirs.read() == ""
    assert (tmp_path / "secret").read_text() == "precious"


def test_credentials_are_never_written_over_something_else(folder: AccessFolder) -> None:
    Path("a.credentials.toml").write_text("precious")
    with pytest.raises(ConfigError, match="exists; name another file with --out"):
        issue.give(folder.path, "token", "a", "node", 9, None)
    assert folder.members().get("a") is None  # and nobody is registered without a file
    issue.give(folder.path, "token", "a", "node", 9, Path("other.toml"))
    assert load_credentials(Path("other.toml"), "node").name == "a"


def test_a_second_init_keeps_authority_and_members(folder: AccessFolder) -> None:
    issue.give(folder.path, "token", "a", "node", 9, None)
    before = {name: (folder.path / name).read_bytes() for name in ("authority.crt", "server.crt")}
    old = load_credentials(folder.operator, "operator")
    issue.init(folder.path, [])
    after = {name: (folder.path / name).read_bytes() for name in before}
    assert after["authority.crt"] == before["authority.crt"]
    assert after["server.crt"] != before["server.crt"]
    member = folder.members().get("a")
    assert member is not None
    assert member.holds("token", 0.0)
    with pytest.raises(RefusedError, match="was revoked"):
        folder.members().find("token", token_digest(str(old.token)), 0.0)


def test_what_is_no_credentials_file_is_refused_without_quoting_it(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    for text in ('token = "hush', 'token = "hush"\n', 'name = "a"\nrole = "king"\ntoken = "hush"'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is not a credentials file") as caught:
            load_credentials(path, "node")
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_only_names_get_credentials_of_either_kind_the_longest_too(folder: AccessFolder) -> None:
    kinds: tuple[Kind, ...] = ("token", "certificate")
    for kind in kinds:
        for name in ("", "../a", "-a", "x" * 65):
            with pytest.raises(ConfigError, match="may hold letters"):
                issue.give(folder.path, kind, name, "operator", 9, None)
        issue.give(folder.path, kind, "x" * 64, "operator", 9, Path(f"{kind}.toml"))
        assert load_credentials(Path(f"{kind}.toml"), "operator").name == "x" * 64


def test_credentials_that_others_can_read_are_warned_of(
    folder: AccessFolder, caplog: pytest.LogCaptureFixture
) -> None:
    issue.give(folder.path, "token", "a", "node", 9, None)
    path = Path("a.credentials.toml")
    load_credentials(path, "node")
    assert not caplog.records
    path.chmod(0o640)
    load_credentials(path, "node")
    assert "do: chmod 600 a.credentials.toml" in caplog.text


def test_a_node_is_named_by_its_credentials_and_takes_no_operators(folder: AccessFolder) -> None:
    issue.give(folder.path, "token", "a", "node", 9, None)
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    command = ["node", "--coordinator", "127.0.0.1:1", "--credentials"]
    other = parser.parse_args([*command, "a.credentials.toml", "--name", "b"])
    with pytest.raises(ConfigError, match="are those of a; leave out --name"):
        _check(other)
    boss = parser.parse_args([*command, str(folder.operator)])
    with pytest.raises(ConfigError, match="give local the role operator; the role node"):
        _check(boss)
    with pytest.raises(ConfigError, match="give a the role node; the role operator"):
        target_of(Path(), "127.0.0.1:1", Path("a.credentials.toml"))


def test_a_folder_that_cannot_serve_is_answered_with_the_command_that_mends_it(
    folder: AccessFolder,
) -> None:
    nowhere = ServerConfig(auth="tokens", access="nowhere")
    with pytest.raises(StateError, match="partsum certs init --folder"):
        open_access(nowhere, 0.0)
    config = ServerConfig(auth="tokens", access="access", allow=["a"])
    end = expires(folder.certificate("server"))
    with pytest.raises(StateError, match="has expired; make another with: partsum certs init"):
        open_access(config, end + 1)
    (folder.path / "server.key").chmod(0o644)
    access = open_access(config, end - HOUR)
    assert access is not None
    advice = " ".join(access.advice(config, end - HOUR))
    assert "chmod go=" in advice
    assert "expires in 0 days" in advice
    assert "no node has a valid token" in advice
    assert "server.allow names a, which has no valid token" in advice
    assert open_access(ServerConfig(), 0.0) is None


@given(st.lists(st.floats(0, 100), max_size=300))
def test_no_order_of_calls_gets_more_through_than_the_rate_and_its_burst(
    times: list[float],
) -> None:
    limits = RateLimits(per_second=2.0, burst=5.0)
    taken = [now for now in sorted(times) if limits.take("a", now) == 0.0]
    for start in taken:
        for width in (0.0, 1.0, 10.0):
            count = sum(start <= now <= start + width for now in taken)
            assert count <= 5 + 2 * width + 1e-6
    if times:
        assert limits.take("b", max(times)) == 0.0  # others are not held up


def test_limits_remember_a_bounded_number_of_callers() -> None:
    limits = RateLimits(per_second=1.0, burst=1.0, keys=10)
    for caller in range(1000):
        assert limits.take(str(caller), 0.0) == 0.0
    assert len(limits._full_at) == 10
    assert limits.take("999", 0.0) == pytest.approx(1.0)
    assert limits.take("999", 1.0) == 0.0
