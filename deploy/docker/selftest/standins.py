"""Stand-ins, by the names that the Dockerfile and compose.yaml say, where no image can be pulled.

Debian's own Python, its Prometheus, and a server that does of Grafana what can be checked without
it: reads the provisioning tree and runs every query (grafana.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml
from deploy.docker.selftest.engine import Engine

_HERE = Path(__file__).parent
_DOCKER = _HERE.parent
_SUITE = "bookworm"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PATH = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# libpython3.11-dev: python:slim has Python's C headers, for what is built against them.
_PACKAGES = ["python3.11", "libpython3.11-dev", "python3-pip", "python3-venv", "ca-certificates"]
# As in Debian's own images: what apt has fetched does not stay in a layer.
_CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
"""
_MONITORING = ["prometheus", "python3-yaml", "wget"]


def image_names() -> dict[str, str]:
    """The base image, and what compose.yaml takes from elsewhere, as these files name them."""
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (_DOCKER / "Dockerfile").read_text(), re.M)
    assert base is not None
    services = yaml.safe_load((_DOCKER / "compose.yaml").read_text())["services"]
    names = {name: services[name]["image"] for name in ("prometheus", "grafana")}
    return {"python": base[1], **names}


def make_standins(engine: Engine, folder: Path) -> None:
    """Build all three; the trees below ``folder`` are used again by the next self-test."""
    names = image_names()
    if not engine.docker("images", "--quiet", names["python"]):
        # Where it was kept from the last time, so were the layers that are built upon it.
        plain = _tree(folder / "python", _PACKAGES)
        _finish_python(plain)
        _import(engine, plain, names["python"], 'CMD ["python3"]')
    tree = _tree(folder / "monitoring", ["python3", *_MONITORING])
    shutil.copy(_HERE / "grafana.py", tree / "usr/local/lib/grafana.py")
    _own(tree / "var/lib/grafana", 472, 0)
    _own(tree / "prometheus", 65534, 65534)
    _import(engine, tree, names["prometheus"], 'ENTRYPOINT ["/usr/bin/prometheus"]')
    start = 'ENTRYPOINT ["python3", "/usr/local/lib/grafana.py"]'
    _import(engine, tree, names["grafana"], start)


def _tree(root: Path, packages: list[str]) -> Path:
    done = root / "etc/partsum-selftest"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
        log = root.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as handle:
            code = subprocess.call(
                [*command, _SUITE, str(root), *_mirror()], stdout=handle, stderr=subprocess.STDOUT
            )
        if code:
            raise RuntimeError(f"debootstrap ended with {code}; see {log}")
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / leftover)
            (root / leftover / "partial").mkdir(parents=True)
        done.touch()
    return root


def _mirror() -> list[str]:
    """Where this machine's own packages of that release come from; else debootstrap knows one."""
    wanted = (f"Codename: {_SUITE}", "Origin: Debian", "Component: main")
    listing = ["apt-get", "indextargets", "--format", "$(SITE)", *wanted]
    return subprocess.check_output(listing, text=True).split()[:1]


def _finish_python(root: Path) -> None:
    """What python:slim has and Debian has not; and pip's way out, which is this machine's own."""
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    for name, target in (("python", "python3.11"), ("python3", "python3.11"), ("pip", "pip3")):
        link = root / "usr/local/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/bin/{target}")
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(_CLEAN)
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\n")


def _own(path: Path, user: int, group: int) -> None:
    """A volume's folder: Docker gives a new volume the owner that the image's folder has."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, user, group)


def _import(engine: Engine, root: Path, name: str, start: str) -> None:
    pack = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["docker", "import", "--change", _PATH, "--change", start, "-", name],
        stdin=pack.stdout, env=engine.environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    if pack.wait():
        raise RuntimeError(f"tar could not read {root}")
