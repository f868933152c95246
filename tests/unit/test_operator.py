"""What an operator is told of runs that no coordinator serves."""

from pathlib import Path

import pytest

from partsum.coordinator import operator
from partsum.coordinator.folder import new_run
from partsum.coordinator.store import Store
from partsum.shared.config import parse_config
from partsum.shared.errors import ConfigError

NOBODY = "127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was killed: its journal says that it runs, and nobody answers."""
    text = f'name = "lost"\nfolder = "{tmp_path}"\n'
    store = new_run(parse_config(text, "run.toml"), text, 0.0)
    store.note(address=NOBODY)
    store.close()
    return store.folder


def note(folder: Path, **facts: object) -> None:
    store = Store(folder)
    store.note(**facts)
    store.close()


def test_a_killed_run_is_told_from_its_folder_with_the_way_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operator.status(folder, None, None, as_json=False) == 0
    said = capsys.readouterr().out
    assert "unfinished, 0 rounds committed" in said
    assert f"partsum coordinator --resume {folder}" in said


def test_a_killed_run_is_not_listed_as_running(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.list_all(folder.parent)
    said = capsys.readouterr().out
    assert "unfinished" in said
    assert NOBODY not in said


def test_a_coordinator_asked_by_address_is_never_replaced_by_a_folder(folder: Path) -> None:
    with pytest.raises(operator.UnreachableError, match=f"no coordinator answers at {NOBODY}"):
        operator.status(folder, NOBODY, None, as_json=False)


def test_a_run_killed_before_it_listened_is_told_without_dialling(folder: Path) -> None:
    note(folder, address="")
    with pytest.raises(operator.UnreachableError, match=r"no coordinator serves .*unfinished"):
        operator.watch_run(folder, None, None)


def test_stopping_a_finished_run_does_not_stop_who_has_its_address_now(folder: Path) -> None:
    note(folder, state="finished", reason="the run is done")
    with pytest.raises(operator.UnreachableError, match="finished, the run is done"):
        operator.stop(folder, None, None)


def test_an_address_without_a_port_is_a_wrong_flag(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'localhost' is not HOST:PORT"):
        operator.status(folder, "localhost", None, as_json=False)
