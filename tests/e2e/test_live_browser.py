"""The live page in a real browser, which follows a real run through a crash of its coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.browser import CHROMIUM, Browser
from tests.faults.supervisor import free_port

if TYPE_CHECKING:
    from tests.cluster import Cluster

    Make = Callable[..., Cluster]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt install chromium)")

HARMLESS = "net::ERR_"  # what the browser says while the coordinator is gone


@pytest.fixture
def browser() -> Iterator[Browser]:
    with closing(Browser()) as opened:
        yield opened


@pytest.mark.timeout(240)
def test_the_page_follows_a_run_through_a_crash_to_its_end(
    make_cluster: Make, browser: Browser, tmp_path: Path
) -> None:
    cluster = make_cluster(
        rounds=3, local_epochs=60.0, port=free_port(), more="[trackers]\ntensorboard = true"
    )
    config, port = cluster.folder / "run.toml", free_port()
    config.write_text(config.read_text().replace("metrics_port = 0", f"metrics_port = {port}"))
    cluster.coordinator()
    browser.open(f"http://127.0.0.1:{port}/")
    browser.until("document.querySelector('#reason').innerText.includes('0 of 2 are ready')")
    for name in ("a", "b"):
        cluster.node(name)
    browser.until("document.querySelectorAll('.nodes tbody tr').length === 2")
    browser.until("document.querySelectorAll('.rounds tbody tr').length >= 1")
    browser.until("document.querySelectorAll('.tile').length === 2")
    assert browser.ask("document.querySelectorAll('.map .unit').length") >= 4
    assert browser.ask("document.querySelectorAll('#accuracy polyline').length") == 1
    cluster.kill("coordinator")
    cluster.kill("a")  # the page must find the run again before it ends
    browser.until("document.querySelector('.link.lost')")
    cluster.coordinator()
    browser.until("document.querySelector('.link.on')")
    cluster.node("a")
    browser.until("document.body.dataset.phase === 'finished'")
    assert cluster.wait("coordinator") == 0
    browser.until("document.querySelectorAll('.rounds tbody tr').length === 3")
    assert "The run is done." in browser.ask("document.querySelector('#reason').innerText")
    shown = browser.ask("document.querySelector('.figures .big').innerText")
    assert shown == f"{100 * float(str(cluster.summary()['final_accuracy'])):.2f} %"
    curve = steps(cluster.run / "tensorboard" / "parts")
    assert curve == [1, 2, 3], "a tracker's curve goes on where the crash was"
    looks_well(browser, tmp_path)
    serious = [text for text in browser.complaints if HARMLESS not in text]
    assert not serious, "a script failed, or the page was refused something by its own policy"


def steps(folder: Path) -> list[int]:
    """Of the curve that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), purge_orphaned_data=True)
    found.Reload()
    return [event.step for event in found.Scalars("loss/validation")]


def looks_well(browser: Browser, folder: Path) -> None:
    """Nothing sticks out sideways, on a desk or a phone, and a curve is read out."""
    for width, height in ((1160, 900), (390, 844)):
        browser.size(width, height, phone=width < 500)
        browser.until(
            f"Math.abs(document.querySelector('#loss svg').viewBox.baseVal.width - "
            f"document.querySelector('#loss .plot').clientWidth) < 2 && innerWidth === {width}"
        )
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), width
        browser.picture(folder / f"{width}.png")
        assert (folder / f"{width}.png").stat().st_size > 20_000
    browser.size(1160, 900)
    browser.ask("document.querySelector('#accuracy').scrollIntoView()")
    browser.ask("document.querySelector('input[value=round]').click()")
    browser.until("document.querySelector('#accuracy svg').textContent.includes('rounds')")
    x, y = browser.ask(
        "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        "(document.querySelector('#accuracy svg').getBoundingClientRect())"
    )
    browser.move(x, y)
    browser.until("document.querySelector('#accuracy .tip').innerText.includes('round')")
