"""scripts/pipeline.py as it is run: real steps, real kills, real signals, on tiny models."""

import hashlib
import html
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ranks import ROOT, environment, python

import warm
from mining.small import write_corpus
from nestling.pipeline.step_record import StepRecord
from nestling.processes import still_runs
from nestling.retrieval.choice import Choice
from recipes.runs import refusal, run_main
from scripts.pipeline import main
from synthesis.served import serving

SHORT = {"query_max_length": 32, "document_max_length": 32}
TRAINING = {
    **SHORT,
    "precision": "fp32",
    "batch_size": 8,
    "num_negatives": 2,
    "max_steps": 6,
    "save_steps": 1,
    "dataloader_num_workers": 0,
    "use_cpu": True,
}
MINING = {**SHORT, "depth": 8, "num_negatives": 2, "max_score_ratio": None}


@pytest.fixture(scope="module")
def settings(bert: Path, qwen3_base: Path, data: Path) -> dict[str, Any]:
    """Of a small pipeline: mine, train an embedder, evaluate, export."""
    return {
        "train": str(data / "first.jsonl"),
        "dev": None,
        "test": [str(data / "dev")],
        "test_split": "dev",
        "embedder_model": str(bert),
        "mine": MINING,
        "embed": {**TRAINING, "tuning": "full"},
        "evaluate": SHORT,
        "export": {},
    }


def write(folder: Path, settings: dict[str, Any], **changes: Any) -> list[str]:
    """The command of a pipeline in a folder."""
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({**settings, "output_dir": str(folder / "run"), **changes}, sort_keys=False))
    return ["scripts/pipeline.py", "--config", str(file)]


@pytest.fixture
def steady(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides the numbers of a step: one thread, and a cache that is empty at first."""
    for name, value in environment(NESTLING_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)


def run_pipeline(command: list[str], *more: str) -> str:
    """Run it to its end; what it said."""
    done = warm.run(python(*command, *more), cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def found(said: str) -> dict[str, str]:
    """What it said of each step."""
    return dict(re.findall(r"^\[\d+/\d+\] ([\w-]+): (.*)$", said, re.M))


def results(run: Path) -> dict[str, str]:
    """Digests of all weights, mined files and metrics that a pipeline leaves, without where they lie."""
    patterns = ("embedder/*", "reranker/*", "steps/*/*.jsonl", "steps/*/model/*", "steps/*/run/final/*.safetensors")
    files = [path for pattern in patterns for path in run.glob(pattern) if path.suffix in (".safetensors", ".jsonl")]
    digests = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for path in run.glob("steps/evaluate-*/*.json"):
        if path.name != "step.json":
            digests[path.name] = json.dumps(json.loads(path.read_text())["results"])
    return digests


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pipeline that nobody interrupted; its folder, beside which lies what it said."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(NESTLING_CACHE=str(folder / "cache")).items():
            patch.setenv(name, value)
        (folder / "said.txt").write_text(run_pipeline(write(folder, settings)))
        yield folder / "run"


def test_it_goes_from_pairs_to_models_and_says_so(whole: Path) -> None:
    said = (whole.parent / "said.txt").read_text()
    steps = ["mine", "embed", "evaluate-bm25", "evaluate-base", "evaluate-embedder", "export-embedder"]
    assert found(said) == dict.fromkeys(steps, "new")
    assert re.search(r"^embed +new +\d+$", said, re.M)
    assert re.search(r"^data +dim +embedding_precision +bm25 +base +embedder$", said, re.M)
    assert "parity gate passed" in said and "parity gate passed" in (whole / "steps" / "embed" / "log.txt").read_text()
    assert {"embedder/model.safetensors", "base.json", "steps/mine/mined.jsonl"} <= results(whole).keys()
    last = said.splitlines()[-1]
    assert re.match(r"verdict: \w+ .* the base \(.*\]\); \w+ .* BM25 \(.*\]\); nDCG@10 on 8 queries: dev/dev ", last)
    assert re.search(r"; not served; training took 0.* and [\d,]+ tokens; all steps \d\d:\d\d$", last)
    details = (whole / "steps" / "evaluate-embedder" / "embedder.details.jsonl").read_text().splitlines()
    assert json.loads(details[0])["query_id"] == "q0"


@pytest.mark.slow
def test_dev_chooses_what_is_handed_over(settings: dict[str, Any], data: Path, tmp_path: Path, steady: None) -> None:
    more = {
        "dev": str(data / "dev"),
        "reranker_model": "embedder",
        "rerank": {**TRAINING, "tuning": "full", "num_negatives": 2},
        "evaluate": {**SHORT, "depth": 5},
        "report": {},
    }
    said = run_pipeline(write(tmp_path, settings, **more))
    run = tmp_path / "run"
    choice = Choice.read(run / "steps" / "choose" / "choice.json")
    assert list(choice.embedders) == [settings["embedder_model"], str(run / "steps" / "embed" / "run" / "final")]
    states = found(said)
    for kind in ("embedder", "reranker"):
        assert (run / kind).exists() == choice.trained(kind) == (states[f"export-{kind}"] == "new")
    for line in choice.lines():
        assert line in said and line in html.unescape((run / "report.html").read_text())
    measured = json.loads((run / "steps" / "evaluate-both" / "both.json").read_text())
    assert measured["config"]["rerank_weight"] == str(run / "steps" / "choose" / "choice.json")
    assert [row["order"] for row in measured["results"]] == ["first stage", "reranked", "fused"]


def test_a_second_start_does_nothing_and_a_setting_repeats_what_follows(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    command = write(tmp_path, settings)
    before = results(tmp_path / "run")
    assert set(found(run_pipeline(command)).values()) == {"done"}
    assert results(tmp_path / "run") == before
    said = found(run_pipeline(command, "--embed.learning_rate", "3e-3", "--from_step", "embed"))
    assert said["embed"] == "changed: learning_rate is 0.003, was 0.0001"
    assert [name for name, verdict in said.items() if verdict == "done"] == ["evaluate-bm25", "evaluate-base"]
    after = results(tmp_path / "run")
    changed = {name for name in before if before[name] != after[name]}
    trained = "steps/embed/run/final/model.safetensors"
    assert {"embedder/model.safetensors", trained, "embedder.json"} <= changed
    assert not {"base.json", "steps/mine/mined.jsonl"} & changed
    kept = tmp_path / "run" / "replaced"
    assert (kept / "embed.1" / "run" / "final").is_dir()
    assert (kept / "export-embedder.1" / "embedder" / "model.safetensors").exists()


def test_what_the_models_are_worth_can_be_the_exit_status(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    worse = tmp_path / "run" / "steps" / "evaluate-embedder" / "embedder.details.jsonl"
    lines = [json.loads(line) for line in worse.read_text().splitlines()]
    for line in lines:
        line["metrics"]["nDCG@10"] = -1.0
    worse.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = worse.with_name("embedder.json")
    content = json.loads(path.read_text())
    for row in content["results"]:
        row["metrics"]["nDCG@10"] = -1.0
    path.write_text(json.dumps(content))
    command = [*write(tmp_path, settings)[1:], "--only", "evaluate"]
    assert run_main(main, *command).returncode == 0
    failed = run_main(main, *command, "--fail_if", "worse")
    assert failed.returncode == 3
    assert failed.stdout.splitlines()[-1] == "fail_if worse: the exit status is 3"
    assert "verdict: worse than the base (−" in failed.stdout


def served(tmp_path: Path, fault: str) -> dict[str, Any]:
    """The section of a pipeline that serves its embedder with the server of the tests."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = f"{sys.executable} {ROOT}/tests/small_server.py --port={port} mine={{embedder}}"
    return {"command": server, "url": f"http://127.0.0.1:{port}/mine/{fault}"}


@pytest.mark.slow
def test_what_a_server_answers_is_compared_and_shown(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    said = run_pipeline(write(tmp_path, settings, serve=served(tmp_path, "healthy"), report={}))
    assert {name for name, state in found(said).items() if state == "new"} == {"serve", "report"}
    assert "served as expected: " in said
    assert "; served, within 0.00" in said.splitlines()[-1]
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    verdict, _, _ = said.splitlines()[-1].partition("; all steps")
    assert verdict in page
    assert "dev/dev: queries" in page and "p99 ms" in page
    drifting = warm.run(
        python(*write(tmp_path, settings, serve=served(tmp_path, "no-eos"), report={}), "--only", "serve"), cwd=ROOT
    )
    assert drifting.returncode == 2
    assert "serve: it ended with status 3" in drifting.stderr
    assert "drift: " in drifting.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_a_pipeline(
    number: signal.Signals, whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    process = start(write(tmp_path, settings, serve=served(tmp_path, "slow")))
    wait_for(tmp_path / "run" / "steps" / "serve" / "log.txt", process, "ready after")
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("small_server.py" in " ".join(each.cmdline()) for each in children)
    process.send_signal(number)
    process.wait(timeout=60)
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left


def test_one_step_shows_no_older_results_and_its_settings_do_for_all(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    folder = tmp_path / "one, again"
    shutil.copytree(whole, folder)
    said = run_pipeline(write(tmp_path, settings, output_dir=str(folder)), "--only", "mine")
    assert found(said) == {"mine": "done"}
    assert "nDCG@10" not in said, "what was measured may be of other models than those that are there now"
    said = run_pipeline(["scripts/pipeline.py", "--config", str(folder / "pipeline.yaml")])
    assert len(found(said)) > 1 and set(found(said).values()) == {"done"}
    assert re.search(r"^data +dim +embedding_precision +bm25 +base +embedder$", said, re.M)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes], pattern: str = "") -> None:
    """Wait until a file is there and holds a pattern, or the process has ended."""
    deadline = time.monotonic() + 200
    while process.poll() is None and not (path.exists() and re.search(pattern, path.read_text(errors="replace"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return warm.Popen(python(*command), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


def test_killed_in_its_steps_it_ends_with_the_same_files(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    command = write(tmp_path, settings)
    steps = tmp_path / "run" / "steps"
    trained = (steps / "embed" / "run" / "metrics.jsonl", rf'"step": {random.randint(2, 5)},')
    for path, pattern in [(steps / "mine" / "log.txt", "rows read"), trained]:
        process = start(command)
        wait_for(path, process, pattern)
        time.sleep(random.random() / 4)
        kill_group(process)
    said = found(run_pipeline(command))
    assert said["embed"] == "unfinished: resumes"
    assert results(tmp_path / "run") == results(whole)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_any_moment_the_whole_pipeline_ends_with_the_same_files(
    settings: dict[str, Any], qwen3_base: Path, tmp_path: Path, steady: None
) -> None:
    more = {
        "reranker_model": str(qwen3_base),
        "check": {"drop": ["repeated_rows"]},
        "embed": {**settings["embed"], "save_total_limit": 2},
        "merge": {"last": 2, "method": "linear"},
        "remine": MINING,
        "score": {"judge": str(qwen3_base)},
        "rerank": {**TRAINING, "prefix": "", "suffix": "?", "loss": {"objective": "distillation"}},
        "report": {},
    }
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command, began = write(tmp_path / "whole", settings, **more), time.monotonic()
    run_pipeline(command)
    longest = max(4.0, (time.monotonic() - began) / 4)
    command, kills = write(tmp_path / "killed", settings, **more), 0
    while kills < 20:
        process = start(command)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.uniform(2, longest))
            break
        kill_group(process)
        kills += 1
    run_pipeline(command)
    assert kills >= 4
    assert results(tmp_path / "killed" / "run") == results(tmp_path / "whole" / "run")
    for name in ("embedder", "reranker"):
        assert (tmp_path / "killed" / "run" / name / "model.safetensors").exists()
    assert (tmp_path / "killed" / "run" / "report.html").exists()


def test_told_to_stop_it_leaves_a_checkpoint_and_a_second_one_is_refused(
    whole: Path, settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    command = write(tmp_path, settings, embed={**settings["embed"], "learning_rate": 1e-3, "max_steps": 500})
    process = warm.Popen(python(*command), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = tmp_path / "run" / "steps" / "embed" / "run"
    deadline = time.monotonic() + 200
    record = tmp_path / "run" / "steps" / "embed" / "step.json"
    while '"learning_rate": 0.001' not in read(record) or not (run / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    refused = warm.run(python(*command), cwd=ROOT)
    assert refused.returncode == 2
    assert f"run is in use by process {process.pid}" in refused.stderr
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    saved = re.search(r"stopped by SIGTERM; saved (\S+/step-\d+);", said)
    assert saved and (Path(saved[1]) / "model.safetensors").exists()
    assert said.splitlines()[-1] == "stopped by SIGTERM; the same command resumes"


def test_killed_alone_its_step_saves_and_ends_and_the_next_start_waits_for_it(
    settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    """The kernel, out of memory, kills one process, and nobody is told."""
    embed = {**settings["embed"], "max_steps": 300, "save_steps": 300}
    command = write(tmp_path, settings, embed=embed, evaluate=None, export=None)
    place = tmp_path / "run" / "steps" / "embed"
    process = start(command)
    wait_for(place / "run" / "metrics.jsonl", process, '"step": 3,')
    record = StepRecord.read(place / "step.json")
    assert record is not None and record.process is not None and still_runs(record.process)
    process.kill()
    process.wait()
    assert found(run_pipeline(command))["embed"] == "unfinished: resumes"
    assert not still_runs(record.process)
    steps = re.findall(r"^  steps +(.*)$", read(place / "log.txt"), re.M)
    assert len(steps) == 2 and "done" not in steps[0] and re.search(r"[1-9]\d* done", steps[1]), steps


@pytest.mark.slow
def test_two_ranks_told_to_stop_leave_a_checkpoint_and_go_on(
    settings: dict[str, Any], tmp_path: Path, steady: None
) -> None:
    launcher = ["--config_file", "configs/accelerate/ddp-cpu.yaml"]
    embed = {**settings["embed"], "max_steps": 200, "save_steps": 1000}
    command = write(tmp_path, settings, launcher=launcher, embed=embed, evaluate=None, export=None)
    place = tmp_path / "run" / "steps" / "embed"
    process = start(command)
    wait_for(place / "run" / "metrics.jsonl", process, '"step": 3,')
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    saved = re.findall(r"stopped by .*; saved \S+/(step-\d+);", read(place / "log.txt"))
    assert len(saved) == 1 and (place / "run" / "checkpoints" / saved[0]).is_dir()
    said = run_pipeline(command)
    assert found(said)["embed"] == "unfinished: resumes"
    assert re.search(r"^ +processes +2 ", said, re.M)
    assert (place / "run" / "final" / "model.safetensors").exists()
    steps = [json.loads(line)["step"] for line in read(place / "run" / "metrics.jsonl").splitlines() if "loss" in line]
    assert steps == list(range(1, 201))


def test_printed_commands_run_by_hand(settings: dict[str, Any], whole: Path, tmp_path: Path, steady: None) -> None:
    """Those of the evaluation and the export, in the folder of a pipeline whose training is done."""
    shutil.copytree(whole, tmp_path / "run")
    for name in ("evaluate-embedder", "export-embedder"):
        shutil.rmtree(tmp_path / "run" / "steps" / name)
    shutil.rmtree(tmp_path / "run" / "embedder")
    shown = run_pipeline(write(tmp_path, settings), "--dry_run", "true")
    commands = dict(re.findall(r"^([\w-]+): .*\n\$ (.*)$", shown, re.M))
    assert list(commands) == ["mine", "embed", "evaluate-bm25", "evaluate-base", "evaluate-embedder", "export-embedder"]
    assert not (tmp_path / "run" / "embedder").exists(), "a dry run does nothing"
    (tmp_path / "run" / "steps" / "evaluate-embedder").mkdir()
    for name in ("evaluate-embedder", "export-embedder"):
        subprocess.run(commands[name], shell=True, cwd=ROOT, check=True, capture_output=True)
    assert results(tmp_path / "run") == results(whole)


def test_queries_are_made_where_there_are_none(tmp_path: Path, steady: None) -> None:
    texts = [f"subject{i} and theme{i} are what this passage tells about, in the {i}th place of all" for i in range(9)]
    corpus = write_corpus(tmp_path / "corpus.jsonl", texts)
    with serving() as server:
        queries = {"model": "m", "endpoint": {"url": server.url}}
        mine = {"retrievers": ["bm25"], "max_score_ratio": None, "num_negatives": 2}
        command = write(tmp_path, {"corpus": str(corpus), "queries": queries, "mine": mine})
        assert found(run_pipeline(command)) == {"queries": "new", "mine": "new"}
        asked = len(server.requests)
        (tmp_path / "run" / "steps" / "queries" / "pairs.jsonl").unlink()
        assert found(run_pipeline(command, "--only", "queries"))["queries"].endswith("pairs.jsonl is gone")
        assert len(server.requests) == asked, "its answers are there"
    rows = [json.loads(line) for line in (tmp_path / "run/steps/mine/mined.jsonl").read_text().splitlines()]
    assert [row["positives"] for row in rows] == [[text] for text in texts]
    assert asked == 18 and all(len(row["negatives"]) == 2 for row in rows)


def test_answers_that_were_paid_for_are_used_while_what_was_asked_is_the_same(tmp_path: Path, steady: None) -> None:
    """A higher budget, which the script advises, another address or a grade had everything asked for again."""
    texts = [f"subject{i} and theme{i} are what this passage tells about, in the {i}th place of all" for i in range(9)]
    corpus = write_corpus(tmp_path / "corpus.jsonl", texts)
    with serving() as server:
        prices = {"url": server.url, "concurrency": 1, "price_in": 1000.0, "price_out": 1000.0}
        queries = {"model": "m", "endpoint": prices, "budget": 0.3}
        command = write(tmp_path, {"corpus": str(corpus), "queries": queries, "mine": {"retrievers": ["bm25"]}})
        failed = warm.run(python(*command, "--only", "queries"), cwd=ROOT)
        assert failed.returncode == 2 and "the budget of 0.3 is spent" in failed.stderr
        asked = len(server.requests)
        assert 0 < asked < 18
        said = run_pipeline(command, "--only", "queries", "--queries.budget", "100")
        assert found(said)["queries"] == "changed: budget is 100.0, was 0.3"
        assert "steps/queries/pairs.journal.jsonl are used again" in said
        assert len(server.requests) == 18
        more = ("--only", "queries", "--queries.budget", "100")
        run_pipeline(command, *more, "--queries.limit", "4", "--queries.explain", "true")
        assert len(server.requests) == 18
        write_corpus(corpus, [*texts, "subject9 and theme9 are what this passage tells about, and no other one"])
        run_pipeline(command, *more)
        assert len(server.requests) == 18 + 2, "of the new document"
        said = run_pipeline(command, *more, "--queries.limit", "4", "--queries.seed", "7")
        assert "used again" not in said
        assert len(server.requests) == 20 + 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--embed.learning_rat", "1"], "embed: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        (["--emded", "{}"], "unknown key 'emded'; did you mean 'embed'?"),
        (["--test", "[nowhere]"], "test nowhere: expected a folder in the BEIR layout, and it has no corpus.jsonl"),
        (["--train", "no/where.jsonl"], "train no/where.jsonl: no such file or directory"),
        (["--score", '{"judge": "/no/judge"}'], "score /no/judge: no such file or directory"),
        (["--mine.judgements", "none.jsonl"], "mine none.jsonl: no such file or directory"),
        (["--only", "marge"], "no step is called marge; this pipeline has mine, embed, evaluate-bm25"),
        (["--from_step", "embed"], "mine has not been run in run; run it before"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    more: list[str], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    command = write(tmp_path, settings)
    assert message in refusal(main, *command[1:], *more, folder=tmp_path)


def test_a_folder_of_something_else_is_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    command = write(tmp_path, settings)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = run_main(main, *command[1:])
    assert done.returncode == 2
    assert "has no pipeline.yaml, so it is not the folder of a pipeline; choose another one" in done.stderr


def test_a_folder_inside_what_is_read_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    command = write(tmp_path, settings, train=str(tmp_path))
    message = f"mine {tmp_path}: output_dir run is inside it; choose a folder outside"
    assert refusal(main, *command[1:], folder=tmp_path) == message


def test_what_a_step_needs_is_installed_before_the_first_starts(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: None)
    command = write(tmp_path, settings, check={})
    message = "check needs rensa, py3langid, regex, not installed; pip install -c constraints.txt -e '.[hygiene]'"
    assert refusal(main, *command[1:], folder=tmp_path) == message
