"""The page in a browser, if one is installed: on phones and desktops, in light and dark theme, printed."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nestling.report.page import render
from nestling.report.results import read_result
from nestling.report.runs import read_run_record
from report.pages import detail_line, document, write_result, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = [(390, 844), (1280, 900)]
WORD = "supercalifragilistic" * 30


@pytest.fixture(scope="module")
def browser() -> str:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is no browser: {', '.join(BROWSERS)}")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all of its parts, and words that do not fit a line."""
    folder = tmp_path_factory.mktemp("page")
    kinds = [(dim, kind) for dim in (1024, 64) for kind in ("float32", "int8", "binary")]
    lines = [
        {
            **detail_line(f"q{i}", (i % 5) / 5 + at / 100, text=f"{WORD} {i}", dim=dim, embedding_precision=kind),
            "first": [document(WORD, 0.1, 0.0, WORD), document("d", 0.1, 2.0)],
        }
        for at, (dim, kind) in enumerate(kinds)
        for i in range(20)
    ]
    better = [{**line, "metrics": {name: value**0.5 for name, value in line["metrics"].items()}} for line in lines]
    results = [write_result(folder / "before.json", lines), write_result(folder / f"after-{WORD[:60]}.json", better)]
    drawn = render(
        title=f"A title of {WORD}",
        runs=[read_run_record(write_run(folder / "run", more=WORD))],
        results=[read_result(each) for each in results],
    )
    (folder / "page.html").write_text(drawn.html, encoding="utf-8")
    return folder / "page.html"


def browse(browser: str, page: Path, folder: Path, *flags: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_is_rendered(browser: str, page: Path, tmp_path: Path, size: tuple[int, int], scheme: str) -> None:
    shot = tmp_path / "shot.png"
    flags = [f"--window-size={size[0]},{size[1]}", "--hide-scrollbars", f"--screenshot={shot}"]
    browse(browser, page, tmp_path, *flags, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (size[1], size[0])
    paper = pixels[2, 2]
    assert (paper.mean() < 0.2) == (scheme == "dark")
    assert (paper.mean() > 0.8) == (scheme == "light")
    ink = np.abs(pixels - paper).max(axis=-1) > 0.5
    assert 0.005 < ink.mean() < 0.5, "text in a colour that can be read on it"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_is_wider_than_the_window(browser: str, page: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """Rendered in a frame of that width, since windows have a minimum width; all details are open."""
    probe = (
        "<script>addEventListener('load', () => parent.postMessage(document.documentElement.scrollWidth, '*'))</script>"
    )
    opened = page.read_text(encoding="utf-8").replace("<details", "<details open").replace("</body>", f"{probe}</body>")
    (tmp_path / "inside.html").write_text(opened, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<!doctype html><script>addEventListener('message', each => document.body.dataset.width = each.data)</script>"
        f"<iframe src='inside.html' style='border: 0; width: {size[0]}px; height: {size[1]}px'></iframe>"
    )
    width = re.search(
        r'data-width="(\d+)"', browse(browser, frame, tmp_path, "--virtual-time-budget=5000", "--dump-dom")
    )
    assert width is not None
    assert int(width[1]) <= size[0]


def test_the_page_is_printed(browser: str, page: Path, tmp_path: Path) -> None:
    browse(browser, page, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
