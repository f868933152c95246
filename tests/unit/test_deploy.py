"""Images and compose files, as they are read; `make test-compose` runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from partsum.shared.config import load_config

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
KUBERNETES = ROOT / "deploy" / "kubernetes"
OURS = ("access", "coordinator", "node")
OTHERS = ("prometheus", "grafana")

Json = dict[str, Any]


def output(*command: object, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def services() -> Json:
    found: Json = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return found


def stage(target: str) -> str:
    """The lines of one stage of the Dockerfile."""
    return (DOCKER / "Dockerfile").read_text().split(f" AS {target}\n")[1].split("\nFROM ")[0]


# -- images ----------------------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    binary = Path(sys.executable).with_name("hadolint")
    assert output(binary, DOCKER / "Dockerfile") == ""


def test_shell_scripts_parse() -> None:
    for script in (
        DOCKER / "make-access.sh",
        DOCKER / "portable-c++",
        KUBERNETES / "make-secrets.sh",
    ):
        output("sh", "-n", script)
    output("bash", "-n", DOCKER / "slim.sh")


def test_what_the_dockerfile_copies_reaches_the_build() -> None:
    """.dockerignore lists what may come; a file that it lacks is found when somebody builds."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M)
        for name in line.split()[:-1]
    ]
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if "!" in line
    }
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_images_dependencies_are_those_of_the_project(tmp_path: Path) -> None:
    printed = output(sys.executable, DOCKER / "requirements.py", "handoff,privacy").split("\n")
    assert any(line.startswith("deepspeed") for line in printed)
    assert any(line.startswith("torch") for line in printed)
    assert not any(line.startswith("transformers") for line in printed)
    command = [sys.executable, DOCKER / "requirements.py", "nonsense"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'nonsense'] is not among ['dev', " in done.stderr


@pytest.mark.parametrize(
    ("arch", "given", "wanted"),
    [
        ("x86-64-v3", "-march=native -D__AVX512__", {"__AVX2__": "1", "__AVX256__": "1"}),
        ("x86-64-v4", "-march=native -D__AVX512__", {"__AVX512F__": "1", "__AVX512__": "1"}),
    ],
)
def test_the_compiler_builds_for_the_oldest_processor_and_not_for_this_one(
    arch: str, given: str, wanted: dict[str, str]
) -> None:
    if "x86_64" not in output("uname", "-m"):
        pytest.skip("these flags are of 64-bit x86")
    said = output(
        "env", f"CPU_ARCH={arch}", DOCKER / "portable-c++", *given.split(),
        "-E", "-dM", "-x", "c++", "/dev/null",
    )  # fmt: skip
    defined = dict(re.findall(r"#define (\w+) (.*)", said))
    assert wanted.items() <= defined.items()
    assert ("__AVX512F__" in defined) == (arch == "x86-64-v4")


def test_the_health_check_says_what_the_daemon_says() -> None:
    from prometheus_client import CollectorRegistry

    from partsum.shared.metrics import MetricsServer

    state = [True, "connected"]

    def ask(port: int) -> tuple[int, str]:
        command = [sys.executable, "-I", str(DOCKER / "healthcheck.py"), str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.returncode, done.stdout.strip()

    server = MetricsServer(
        CollectorRegistry(), "127.0.0.1", 0, lambda: (bool(state[0]), str(state[1]))
    )
    try:
        assert ask(server.port) == (0, "connected")
        state[:] = [False, "not connected to a coordinator"]
        assert ask(server.port) == (1, "not connected to a coordinator")
    finally:
        server.close()
    code, said = ask(server.port)
    assert code == 1
    assert said.startswith(f"nobody answers on port {server.port}")


# -- compose ---------------------------------------------------------------------------------------


def test_every_service_is_closed_as_far_as_it_goes(services: Json) -> None:
    assert set(services) == {*OURS, *OTHERS}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert (
            not {"privileged", "network_mode", "pid", "cap_add"} & set(service) or name == "access"
        )
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${PARTSUM_BIND:-127.0.0.1}:")), name
    assert services["access"]["network_mode"] == "none"
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert re.search(
        r"^USER 10001:10001$", dockerfile, re.M
    )  # a number: Kubernetes wants to see it
    assert all(re.fullmatch(r"[1-9]\d*:\d+", services[name]["user"]) for name in OTHERS)


def test_every_image_has_a_version_and_a_health_check(services: Json) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", dockerfile, re.M)
    for target in ("coordinator", "node"):
        assert "HEALTHCHECK" in stage(target)
    for name in OTHERS:
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", services[name]["image"])
        assert services[name]["healthcheck"]["test"]
    released = version("partsum")
    for name in OURS:
        assert services[name]["image"].endswith(f":${{PARTSUM_VERSION:-{released}}}")


def test_secrets_go_where_they_are_needed_and_nowhere_else(services: Json) -> None:
    def mounts(name: str, volume: str) -> list[str]:
        return [text for text in services[name]["volumes"] if text.split(":/")[0] == volume]

    assert mounts("access", "access") == ["access:/var/lib/partsum/access"]
    assert mounts("coordinator", "access") == ["access:/var/lib/partsum/access:ro"]
    assert mounts("node", "${PARTSUM_CREDENTIALS:-credentials}")[0].endswith(":ro")
    for name, volume in (("node", "access"), ("coordinator", "credentials")):
        assert not mounts(name, volume), name
    assert not any("environment" in services[name] for name in OURS)


def test_the_demo_runs_are_configs_that_ask_for_credentials() -> None:
    for path in (DOCKER / "demo.toml", KUBERNETES / "base" / "run.toml"):
        config = load_config(path)
        assert config.server.auth == "tokens"
        assert config.server.host == config.server.metrics_host == "0.0.0.0"
        assert (config.server.port, config.server.metrics_port) == (50061, 9464)


def test_prometheus_looks_where_the_daemons_listen(services: Json) -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert jobs["partsum-coordinator"]["names"] == ["coordinator"]
    assert jobs["partsum-coordinator"]["port"] == 9464
    assert jobs["partsum-node"]["names"] == ["node"]
    assert jobs["partsum-node"]["port"] == 9465
    assert "--metrics-host=0.0.0.0" in services["node"]["command"]
    assert "--metrics-port=9465" in services["node"]["command"]
    for name in OTHERS:
        for mount in services[name]["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith("./") or (DOCKER / source).exists(), mount


def test_each_gpu_has_one_node_that_prometheus_finds() -> None:
    services = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    nodes = {name: one for name, one in services.items() if name.startswith("gpu")}
    devices = [
        one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for one in nodes.values()
    ]
    assert devices == [[str(number)] for number in range(8)]
    for number, one in enumerate(nodes.values()):
        assert one["networks"]["default"]["aliases"] == ["node"]
        assert one["extends"]["service"] == "node"
        assert "--metrics-port=9465" in one["command"]
        assert len(one.get("profiles", [])) == (number > 0) * (1 + (number < 4) + (number < 2))
    assert services["node"]["scale"] == 0


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_compose_accepts_the_files(files: list[str]) -> None:
    compose = Path(sys.executable).parent / "docker-compose"  # of the extra dev; asks no engine
    flags = [flag for file in files for flag in ("--file", file)]
    output(compose, *flags, "--profile", "*", "config", "--quiet", folder=DOCKER)


def test_every_setting_of_the_compose_files_is_in_the_example_with_its_default() -> None:
    text = "".join((DOCKER / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml"))
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    example = (DOCKER / ".env.example").read_text()
    told = dict(re.findall(r"^#(\w+)=(.*)$", example, re.M))
    assert told == used
    assert not re.search(r"^\w+=", example, re.M)  # copied as it is, it changes nothing
