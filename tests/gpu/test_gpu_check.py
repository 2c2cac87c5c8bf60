"""scripts/gpu_check as it is run, and its pieces."""

import json
import os
import subprocess
import sys
import time
import tomllib
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ranks import ROOT, environment

from nestling.config import EmbedConfig, RerankConfig, TrainingConfig, parse_config
from nestling.losses.chunked import info_nce
from nestling.models.embedder import Embedder
from scripts.gpu import attention, launches, losses, models, recipes, waits, wheels
from scripts.gpu.command import chosen, main, provide_packages
from scripts.gpu.kernels import busy_time
from scripts.gpu.models import random_texts
from scripts.gpu.place import Place
from scripts.gpu.plan import CHECKS, MACHINE, Check, Stage
from scripts.gpu.results import sections
from scripts.gpu.running import Outcome, Runner, read_rows
from scripts.gpu.waits import listed

# Dependencies with compiled code, or that transformers brings; a machine without them has no use for a wheel.
COMPILED = {
    *("httpx", "huggingface-hub", "joblib", "matplotlib", "numpy", "psutil", "pyarrow", "pyyaml", "safetensors"),
    *("tokenizers", "torch", "tqdm", "transformers", "xxhash"),
}


def checked(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/gpu_check", "--output", str(output), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_some_checks_as_a_command(tmp_path: Path) -> None:
    output = tmp_path / "output"
    done = checked(output, "--only", "loss", "waits of a step")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["name"]: each["verdict"] for each in json.loads((output / "results.json").read_text())["checks"]}
    assert found == {"machine": "PASS", "models": "PASS", "loss": "PASS", "waits of a step": "SKIP"}
    assert checked(output).stderr == f"error: --output {output} exists; name a new folder\n"


@pytest.mark.slow
def test_without_a_gpu_it_runs_what_it_can_and_says_what_not(tmp_path: Path) -> None:
    output = tmp_path / "output"
    done = checked(output)
    assert done.returncode == 0, done.stdout + done.stderr
    needs_gpu = {check.name for check in CHECKS if not check.cpu}
    found = {each["name"]: each for each in json.loads((output / "results.json").read_text())["checks"]}
    assert list(found) == [check.name for check in CHECKS]
    for name, each in found.items():
        assert each["verdict"] == ("SKIP" if name in needs_gpu else "PASS"), each
        assert f"{each['verdict']:7}  {each['seconds']:5.1f} s  {name}" in done.stdout
    assert {found[name]["note"] for name in needs_gpu} == {"not run: no GPU"}
    shown = (output / "results.md").read_text()
    for heading in ("training", "remedies", "differences", "loss", "search", "beside a trainer", "longest kernels"):
        assert f"### {heading}\n\n|" in shown
    assert f"torch {version('torch')}" in shown


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What comes of checks that end in every way."""
    get_context("forkserver").set_forkserver_preload(["torch"])
    output, work = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("work")
    (output / "logs").mkdir()
    runner = Runner(output, work, ends=time.monotonic() + 250)
    checks = [
        *(check(name, 100) for name in ("fails", "crashes", "lacks", "passes")),
        check("hangs", 5),
        check("passes", 300, name="has no time"),
        check("passes", 100, name="needs a GPU", cpu=False),
    ]
    said: list[Outcome] = []
    found = {each.name: each for each in runner.run_all(checks, said.append)}
    assert sorted(map(str, said)) == sorted(map(str, found.values()))
    found["work"] = Outcome(str(work), "PASS")
    return found


def check(function: str, seconds: int, *, name: str = "", cpu: bool = True) -> Check:
    return Check(name or function, f"tests.gpu.endings:{function}", seconds, "measure", cpu=cpu)


def test_an_error_is_a_failure_that_says_its_last_line_and_the_next_check_goes_on(
    outcomes: dict[str, Outcome],
) -> None:
    failed = outcomes["fails"]
    assert (failed.verdict, failed.note) == ("FAIL", "ValueError: the kernel is wrong")
    assert failed.rows == [{"table": "figures", "found": 2}], "figures from before the error are kept"
    assert outcomes["passes"].verdict == "PASS"
    assert outcomes["passes"].rows == [{"table": "figures", "found": 1}]


def test_a_crash_and_a_hang_are_failures(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["crashes"].verdict == outcomes["hangs"].verdict == "FAIL"
    assert outcomes["crashes"].note == "ended by SIGSEGV: about to crash"
    assert outcomes["hangs"].note.startswith("took longer than 5 s; see ")
    for name in ("child", "grandchild"):
        pid = int((Path(outcomes["work"].name) / name).read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_does_not_run_is_told_with_its_reason(outcomes: dict[str, Outcome]) -> None:
    assert str(outcomes["lacks"]).startswith("SKIP")
    assert outcomes["lacks"].note == "no such kernel in this version"
    assert outcomes["has no time"].verdict == "NOT RUN"
    assert outcomes["has no time"].note.endswith("s are left, and it may take 300 s")
    assert str(outcomes["needs a GPU"]) == "SKIP       0.0 s  needs a GPU: not run: no GPU"


def test_checks_have_their_place() -> None:
    order: list[Stage] = ["prepare", "correct", "use", "measure"]
    stages = [order.index(check.stage) for check in CHECKS]
    assert stages == sorted(stages), "what is right comes before what is fast"
    assert len({check.slug for check in CHECKS}) == len(CHECKS)


def test_checks_that_are_named_bring_along_what_they_need() -> None:
    assert [each.name for each in chosen(["search"])] == ["models", "search"]
    names = [each.name for each in chosen(["evaluate, mine, merge"])]
    assert names == ["models", "embedder recipe", "reranker recipe", "evaluate, mine, merge"]
    assert [MACHINE, *chosen(None)] == list(CHECKS)


def test_results_in_tables() -> None:
    rows: list[dict[str, object]] = [
        {"table": "machine", "device": "Some GPU", "gpu": True, "torch": "2.11"},
        {"table": "loss", "queries": 1024, "seconds": 0.01234},
        {"table": "loss", "queries": 8192, "peak_GB": 1.5},
    ]
    text = "\n\n".join(sections([Outcome("all", "PASS", 1.0, rows=rows), Outcome("other", "NOT RUN", note="late")]))
    assert text.startswith("## Some GPU\n\ntorch 2.11, commit ")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for line in (["other", "NOT RUN", "0", "late"], ["queries", "seconds", "peak GB"], ["8,192", "", "1.5"]):
        assert line in lines
    assert ["1,024", "0.0123", ""] in lines


def write_wheel(folder: Path) -> Path:
    """A folder with a wheel of the package absent."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "absent-1.0-py3-none-any.whl", "w") as file:
        file.writestr("absent.py", "FOUND = 1\n")
        file.writestr("absent-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: absent\nVersion: 1.0\n")
        file.writestr("absent-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("absent-1.0.dist-info/RECORD", "")
    return folder


def test_wheels_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no wheels"):
        wheels.install_wheels(tmp_path, tmp_path / "target")
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("nothing")
    with pytest.raises(ValueError, match="pip could not install them"):
        wheels.install_wheels(tmp_path, tmp_path / "target")


def test_what_was_missing_is_found_among_the_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setitem(wheels.PURE, "absent", "absent")
    provide_packages(write_wheel(tmp_path / "wheels"), tmp_path / "target")
    assert os.environ["PYTHONPATH"] == f"before{os.pathsep}{tmp_path / 'target'}"
    assert wheels.missing_packages() == []


def test_missing_packages_are_named_with_the_command_that_collects_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert wheels.missing_packages() == []
    monkeypatch.setitem(wheels.PURE, "absent-package", "absent_module")
    assert main(["--output", str(tmp_path / "output")]) == 2
    said = capsys.readouterr()
    assert said.out == "missing here: absent-package\n"
    assert "pip download --no-deps " in said.err
    assert " --dest wheels absent-package\n" in said.err
    assert not (tmp_path / "output").exists()


def test_every_dependency_is_there_or_among_the_wheels() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {each.partition(">")[0].partition("[")[0] for each in project["dependencies"]}
    assert names <= COMPILED | wheels.PURE.keys()


def test_each_digit_of_a_text_is_a_token(qwen3: Path, tmp_path: Path) -> None:
    texts = random_texts(50, Place(False, tmp_path, tmp_path / "rows"))
    ids = Embedder.from_pretrained(qwen3).text_tokenizer(texts, 32).ids
    assert [len(each) for each in ids] == [len(text) + 1 for text in texts]
    assert len(set(map(len, texts))) > 10


def test_attention_that_looks_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(False, tmp_path, tmp_path / "rows")

    def without_prefixes(chunk: Any) -> torch.Tensor:
        return torch.block_diag(*(torch.ones(n, n).tril() for n in chunk.cu_seqlens_q.diff().tolist())).bool()

    monkeypatch.setattr(attention, "may_attend", without_prefixes)
    with pytest.raises(AssertionError, match="attention of shared beginnings: output"):
        attention.check(place)


def test_a_rounded_loss_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As TF32 rounds, to ten bits behind the point."""

    def rounded(*embeddings: torch.Tensor, **settings: Any) -> torch.Tensor:
        *tensors, structure = embeddings
        return info_nce(*(each + (each.half().float() - each) for each in tensors), structure, **settings)

    monkeypatch.setattr(losses.chunked, "info_nce", rounded)
    with pytest.raises(AssertionError, match="contrastive loss: "):
        losses.check(Place(False, tmp_path, tmp_path / "rows"))


@pytest.fixture
def small(tmp_path: Path) -> Place:
    """A place on the CPU with its models."""
    place = Place(False, tmp_path, tmp_path / "rows")
    models.write(place)
    return place


def test_time_in_which_something_was_going_on() -> None:
    assert busy_time([(0, 4), (1, 2), (3, 6), (10, 11)]) == 7


def test_waits_are_counted_by_the_line_that_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[str] = Counter()
    with listed(found):
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert found == {"elsewhere": 2}
    monkeypatch.setattr("scripts.gpu.waits.SOURCES", Path(__file__).parent)
    with listed(found):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert any(line.startswith("tests/gpu/test_gpu_check.py:") for line in found)


def test_a_step_whose_waits_are_looked_for(monkeypatch: pytest.MonkeyPatch, small: Place) -> None:
    """On a CPU, which nothing waits for, one wait is made up."""

    @contextmanager
    def one_wait() -> Iterator[None]:
        yield
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(waits, "sync_debug_mode", one_wait)
    waits.find(small)
    assert [(row["line"], row["count"]) for row in read_rows(small.rows)] == [("elsewhere", 1)]


def test_recipes_understand_what_they_are_told_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[TrainingConfig] = []

    def parse(words: Sequence[object], *_: object, **more: float) -> None:
        recipe, *arguments = map(str, words)
        told.append(parse_config({"embed": EmbedConfig, "rerank": RerankConfig}[Path(recipe).stem], None, arguments))

    for name, stand_in in (("run", parse), ("stop_and_resume", parse), ("require_whole_run", print)):
        monkeypatch.setattr(recipes, name, stand_in)
    monkeypatch.setattr(recipes, "losses", lambda output: [1.0])
    place = Place(True, tmp_path, tmp_path / "rows")
    recipes.embedder(place)
    recipes.reranker(place)
    place.log("little-memory").write_text("out of memory; the step is repeated in chunks of at most 9 positions\n")
    recipes.with_little_memory(place)
    assert [(each.precision, each.use_cpu, each.tuning) for each in told] == [
        ("bf16", False, tuning) for tuning in ("lora", "full", "lora", "full", "lora")
    ]
    assert read_rows(place.rows)[-1]["line"].endswith("at most 9 positions")
    place.log("little-memory").write_text("all went well\n")
    with pytest.raises(AssertionError, match="memory did not run out"):
        recipes.with_little_memory(place)


@pytest.mark.slow
def test_a_launched_run_is_stopped_and_resumed(small: Place) -> None:
    """By torchrun on gloo; on a GPU it is NCCL."""
    launches.ddp(small)
    assert len(recipes.losses(small.work / "launched-DDP")) == recipes.LONG[1]
