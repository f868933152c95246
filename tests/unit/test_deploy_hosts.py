"""systemd units and Kubernetes manifests, as they are read; nothing here runs them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
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
    script = (KUBERNETES / "make-secrets.sh").read_text()
    assert "authority.key" not in script  # it never leaves the host that makes credentials


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
