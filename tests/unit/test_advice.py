"""What is allowed and had better not be: clusters without a hand-off, open doors, old models."""

from __future__ import annotations

from partsum.coordinator.advice import advise
from partsum.shared.config import parse_config


def test_clusters_without_a_hand_off_are_warned_of_and_nothing_else_is() -> None:
    alone = "[handoff]\nenabled = false\n"
    (said,) = advise(parse_config(alone + '[data]\nclusters = "kmeans"'))
    assert 'clusters = "kmeans" without a hand-off' in said
    assert advise(parse_config('[data]\nclusters = "kmeans"')) == []
    assert advise(parse_config(alone)) == []
    residual = alone + '[data]\nclusters = "labels"\n[parts]\nmode = "residual"'
    assert advise(parse_config(residual)) == []


def test_an_open_door_beyond_loopback_is_warned_of() -> None:
    server = '[server]\nhost = "0.0.0.0"\n'
    (said,) = advise(parse_config(server + "insecure = true"))
    assert "whoever can reach it can fetch the model" in said
    assert advise(parse_config(server + 'auth = "tokens"')) == []


def test_models_that_may_tell_of_the_data_are_warned_of_where_privacy_is_promised() -> None:
    private = (
        "parts = { planner = 'full', count = 1 }\nhandoff = { enabled = false }\n"
        "privacy = { noise_multiplier = 1.0 }\n"
    )
    (said,) = advise(parse_config(private + "start = { models = ['a'] }"))
    assert "epsilon says nothing of what those models" in said
    assert advise(parse_config(private)) == []


def test_structures_that_nothing_searches_are_said_to_mean_nothing() -> None:
    (said,) = advise(parse_config("structures = { eta = 3.0 }"))
    assert '[structures] is for parts.planner = "structures"' in said
