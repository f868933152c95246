"""The documentation site: it builds strictly, is whole, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[2]
SEARCHED = "document.querySelector('.md-search-result__meta').textContent"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class Assets(HTMLParser):
    """What a page loads by itself when it is opened; links to click on are no part of it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get("rel") not in {"prev", "next", "canonical"}:
            self.loaded += [value for value in [given.get(LOADED[tag])] if value]


def assets(site: Path) -> Iterator[tuple[Path, str]]:
    for page in site.glob("*.html"):
        if page.name != "404.html":  # is served for any path, so it names its files from the root
            for loaded in Assets(page).loaded:
                yield page, loaded


def test_every_page_and_picture_of_the_repository_is_in_the_site(site: Path) -> None:
    pages = {page.stem for page in site.glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= pages
    assert {"architecture", "contributing", "changelog", "results", "reporting"} <= pages
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        assert (site / "pictures" / picture.name).exists()


def test_pages_load_nothing_from_elsewhere_and_nothing_that_is_not_there(site: Path) -> None:
    for page, loaded in assets(site):
        assert not re.match(r"(\w+:)?//", loaded), f"{page.name} loads {loaded}"
        if not loaded.startswith("data:"):
            assert (page.parent / loaded.split("?")[0]).exists(), f"{page.name} loads {loaded}"
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8").replace('"', "")


def test_the_search_knows_what_is_on_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    told = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"index.html", "cli.html", "architecture.html"} <= told
    assert any("quarantined" in entry["text"] for entry in index["docs"])
    assert (site / "search" / "search_index.js").exists()  # for pages that are opened as files


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_search_finds_something_where_the_site_is_opened_as_a_file(site: Path) -> None:
    browser = Browser()
    try:
        browser.open(f"{(site / 'index.html').as_uri()}?q=quarantined")
        browser.until(f"{SEARCHED}.includes('matching documents')")
        assert re.match(r"\d+ ", browser.ask(SEARCHED).strip())
    finally:
        browser.close()


def test_links_between_the_repositorys_pages_are_links_between_the_sites(site: Path) -> None:
    page = (site / "architecture.html").read_text(encoding="utf-8")
    assert 'src="pictures/house.svg"' in page
    assert 'href="widths.html"' in page
    assert 'href="results.html#swarm"' in (site / "sizing.html").read_text(encoding="utf-8")
    assert 'class="filename">mytask.py' in (site / "tutorial.html").read_text(encoding="utf-8")
