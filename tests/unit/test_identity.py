"""Nodes that are started alike take what is free of a folder of credentials; where they listen."""

from __future__ import annotations

import argparse
import logging
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from partsum.coordinator import issue
from partsum.node.commands import _check, _serve_metrics, add_commands
from partsum.node.identity import take_free
from partsum.node.metrics import NodeMetrics
from partsum.shared.errors import ConfigError, StateError

Ask = Callable[..., argparse.Namespace]


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    issue.init(Path("access"), [])
    return Path("access")


@pytest.fixture
def credentials(access: Path) -> Path:
    """Of three nodes, so named that the alphabet has another order than people."""
    folder = Path("credentials")
    folder.mkdir()
    for name in ("node10", "node2", "node1"):
        issue.give(access, "token", name, "node", 9, folder / f"{name}.credentials.toml")
    return folder


@pytest.fixture
def ask() -> Ask:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())

    def options(*flags: object) -> argparse.Namespace:
        return parser.parse_args(["node", "--coordinator", "127.0.0.1:1", *map(str, flags)])

    return options


def test_each_of_several_nodes_takes_credentials_that_no_other_uses(
    credentials: Path, ask: Ask, tmp_path: Path
) -> None:
    nodes = [ask("--credentials", credentials) for _ in range(3)]
    for options in nodes:
        _check(options)
    assert [options.name for options in nodes] == ["node1", "node2", "node10"]
    assert [options.credentials.name for options in nodes] == ["node1", "node2", "node10"]
    assert nodes[2].state.folder == tmp_path / "state" / "partsum" / "node10"
    late = ask("--credentials", credentials)
    with pytest.raises(StateError, match=r"use all credentials in credentials \(node1, node2, "):
        _check(late)
    nodes[1].state.close()
    _check(late)
    assert late.name == "node2"
    assert late.state.instance == nodes[1].state.instance  # the coordinator knows it again
    for options in (nodes[0], nodes[2], late):
        options.state.close()


def test_a_named_node_takes_its_own_credentials_from_the_folder_or_none(
    credentials: Path, tmp_path: Path
) -> None:
    shown, state = take_free(credentials, tmp_path / "state", "node2")
    assert shown.name == "node2"
    with pytest.raises(StateError, match=r"\(node2\)"):
        take_free(credentials, tmp_path / "state", "node2")
    state.close()
    with pytest.raises(ConfigError, match="'node7': the credentials in credentials are those of"):
        take_free(credentials, tmp_path / "state", "node7")


def test_a_folder_that_cannot_be_used_is_said_to_be_so(
    access: Path, credentials: Path, ask: Ask, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"holds no \*\.credentials\.toml"):
        _check(ask("--credentials", empty))
    with pytest.raises(ConfigError, match="Leave --state-dir out"):
        _check(ask("--credentials", credentials, "--state-dir", "s"))
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StateError, match="cannot use the state folder"):
        _check(ask("--credentials", credentials))
    (tmp_path / "state").unlink()
    issue.give(access, "token", "boss", "operator", 9, credentials / "a.credentials.toml")
    with pytest.raises(ConfigError, match="give boss the role operator; the role node"):
        _check(ask("--credentials", credentials))


def test_credentials_can_be_printed_with_all_that_is_said_elsewhere(
    access: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    for again in (False, True):
        if again:
            issue.rotate(access, "token", "gpu1", 9, 0, Path("-"))
        else:
            issue.give(access, "token", "gpu1", "node", 9, Path("-"))
        printed, said = capsys.readouterr()
        (tmp_path / "gpu1.credentials.toml").write_text(printed)
        (tmp_path / "gpu1.credentials.toml").chmod(0o600)
        shown, state = take_free(tmp_path, tmp_path / "state", None)
        state.close()
        assert shown.name == "gpu1"
        assert str(shown.token) not in said
        assert "--credentials FILE" in said
    assert not Path("-").exists()


class Healthy:
    def health(self) -> tuple[bool, str]:
        return True, "connected"


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", r"\[::1\]")])
def test_a_nodes_metrics_listen_where_they_are_told_to(
    host: str, shown: str, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    options = ask("--metrics-host", host, "--metrics-port", "0")
    node = cast(Any, Healthy())
    with caplog.at_level(logging.INFO, "partsum"):
        server = _serve_metrics(options, NodeMetrics(), node)
    try:
        (url,) = re.findall(rf"http://{shown}:\d+/metrics", caplog.text)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"partsum_node_connected" in answer.read()
    finally:
        server.close()


def test_metrics_stay_on_loopback_unless_somebody_says_otherwise(ask: Ask) -> None:
    assert ask().metrics_host == "127.0.0.1"
