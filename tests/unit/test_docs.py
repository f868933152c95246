"""The generated references are what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("script", ["generate_docs.py", "draw_pictures.py"])
def test_what_is_generated_is_up_to_date(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_list_or_table_has_an_empty_line_before_it_which_the_site_needs(page: Path) -> None:
    item, within, before = re.compile(r"(?:[-*]|1\.) |\|"), False, ""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        begins = bool(item.match(line)) and not fenced
        assert not begins or within or not before.strip(), f"{page.name}:{number}: {line}"
        within = not fenced and (begins or (within and line.startswith(("  ", "|"))))
        before = line


def test_every_page_is_in_the_sites_navigation() -> None:
    """By words, since MkDocs is not needed to run partsum; what is in `nav` MkDocs checks."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"^ +- (?:[^#\n]*: )?(\S+\.md)\b", nav, re.MULTILINE))
    lost = {page.name for page in (ROOT / "docs").glob("*.md")} - listed
    assert not lost, "add each to nav in mkdocs.yml"
