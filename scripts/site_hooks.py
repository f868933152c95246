"""What MkDocs is told beside mkdocs.yml: pages that lie outside docs/, and links between them.

On disk, links are those of the repository, so that they work wherever it is shown; here each is
turned into the one between the site's pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/README.md": "running-benchmarks.md",
    "benchmarks/RESULTS.md": "results.md",
}
COPIED = {"benchmarks": "*.png", "examples": "*.toml"}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FILE = re.compile(r"^(```\w+) file=(\S+)( run=after-training)?$", re.MULTILINE)
_RUN = re.compile(r"^(```\w+) run=after-training$", re.MULTILINE)


def outside_files() -> dict[str, str]:
    """Files outside docs/ that the site has: their place in the repository, and in the site."""
    copied = {
        f"{folder}/{path.name}": f"{folder}/{path.name}"
        for folder, pattern in COPIED.items()
        for path in sorted((ROOT / folder).glob(pattern))
    }
    return OUTSIDE | copied


def site_link(page: str, target: str) -> str:
    """A link on a page of the site; ``page`` and ``target`` are as in the repository.

    Empty for what is in the repository and not in the site.
    """
    outside = outside_files()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if path.startswith("docs/"):
        place = path.removeprefix("docs/")
    elif path in outside:
        place = outside[path]
    else:
        return "" if (ROOT / path).exists() else target
    here = outside.get(page) or page.removeprefix("docs/")
    return posixpath.relpath(place, posixpath.dirname(here) or ".")


def _link(page: str, found: re.Match[str]) -> str:
    picture, text, target, anchor = found.groups(default="")
    place = site_link(page, target)
    return f"{picture}[{text}]({place}{anchor})" if place else text


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    from mkdocs.structure.files import File

    for source, place in outside_files().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links, and the tutorial's marks for its test, into what the site shows."""
    place = page.file.src_uri
    source = next((s for s, p in OUTSIDE.items() if p == place), f"docs/{place}")
    markdown = _LINK.sub(lambda found: _link(source, found), markdown)
    markdown = _FILE.sub(r'\1 title="\2"', markdown)
    return _RUN.sub(r"\1", markdown)
