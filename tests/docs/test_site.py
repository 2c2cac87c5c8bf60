"""The documentation as a site: mkdocs builds it without a warning, and it loads nothing from elsewhere."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a browser loads by itself, unlike a link that a reader follows.
LOADED = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc="?([^">\s]+)|<link\b[^>]*\bhref="?([^">\s]+)|url\(["']?([^"')]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        if page.stem != "index":
            assert re.search(rf'href="?{page.stem}/["\s>]', first), page.name


def test_the_first_page_says_what_every_page_is_for() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)", text)) == set()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    texts = [*pages(site).values(), *(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))]
    loaded = {next(filter(None, each)) for text in texts for each in LOADED.findall(text)}
    assert any(each.endswith(".css") for each in loaded)
    assert [each for each in loaded if re.match(r"(?:https?:)?//", each)] == []


def test_lists_and_tables_are_not_taken_for_prose(site: Path) -> None:
    """GitHub begins a list without an empty line before it, mkdocs does not."""
    for name, text in pages(site).items():
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.S):
            assert not re.search(r"^(?:[-*] |\d+\. |\|)", html.unescape(paragraph), re.M), f"{name}: {paragraph[:200]}"
