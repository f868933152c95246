"""Every command of the README and of docs/ is run, or is on a list with the reason why not.

tests/docs_commands.toml says which; tests/docs_commands.py finds them.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs_commands import (
    ROOT,
    Command,
    Scene,
    Step,
    found,
    reason_for,
    said,
    scene_of,
    scenes,
    trouble,
)

from partsum.shared.cli import build_parser, main

SECONDS = 150.0  # patience with a busy machine; a quiet one needs a tenth
TUTORIAL_FILE = re.compile(r"^```\w+ (?:file=(\S+)|run=(\S+))\n(.*?)^```$", re.M | re.S)


def test_every_command_in_a_block_is_run_by_a_scene_or_listed_with_a_reason() -> None:
    blocks, _ = found()
    assert len(blocks) > 40
    unknown = [str(c) for c in blocks if not scene_of(c.text) and not reason_for(c.text)]
    assert not unknown, "put each into tests/docs_commands.toml: run in a scene, or [parsed]"


def test_nothing_is_listed_that_no_page_prints() -> None:
    printed = [command.text for command in found()[0]]
    lost = [s.say for scene in scenes() for s in scene.steps if s.say and s.say not in printed]
    lost += [
        key
        for key in said()["parsed"]
        if not any(text.startswith(key.rstrip("*").rstrip()) for text in printed)
    ]
    assert not lost, "no page prints this any more"


@pytest.mark.parametrize("command", found()[0] + found()[1], ids=str)
def test_a_command_and_all_its_flags_exist(command: Command) -> None:
    assert not trouble(command.text)


@pytest.mark.parametrize(
    "command", [c for c in found()[0] if c.text.startswith("partsum ")], ids=str
)
def test_a_blocks_partsum_command_is_whole(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        build_parser().parse_args(shlex.split(command.text)[1:])
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


class Stage:
    """A folder with a scene's files, and its processes; all end with the scene."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder, self.scene, self.port = folder, scene, _free_port()
        self.running: list[tuple[Step, subprocess.Popen[bytes]]] = []
        (folder / "examples").symlink_to(ROOT / "examples")
        if any(name.startswith("examples/") for name in scene.files):
            (folder / "examples").unlink()
        files = {**(_tutorial() if scene.tutorial else {}), **scene.files}
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(self._filled(text), encoding="utf-8")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        state = {"XDG_STATE_HOME": str(folder / "state"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        self.environment = {**os.environ, **state, "PATH": path}

    def _filled(self, text: str) -> str:
        return text.replace("{port}", str(self.port))

    def carry_out(self, step: Step) -> None:
        """Run a step to its end, or until it says what the next one waits for."""
        line = self._filled(step.do or step.say)
        line = re.sub(r"HOST:PORT|127\.0\.0\.1:50061", f"127.0.0.1:{self.port}", line)
        if step.here:
            assert main(shlex.split(line)[1:]) == 0, line
            return
        log = self.folder / f"step-{len(list(self.folder.glob('step-*')))}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}" if step.until else line],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.append((step, process))
        if step.until:
            self._wait_for(step.until, log, process)
        else:
            assert process.wait(SECONDS) == 0, f"{line}\n{log.read_text()}"

    def _wait_for(self, text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + SECONDS
        while text not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"never said {text!r}:\n{log.read_text()}"
            time.sleep(0.05)

    def conclude(self) -> None:
        """What should end by itself does, and well."""
        for step, process in self.running:
            if step.ends:
                assert process.wait(SECONDS) == 0, step

    def close(self) -> None:
        """End what is left."""
        for _, process in reversed(self.running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for _, process in self.running:
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _tutorial() -> dict[str, str]:
    """The files that the tutorial's reader has, and what it says to run after the training."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    found = TUTORIAL_FILE.finditer(text)
    return {m[1] or f"{m[2].replace('-', '_')}.py": m[3] for m in found}


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, request.param)
    path = list(sys.path)
    yield made
    made.close()
    sys.path[:] = path
    for name in ("mytask", "mymodel", "mylm"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "stage", [pytest.param(scene, id=scene.name) for scene in scenes()], indirect=True
)
@pytest.mark.timeout(400)
def test_a_scene_of_the_documents_plays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage.folder)
    for step in stage.scene.steps:
        stage.carry_out(step)
    stage.conclude()
