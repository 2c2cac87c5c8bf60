"""Damaged models given to the commands: one line that names the file, status 2, nothing written."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from launches import recipe
from ranks import run_recipe
from transformers import BertConfig, BertForSequenceClassification

import damages
import scripts.check_data
import scripts.evaluate
import scripts.export
import scripts.make_queries
import scripts.merge
import scripts.mine
import scripts.serve_check
from damages import Damage
from nestling.checkpoint import TrainingState, trainable_tensors, write_training
from nestling.checkpoint.atomic import write_folder
from nestling.config import EmbedConfig, LoraConfig, RerankConfig, TrainData, parse_config
from nestling.models.embedder import Embedder
from recipes.runs import arguments, run_main
from sets import random_set
from tiny import tiny_qwen3
from trained import with_lora

# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Start = Callable[[Path], subprocess.CompletedProcess[str]]

SHORT = ["--query_max_length", "32", "--document_max_length", "32"]
# One of each kind, under the commands; tests/models/test_checked_loading.py has all, under what loads them.
OF_ALL: dict[str, Damage] = {
    "weights": damages.WEIGHTS["cut"],
    "shards": damages.WEIGHTS["a shard is missing"],
    "index": damages.WEIGHTS["an index that is a list"],
    "tokenizer": damages.TOKENIZER["cut"],
    "config": damages.CONFIG["a text as size"],
    "config that is cut": damages.CONFIG["cut"],
}
PICKLE = {"pickle": damages.PICKLES["a pickle with code"]}
LACKING = {"one is missing": damages.WEIGHTS["one is missing"], "more layers": damages.SHAPES["more layers"]}
EMBEDDER = {**OF_ALL, **PICKLE, **LACKING, "pooling": damages.EMBEDDER["pooling that is a list"]}
RERANKER = {**OF_ALL, **PICKLE, **LACKING, "settings": damages.RERANKER["settings that are cut"]}


def assert_refused(start: Start, model: Path, folder: Path, kinds: dict[str, Damage]) -> None:
    """Start a command with damaged copies of a model; what is in `folder` stays as it was."""
    before = set(folder.rglob("*"))
    for name, (damage, message) in kinds.items():
        copy = folder / "damaged"
        shutil.copytree(model, copy)
        damage(copy)
        done = start(copy)
        assert done.returncode == 2, name
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (name, done.stderr)
        assert message.replace("{}", str(copy)) in errors[0], name
        assert "Traceback" not in done.stderr
        shutil.rmtree(copy)
    left = [path for path in set(folder.rglob("*")) - before if "cache" not in path.parts]
    assert left == []


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beir") / "some"
    random_set(folder, documents=20, queries=4)
    return folder


def test_evaluation(qwen3: Path, qwen3_reranker: Path, beir: Path, workplace: Path) -> None:
    def embedder(model: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.evaluate.main, "--model", model, "--data", beir, *SHORT, "--output", "result.json")

    def reranked(model: Path) -> subprocess.CompletedProcess[str]:
        stage = ["--first_stage", "bm25", "--reranker", str(model)]
        return run_main(scripts.evaluate.main, *stage, "--data", beir, "--output", "result.json")

    assert_refused(embedder, qwen3, workplace, EMBEDDER)
    assert_refused(reranked, qwen3_reranker, workplace, RERANKER)


def test_mining(qwen3: Path, qwen3_reranker: Path, data: Path, workplace: Path) -> None:
    pairs = data / "first.jsonl"

    def retriever(model: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.mine.main, "--data", pairs, "--retrievers", model, *SHORT, "--output", "mined.jsonl")

    def judge(model: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.mine.main, "--data", pairs, "--judge", model, "--output", "judged.jsonl")

    assert_refused(retriever, qwen3, workplace, EMBEDDER)
    assert_refused(judge, qwen3_reranker, workplace, RERANKER)


def test_a_judge_that_is_a_cross_encoder(bert: Path, data: Path, workplace: Path, tmp_path: Path) -> None:
    model = tmp_path / "cross-encoder"
    shutil.copytree(bert, model, ignore=shutil.ignore_patterns("*.safetensors", "modules.json", "*sentence*", "1_*"))
    config = BertConfig.from_pretrained(bert, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(model)

    def judge(model: Path) -> subprocess.CompletedProcess[str]:
        flags = ["--data", str(data / "first.jsonl"), "--retrievers", "bm25", "--judge", str(model)]
        return run_main(scripts.mine.main, *flags, "--output", "judged.jsonl")

    assert_refused(judge, model, workplace, {**OF_ALL, **PICKLE})


def test_merging(qwen3: Path, workplace: Path) -> None:
    def merge(model: Path) -> subprocess.CompletedProcess[str]:
        models = ["--models", f"{qwen3},{model}", "--method", "linear"]
        return run_main(scripts.merge.main, *models, "--output", "merged")

    def first(model: Path) -> subprocess.CompletedProcess[str]:
        models = ["--models", f"{model},{qwen3}", "--method", "linear"]
        return run_main(scripts.merge.main, *models, "--output", "merged")

    kinds = {**OF_ALL, "pooling": damages.EMBEDDER["pooling that is a list"]}
    assert_refused(merge, qwen3, workplace, kinds)
    assert_refused(first, qwen3, workplace, kinds)
    pickle = {"pickle": (damages.PICKLES["a pickle with code"][0], "{}: its weights are pickled (pytorch_model.bin)")}
    assert_refused(merge, qwen3, workplace, pickle)


def test_exporting_a_directory(qwen3_reranker: Path, workplace: Path) -> None:
    def export(model: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.export.main, "--model", model, "--shape", "causal", "--output", "exported")

    assert_refused(export, qwen3_reranker, workplace, RERANKER)


def test_exporting_and_merging_adapters(qwen3: Path, workplace: Path) -> None:
    adapted = with_lora(Embedder.from_pretrained(qwen3)).backbone
    adapted.save_pretrained(str(workplace / "adapter"))  # type: ignore[operator]

    def export(adapter: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.export.main, "--adapter", adapter, "--base", qwen3, "--output", "exported")

    def merge(adapter: Path) -> subprocess.CompletedProcess[str]:
        models = ["--models", f"{workplace / 'adapter'},{adapter}", "--base", str(qwen3), "--method", "linear"]
        return run_main(scripts.merge.main, *models, "--output", "merged")

    assert_refused(export, workplace / "adapter", workplace, damages.ADAPTER)
    assert_refused(merge, workplace / "adapter", workplace, damages.ADAPTER)


def test_checking_a_server(qwen3: Path, qwen3_reranker: Path, workplace: Path) -> None:
    def check(model: Path) -> subprocess.CompletedProcess[str]:
        return run_main(scripts.serve_check.main, "--url", "http://127.0.0.1:9", "--api_model", "m", "--model", model)

    assert_refused(check, qwen3, workplace, EMBEDDER)
    assert_refused(check, qwen3_reranker, workplace, RERANKER)


def test_checking_data(qwen3: Path, data: Path, workplace: Path) -> None:
    def check(model: Path) -> subprocess.CompletedProcess[str]:
        flags = ["--data", str(data / "first.jsonl"), "--model", str(model), "--output", "copy.jsonl"]
        return run_main(scripts.check_data.main, *flags)

    kinds = {name: EMBEDDER[name] for name in ("tokenizer", "config", "config that is cut", "pooling")}
    assert_refused(check, qwen3, workplace, kinds)


def test_training(qwen3: Path, qwen3_reranker: Path, data: Path, workplace: Path) -> None:
    def embed(model: Path) -> subprocess.CompletedProcess[str]:
        _, *flags = arguments(model, data, Path("run"))
        return run_main(lambda: recipe("embed").main(parse_config(EmbedConfig, None)), *flags)

    def rerank(model: Path) -> subprocess.CompletedProcess[str]:
        flags = ["--model", model, "--output_dir", "run", "--train", data / "first.jsonl", *SHORT, "--use_cpu", "true"]
        return run_main(lambda: recipe("rerank").main(parse_config(RerankConfig, None)), *map(str, flags))

    assert_refused(embed, qwen3, workplace, EMBEDDER)
    assert_refused(rerank, qwen3_reranker, workplace, RERANKER)


def test_exporting_a_checkpoint(qwen3: Path, workplace: Path) -> None:
    """The base may be damaged, and every file of the checkpoint."""
    base = workplace / "base"
    shutil.copytree(qwen3, base)
    config = EmbedConfig(
        model=str(base),
        output_dir="run",
        train=[TrainData("a.jsonl")],
        query_max_length=32,
        document_max_length=32,
        lora=LoraConfig(r=4, alpha=8),
        precision="fp32",
    )
    (workplace / "run" / "checkpoints").mkdir(parents=True)
    (workplace / "run" / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    tensors = trainable_tensors(with_lora(Embedder.from_pretrained(base)))
    checkpoint = workplace / "run" / "checkpoints" / "step-7"
    write_folder(checkpoint, lambda path: write_training(path, tensors, TrainingState(step=7)))

    def export() -> subprocess.CompletedProcess[str]:
        return run_main(scripts.export.main, "--checkpoint", checkpoint, "--output", workplace / "exported")

    for name, (damage, message) in EMBEDDER.items():
        with spared(base):
            damage(base)
            done = export()
            assert (done.returncode, done.stderr.count("error: ")) == (2, 1), name
            assert message.replace("{}", str(base)) in done.stderr, name
    for path in list(checkpoint.iterdir()):
        for content in (b"", path.read_bytes()[:-5], b"[1, 2]", b'{"files": {"model.safetensors": 3}}'):
            with spared(checkpoint):
                path.write_bytes(content)
                done = export()
                assert (done.returncode, done.stderr.count("error: ")) == (2, 1), path.name
                assert f"{checkpoint} cannot be loaded: {path.name}" in done.stderr
    assert not (workplace / "exported").exists()


@contextmanager
def spared(folder: Path) -> Iterator[None]:
    """Put a folder's content back at the end of the block."""
    aside = folder.with_name("aside")
    shutil.copytree(folder, aside)
    yield
    shutil.rmtree(folder)
    aside.rename(folder)


@pytest.mark.parametrize("command", [pytest.param("evaluate", marks=pytest.mark.slow), "train"])
def test_as_commands(command: str, qwen3: Path, data: Path, beir: Path, tmp_path: Path) -> None:
    """In processes of their own, whose libraries' hooks and threads may speak too."""

    def start(model: Path) -> subprocess.CompletedProcess[str]:
        if command == "evaluate":
            return run_recipe("scripts/evaluate.py", "--model", str(model), "--data", str(beir), *SHORT, check=False)
        return run_recipe(*arguments(model, data, tmp_path / "run"), check=False)

    kinds = {name: EMBEDDER[name] for name in ("weights", "tokenizer", "pickle")}
    assert_refused(start, qwen3, tmp_path, kinds)
    tiny_qwen3(tmp_path / "sound")
    assert run_recipe("scripts/evaluate.py", "--model", str(tmp_path / "sound"), "--data", str(beir), *SHORT).stdout
