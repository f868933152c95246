"""A run whose nodes show credentials: the commands, the daemons, and what their logs give away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from partsum.shared.cli import main
from partsum.shared.credentials import load_credentials

if TYPE_CHECKING:
    from tests.cluster import Cluster

    Make = Callable[..., Cluster]


def node(cluster: Cluster, name: str, *flags: str) -> None:
    arguments = ["node", "--coordinator", cluster.address, "--state-dir", f"state-{name}", *flags]
    arguments += ["--device", "cpu", "--threads", "1", "--metrics-port", "off", "--verbose"]
    cluster.start(name, arguments)


def secrets_in(folder: Path) -> set[str]:
    """Every token of a credentials file, and every line of a private key."""
    found = set()
    for path in [*folder.glob("*.credentials.toml"), folder / "access" / "operator.toml"]:
        shown = load_credentials(path, "operator" if path.name == "operator.toml" else "node")
        found |= {shown.token, *(shown.key or "").splitlines()}
    for path in (folder / "access").glob("*.key"):
        found |= set(path.read_text().splitlines())
    return {secret for secret in found if secret and "PRIVATE KEY" not in secret}


def test_a_run_with_credentials_ends_well_and_its_logs_hold_no_secret(
    make_cluster: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make_cluster(rounds=2, local_epochs=2.0, more='auth = "tokens"')
    monkeypatch.chdir(cluster.folder)
    cluster.start("early", ["coordinator", "--config", "run.toml"])
    assert main(["certs", "init", "--folder", "elsewhere"]) == 0
    assert cluster.wait("early") == 1
    assert "make the access folder with: partsum certs init --folder" in cluster.log("early")
    assert not Path("runs").exists()
    assert main(["certs", "init"]) == 0
    for name in ("a", "b", "thief"):
        assert main(["tokens", "node", name]) == 0
    cluster.coordinator("--verbose")
    node(cluster, "thief", "--credentials", "thief.credentials.toml")
    node(cluster, "stranger", "--name", "stranger")
    cluster.until("coordinator", "node thief connected")
    assert main(["tokens", "revoke", "thief"]) == 0
    assert cluster.wait("thief", 20) == 1
    assert "the token of node thief was revoked" in cluster.log("thief")
    assert cluster.wait("stranger", 20) == 1
    assert "asks for credentials: give --credentials FILE" in cluster.log("stranger")
    capsys.readouterr()
    assert main(["run", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "waiting"
    assert main(["run", "status", "--coordinator", cluster.address]) == 1
    assert "asks for credentials" in capsys.readouterr().err
    for name in ("a", "b"):
        node(cluster, name, "--credentials", f"{name}.credentials.toml")
    assert cluster.wait("coordinator") == 0
    assert [cluster.wait(name) for name in ("a", "b")] == [0, 0]
    written = [*Path().glob("*.log"), *(path for path in cluster.run.rglob("*") if path.is_file())]
    hidden = secrets_in(Path())
    assert len(hidden) == 4 + 3 * 3  # tokens; lines of the keys of server, authority, operator
    for path in written:
        text = path.read_bytes()
        assert not [secret for secret in hidden if secret.encode() in text], path
