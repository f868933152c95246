"""A little of `make fuzz`: some wild messages at every door, on every run of the tests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.faults.callers import METHODS
from tests.faults.decoders import feed_decoders
from tests.faults.fuzz import fuzz_coordinator
from tests.faults.wild_coordinator import tell_node


@pytest.mark.timeout(240)
def test_wild_messages_to_every_method_leave_a_coordinator_as_it_was(tmp_path: Path) -> None:
    sent: Counter[str] = Counter()
    with closing(Cluster(tmp_path)) as cluster:
        asyncio.run(fuzz_coordinator(cluster, random.Random(5), 1000, sent))
    assert sent.total() >= 1000
    assert {what.partition(",")[0] for what in sent} == {method.name for _, method in METHODS}


@pytest.mark.timeout(240)
def test_a_node_that_was_told_wild_things_still_works_for_an_honest_coordinator(
    tmp_path: Path,
) -> None:
    told: Counter[str] = Counter()
    with closing(Cluster(tmp_path)) as cluster:
        asyncio.run(tell_node(cluster, random.Random(5), 8, told))
    assert told.total() >= 8


def test_every_decoder_gives_a_value_or_an_error_in_words(tmp_path: Path) -> None:
    fed = feed_decoders(tmp_path, random.Random(5), 2000)
    assert min(fed.values()) >= 100
