"""Try deploy/docker for real: `make test-compose`, or `python -m deploy.docker.selftest`.

Builds stand-ins for the images that are pulled otherwise (with debootstrap, under their names),
then runs the Dockerfile and compose.yaml as they are, on a Docker engine of its own: up, healthy,
targets up in Prometheus, scaled from 2 nodes to 4, a node killed, the coordinator restarted, the
demo run finished, every dashboard query answered, down. Needs root, some minutes, and 10 GB of
disk. On a machine that lacks something it says what, and ends well.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import SubprocessError

from deploy.docker.selftest.cluster import Cluster, find_compose
from deploy.docker.selftest.engine import Engine, missing_tools
from deploy.docker.selftest.scenario import Record, play
from deploy.docker.selftest.standins import image_names, make_standins

_OVERRIDE = str(Path(__file__).with_name("build.yaml"))
_IMAGES = ("coordinator", "node")
_INDEX_PORT = 18099  # always the same: the address is part of what a layer is known by


def main() -> int:
    """The exit code: 0 where all that could be tried went well."""
    parser = argparse.ArgumentParser(prog="selftest", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("/var/tmp/partsum-selftest"), help="all that it makes")
    add(
        "--wheels",
        type=Path,
        default=os.environ.get("PIP_FIND_LINKS"),
        help="where torch's wheel lies, if PyTorch's index is not reached",
    )
    add("--keep", action="store_true", help="leave engine and images on disk")
    options = parser.parse_args()
    if lacking := _lacking():
        print(f"skipped, all of it: this machine has no {', no '.join(lacking)}")
        return 0
    record = Record(lambda line: print(line, flush=True))
    engine = Engine(options.folder / "engine")
    start = time.monotonic()
    try:
        _try(engine, options, record)
    except (AssertionError, KeyError, OSError, RuntimeError, SubprocessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        engine.stop()
        if not options.keep:
            shutil.rmtree(options.folder / "engine", ignore_errors=True)
    passed = len(record.lines) - record.skipped
    print(f"{passed} passed, 0 failed, {record.skipped} skipped; {time.monotonic() - start:.0f} s")
    return 0


def _lacking() -> list[str]:
    tools = [*missing_tools(), *(t for t in ("debootstrap", "apt-get") if not shutil.which(t))]
    return [*(["root's rights"] if os.geteuid() else []), *tools]


def _try(engine: Engine, options: argparse.Namespace, record: Record) -> None:
    cluster = Cluster(engine, find_compose())
    with record.step("stand-ins for pulled images") as facts:
        engine.build_mode()
        make_standins(engine, options.folder / "standins")
        facts.extend(image_names().values())
    with record.step("docker compose config"):
        cluster.compose("config", "--quiet")
    with record.step("docker compose build: both images") as facts, _index(options.wheels) as index:
        if index:
            engine.environment["TORCH_INDEX"] = index
        files = ("compose.yaml", _OVERRIDE)
        for service in _IMAGES:  # in turn: the second finds the first one's layers
            cluster.compose("build", service, files=files, seconds=3600)
        facts.extend(_sizes(engine))
    engine.run_mode()
    try:
        play(cluster, record)
    except BaseException:
        print(cluster.compose("logs", "--no-color", "--tail=60"), file=sys.stderr)
        raise


def _sizes(engine: Engine) -> Iterator[str]:
    """Of each image, and how much of it comes from its base."""
    base = _size(engine, image_names()["python"])
    for name in _IMAGES:
        size = _size(engine, f"partsum-{name}:0.1.0")
        yield f"{name} {size / 1e6:.0f} MB, of them {base / 1e6:.0f} MB the base's stand-in"


def _size(engine: Engine, image: str) -> int:
    size: int = json.loads(engine.docker("inspect", image))[0]["Size"]
    return size


@contextmanager
def _index(wheels: Path | None) -> Iterator[str | None]:
    """Serve torch's wheel from this machine's disk as a package index on loopback."""
    found = sorted(Path(wheels).glob("torch-*.whl")) if wheels else []
    if not found:
        yield None
        return
    folder = Path(f"/var/tmp/partsum-index-{os.getpid()}")
    (folder / "torch").mkdir(parents=True)
    for wheel in found:
        (folder / "torch" / wheel.name).symlink_to(wheel)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """The build's log tells."""

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", _INDEX_PORT), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{_INDEX_PORT}"
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
