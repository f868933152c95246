"""Who may have a name, and when a namesake should try again."""

import pytest

from partsum.coordinator import registry as registries
from partsum.coordinator.registry import Registry, Session
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import RefusedError

BEAT = 2.0


def test_a_namesake_is_sent_away_while_the_first_lives_and_told_to_wait_once_it_is_silent() -> None:
    registry = Registry({})
    first, session = registry.join("a", "folder one", 100.0, BEAT)
    first.last_heard = 101.0
    with pytest.raises(RefusedError, match="give this one another --name") as caught:
        registry.join("a", "folder two", 102.0, BEAT)
    assert not caught.value.retry
    with pytest.raises(RefusedError) as caught:
        registry.join("a", "folder two", 103.5, BEAT)
    assert caught.value.retry
    assert first.session is session
    first.session = None  # three missed heartbeats
    second, _ = registry.join("a", "folder two", 108.0, BEAT)
    assert second is first
    assert second.instance == "folder two"


def test_the_same_state_folder_replaces_its_own_old_connection() -> None:
    registry = Registry({})
    _, old = registry.join("a", "folder", 100.0, BEAT)
    node, new = registry.join("a", "folder", 100.1, BEAT)
    assert old.closed
    assert node.session is new


def test_quarantine_outlives_a_restart_unless_nobody_would_be_left() -> None:
    registry = Registry({})
    for name in ("a", "b"):
        registry.join(name, name, 100.0, BEAT)
    journal = {node.name: registry.memory(node) for node in registry}
    journal["a"]["benched"] = True
    assert Registry(journal).benched() == ["a"]
    journal["b"]["benched"] = True
    assert Registry(journal).benched() == []


def test_a_node_that_asks_and_never_listens_is_let_go() -> None:
    session = Session()
    for _ in range(5000):
        session.send(pb.ControlResponse(cancel=pb.Cancel(assignment="r0-p0")))
    assert session.closed
    assert session.outbox.qsize() < 1100


def test_a_run_remembers_so_many_names_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_NODES_LIMIT", 3)
    registry = Registry({})
    for name in ("a", "b", "c"):
        registry.join(name, "1", 0.0, BEAT)
    with pytest.raises(RefusedError, match="has seen 3 nodes"):
        registry.join("d", "1", 0.0, BEAT)
    registry.join("a", "1", 1.0, BEAT)  # one that it knows may come back
