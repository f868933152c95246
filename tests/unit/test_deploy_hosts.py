"""systemd units and Kubernetes manifests, as they are read; nothing here runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from partsum.shared.credentials import read_credentials

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
KUBERNETES = ROOT / "deploy" / "kubernetes"

Json = dict[str, Any]


def output(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


# -- systemd ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_units_and_finds_them_closed(tmp_path: Path) -> None:
    for path in sorted((ROOT / "deploy" / "systemd").glob("*.service")):
        unit = tmp_path / path.name
        unit.write_text(path.read_text().replace("/opt/partsum/bin/partsum", "/bin/true"))
        assert output("systemd-analyze", "verify", unit) == ""
        level = output("systemd-analyze", "security", "--offline=true", "--threshold=25", unit)
        assert "Overall exposure level" in level


# -- Kubernetes ------------------------------------------------------------------------------------


def documents(folder: Path) -> Iterator[Json]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


@pytest.mark.parametrize("release", ["1.31", "1.37"])
def test_the_manifests_are_what_kubernetes_expects(release: str) -> None:
    import kubernetes_validate

    found = list(documents(KUBERNETES / "base"))
    assert {one["kind"] for one in found} == {
        "Namespace", "Service", "PersistentVolumeClaim", "Job", "StatefulSet",
    }  # fmt: skip
    for document in found:
        kubernetes_validate.validate(document, release, strict=True)


def test_the_pods_satisfy_the_restricted_standard_and_see_their_own_secrets() -> None:
    for document in documents(KUBERNETES / "base"):
        if document["kind"] not in {"Job", "StatefulSet"}:
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claims = document["spec"].get("volumeClaimTemplates", [])
        offered = {one["name"] for one in pod["volumes"]} | {c["metadata"]["name"] for c in claims}
        assert mounted == offered


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kustomize_builds_the_overlays(overlay: str) -> None:
    import kubernetes_validate

    built = list(yaml.safe_load_all(output("kubectl", "kustomize", KUBERNETES / overlay)))
    for document in built:
        kubernetes_validate.validate(document, "1.37", strict=True)
    containers = [
        one["spec"]["template"]["spec"]["containers"][0]
        for one in built
        if one["kind"] in {"Job", "StatefulSet"}
    ]
    wanted = {"base": [None, None], "gpu": [1, 1]}[overlay]
    assert [c["resources"]["limits"].get("nvidia.com/gpu") for c in containers] == wanted


def test_tokens_are_made_once_and_renewed_when_they_grow_old(tmp_path: Path) -> None:
    access, credentials = tmp_path / "access", tmp_path / "credentials"
    credentials.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    places = {"PATH": path, "ACCESS": str(access), "CREDENTIALS": str(credentials)}
    said, before = [], {}
    for days in (0, 301):
        files = sorted(credentials.iterdir())
        before = {file.name: file.read_text() for file in files}
        if days:
            old = time.time() - days * 86400
            os.utime(files[0], (old, old))
        said.append(
            subprocess.check_output(
                ["sh", str(DOCKER / "make-access.sh"), "2"],
                env={**os.environ, **places},
                text=True,
                timeout=60,
            ).splitlines()[-1]
        )
    assert said == [f"made the tokens of {n} nodes; {2 - n} had theirs" for n in (2, 1)]
    after = {file.name: file.read_text() for file in credentials.iterdir()}
    changed = [name for name in sorted(after) if after[name] != before[name]]
    assert changed == ["node1.credentials.toml"]
    for name in after:
        read_credentials(credentials / name)


def test_kubernetes_gets_credentials_for_each_pod_and_not_the_authoritys_key(
    tmp_path: Path,
) -> None:
    """With a kubectl that writes down what it is asked."""
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    kubectl.chmod(0o755)
    path = f"{kubectl.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", str(KUBERNETES / "make-secrets.sh"), "2", "training"]
    for _ in range(2):  # again, it makes nothing anew
        subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, check=True, timeout=60
        )
    asked = (tmp_path / "asked").read_text()
    assert "--from-file access/members.json" in asked
    assert "authority.key" not in asked
    assert (
        "create secret generic partsum-nodes --namespace training --from-file credentials" in asked
    )
    made = {path.name for path in (tmp_path / "credentials").iterdir()}
    assert made == {f"partsum-node-{k}.credentials.toml" for k in range(2)}
