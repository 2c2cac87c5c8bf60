"""Recipes and scripts on a device that refuses tensors of the CPU, as a GPU does."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import ROOT, environment

import warm
from recipes.runs import write_data

DEFAULT = ("lora", "reranker", "evaluation", "mining", "merging", "waits")
SLOW = ("full", "packed", "lora_reranker", "other_losses", "refresh", "dry_run", "out_of_memory", "ddp", "fsdp")
CONTROLS = ("operations", "planted_mixes", "planted_wait")
Run = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def run(qwen3: Path, qwen3_reranker: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs scenarios in a process that has the device; what each raised, by its name."""
    place = write_data(tmp_path_factory.mktemp("place"))
    for name, model in (("qwen3", qwen3), ("reranker", qwen3_reranker), ("bert", bert)):
        shutil.copytree(model, place / name)

    def scenarios(*names: str) -> dict[str, str]:
        command = [sys.executable, "-c", "from pretended.process import main; main()", str(place), *names]
        path = os.pathsep.join(map(str, (ROOT, ROOT / "src", ROOT / "tests", ROOT / "tests" / "distributed")))
        cache = str(place / "cache")
        done = warm.run(command, cwd=ROOT, env=environment(PYTHONPATH=path, NESTLING_CACHE=cache))
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, str] = json.loads((place / "results.json").read_text())
        return found

    return scenarios


@pytest.fixture(scope="module")
def results(run: Run) -> dict[str, str]:
    return run(*DEFAULT)


@pytest.fixture(scope="module")
def controls(run: Run) -> dict[str, str]:
    return run(*CONTROLS)


@pytest.mark.parametrize("name", DEFAULT)
def test_on_the_device(results: dict[str, str], name: str) -> None:
    assert results[name] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_of_it_on_the_device(run: Run, name: str) -> None:
    assert run(name) == {name: ""}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_device_sees_what_is_planted(controls: dict[str, str], name: str) -> None:
    assert controls[name] == ""
