"""What train/embed.py refuses: one line that says what is wrong, status 2, before the model loads, nothing written."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import recipe

from nestling.config import EmbedConfig, parse_config
from nestling.training.limits import matryoshka_dims
from recipes.runs import arguments, refusal, unloadable, write_dev, write_pairs

RECIPE = recipe("embed")


@pytest.fixture(scope="module")
def model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unloadable(bert, tmp_path_factory.mktemp("models") / "unloadable")


@pytest.fixture
def refuse(model: Path, workplace: Path) -> Callable[..., str]:
    """Start the recipe in this process; returns its only line of errors, without the folder of the test."""

    def started(output_dir: str = "run", **settings: object) -> str:
        _, *flags = arguments(model, workplace, Path(output_dir), **{"matryoshka_dims": "24", **settings})
        return refusal(lambda: RECIPE.main(parse_config(EmbedConfig, None)), *flags, folder=workplace)

    return started


GOOD = b'{"query": "q", "positives": ["p"]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.jsonl:1: file: holds no rows; expected at least one"),
        (GOOD + b'{"query": "", "positives": ["p"]}', "bad.jsonl:2: query: the text is empty"),
        (GOOD + b'{"query": "q", "positives": ["p", " "]}', "bad.jsonl:2: positives[1]: the text is empty"),
        (
            GOOD + b'{"query": "q", "positives": [], "negatives": ["n"]}',
            "bad.jsonl:2: positives: the list is empty; expected at least one; rows that have only negatives can train",
        ),
        (GOOD + b'{"query": "q"}', "bad.jsonl:2: positives: missing, in a file of dialect nestling"),
        (GOOD + b'{"query": 7, "positives": ["p"]}', "bad.jsonl:2: query: expected a text, got int 7"),
        (GOOD + b'{"query": "q", "positives": ["p"', "bad.jsonl:2: line: broken JSON: Expecting ',' delimiter"),
        (
            GOOD + b'{"query": "q", "positives": ["p"], "positive_scores": [NaN]}',
            "bad.jsonl:2: positive_scores[0]: expected a finite number, got nan",
        ),
        (b'{"query": "q", "positives": ["q"]}\n', "bad.jsonl:1: file: no row can be kept"),
        (b'{"text": "a", "label": 1}\n', "bad.jsonl:1: keys: found 'text', 'label'; no dialect has these. Nearest: "),
        (
            b'{"query": "a", "answer": "b", "label": 1}\n{"query": "c", "answer": "d", "label": 1}\n',
            "bad.jsonl:2: score: all 2 rows have the label 1. Rows with a label or score are graded pairs, which train",
        ),
        (
            GOOD.replace(b"}", b', "hard_negs": ["n"]}'),
            "bad.jsonl:1: hard_negs: holds negatives, and dialect nestling does not read it. Rename it, or name",
        ),
        (GOOD + b'{"query": "\xff", "positives": ["p"]}', "bad.jsonl:2: line: invalid UTF-8 at byte 11 of the line"),
        (GOOD, "bad has 1 rows, fewer than the batch_size of 8; lower batch_size or join it with a similar dataset"),
    ],
)
def test_training_data(content: bytes, message: str, refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    assert refuse(train=tmp_path / "bad.jsonl").startswith(message)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "again"}', "dev/corpus.jsonl:9: _id: used twice, first in line 2"),
        ("queries.jsonl", '{"_id": "q1", "text": "again"}', "dev/queries.jsonl:9: _id: used twice, first in line 2"),
        ("queries.jsonl", '{"_id": "q8", "text": ""}', "dev/queries.jsonl:9: text: the text is empty"),
        ("qrels/dev.tsv", "q1\td99\t1", "dev/qrels/dev.tsv:10: corpus-id: not in corpus.jsonl, like 1 of 9"),
        ("qrels/dev.tsv", "q99\td1\t1", "dev/qrels/dev.tsv:10: query-id: not in queries.jsonl, like 1 of 9"),
        ("qrels/dev.tsv", "q1\td2\tnan", "dev/qrels/dev.tsv:10: score: expected a finite number, got 'nan'"),
    ],
)
def test_dev_sets(file: str, line: str, message: str, refuse: Callable[..., str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 16, "some")
    with (write_dev(tmp_path / "dev") / file).open("a") as opened:
        opened.write(line + "\n")
    assert refuse(train=tmp_path / "pairs.jsonl", dev=tmp_path / "dev").startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mixing_temperature": 0.001},
            "mixing_temperature is 0.001, expected a finite number from 0.1: 1 takes",
        ),
        ({"mixing_temperature": 2}, "mixing_temperature is 2, of the shares of several datasets, and train has one"),
        ({"seed": 2**63}, "seed is 9223372036854775808, expected less than 2 to the power of 63"),
        ({"lora.target_modules": "query,kye"}, "lora.target_modules ['query', 'kye']: no layer to adapt is called kye"),
        ({"eval_steps": 1}, "eval_steps is 1, and there is no dev set; give one with --dev FOLDER, hold one out with"),
        ({"max_seq_length": 4096}, "max_seq_length: 4096 tokens are more than the model's 128"),
        ({"batch_size": 1}, "batch_size is 1; in-batch negatives need at least 2 queries"),
        ({"matryoshka_dims": "96,24"}, "matryoshka_dims: 96 is more than the model's embedding has, 48"),
        ({"matryoshka_dims": "24,24"}, "matryoshka_dims: 24 is given 2 times; name each dimension once"),
        ({"matryoshka_dims": "24,0"}, "matryoshka_dims: 0 is not a dimension; expected whole numbers above 0"),
        ({"learnin_rate": 1}, "unknown key 'learnin_rate'; did you mean 'learning_rate'?"),
        (
            {"document_max_length": 4096},
            "query_max_length, document_max_length: 4096 tokens are more than the model's 128",
        ),
        ({"loss.score_margin": -2.5}, "loss.score_margin is -2.5, which masks every negative; expected at least -2"),
        (
            {"loss.hardness_mode": "all_negatives"},
            "loss.hardness_mode is all_negatives and loss.hardness_strength 0; expected a mode with a strength above 0",
        ),
        (
            {"loss.hardness_strength": 5},
            "loss.hardness_mode is None and loss.hardness_strength 5; expected a mode with a strength above 0, or null",
        ),
        (
            {"loss.hardness_mode": "hard_negatives", "loss.hardness_strength": 5, "num_negatives": 0},
            "loss.hardness_mode: hard_negatives weights a row's own hard negatives, and num_negatives is 0",
        ),
        (
            {"loss.hardness_mode": "in_batch_negatives", "loss.hardness_strength": 9, "loss.terms": "query_query"},
            "loss.hardness_mode: in_batch_negatives weights the term query_document, which loss.terms lacks",
        ),
        (
            {"loss.score_margin": 0.1, "loss.mask_document_document": "query", "loss.terms": "query_document"},
            "loss.mask_document_document is query, and says what is masked in the term document_document, which",
        ),
        (
            {"loss.score_margin": 0.1, "loss.terms": "[]"},
            "loss.score_margin is 0.1, and masks nothing: loss.terms is empty, and loss.mask_hard_negatives off",
        ),
        (
            {"loss.other_hard_negatives": "false", "loss.terms": "query_query,document_query"},
            "loss.other_hard_negatives: false leaves documents out of the terms query_document and document_document",
        ),
        ({"loss.guide_margin": 0.1}, "loss.guide_margin and loss.guide_margin_strategy are of a guide, and loss.guide"),
        ({"loss.guide": "no/such-model"}, "model no/such-model: not a directory with a config.json, and no id that"),
        (
            {"loss.guide": "m", "refresh.steps": 10},
            "refresh.steps: loss.guide encodes the documents of the data before training; set loss.guide to null",
        ),
        (
            {"loss.distillation_objective": "margin_mse"},
            "loss.distillation_objective: margin_mse needs teacher scores in the data, a loss.distillation_weight",
        ),
        (
            {"loss.regression_weight": 1},
            "loss.regression_weight learns the embeddings of loss.teacher, which names none",
        ),
        (
            {"loss.teacher": "m", "loss.regression_weight": 1, "refresh.steps": 10},
            "refresh.steps: mined negatives have no teacher; set loss.distillation_weight and loss.regression_weight",
        ),
        (
            {"loss.teacher": "m"},
            "loss.teacher is what a loss.distillation_weight or loss.regression_weight above 0 learns from",
        ),
        (
            {"loss.teacher": "m", "loss.distillation_weight": 1.0},
            "loss.teacher_temperature is 1, which makes the cosines of loss.teacher nearly equal; expected less",
        ),
        (
            {"loss.teacher": "m", "loss.regression_weight": 1.0, "loss.teacher_temperature": 0.1},
            "loss.teacher_temperature is 0.1, and divides the scores that a loss.distillation_weight above 0 learns",
        ),
        (
            {"loss.distillation_weight": 1.0},
            "loss.distillation_weight needs teacher scores, and no dataset has",
        ),
        (
            {"refresh.depth": 30, "refresh.among": 5},
            "refresh.depth, refresh.among: of negatives that are mined again, and refresh.steps is null; set it too",
        ),
        (
            {"loss.graded_objective": "angle"},
            "loss.graded_objective and loss.graded_temperature are of graded pairs, and no dataset has any",
        ),
        (
            {"loss.graded_objective": "cosine_similarity", "loss.graded_temperature": 0.1},
            "loss.graded_temperature is 0.1, and loss.graded_objective: cosine_similarity has no temperature",
        ),
        ({"train": "pairs.jsonl,pairs.jsonl"}, "train: two datasets are called 'pairs'; give each a name of its own"),
        ({"model": "no/such-model"}, "model no/such-model: not a directory with a config.json, and no id that the hub"),
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl: file: there is no such file or folder"),
        ({"train": "pairs.jsonl,"}, "a dataset has an empty name"),
        ({"train": '[{"path": "pairs.jsonl", "symmetric": false}]'}, "pairs.jsonl: symmetric is of graded pairs"),
        (
            {"train": '[{"path": "pairs.jsonl", "split": "test"}]'},
            "pairs.jsonl: split is test, and this has no splits, so that all of it would be read; leave split out, or",
        ),
        ({"dev": "nowhere"}, "nowhere: folder: there is no such folder; expected one in the BEIR layout"),
        ({"output_dir": "full"}, "full exists and is not empty, but has no config.yaml, so there is no run to resume"),
        ({"output_dir": "pairs.jsonl"}, "pairs.jsonl is a file; give a folder for the run"),
        ({"output_dir": "pairs.jsonl/run"}, "pairs.jsonl is a file, so that pairs.jsonl/run cannot be a folder"),
    ],
)
def test_settings(settings: dict[str, object], message: str, refuse: Callable[..., str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 16, "some")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert refuse(**{"train": "pairs.jsonl", **settings}).startswith(message)


def test_wandb_without_a_key(refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback, once the model was loaded and the guide's embeddings were made."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where keys are
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_pairs(tmp_path / "pairs.jsonl", 16, "some")
    message = "report_to: wandb: No API key configured. Use `wandb login` to log in. WANDB_MODE=offline keeps metrics"
    try:
        assert refuse(train="pairs.jsonl", report_to="wandb").startswith(message)
    finally:
        wandb.teardown()  # it keeps what it read of the environment for as long as the process lives


def test_scores_that_are_no_cosines(refuse: Callable[..., str], tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = "pairs.jsonl: scores are 0 to 5, and loss.graded_objective: cosine_similarity learns them as cosines; "
    assert refuse(train="pairs.jsonl", **{"loss.graded_objective": "cosine_similarity"}).startswith(message)


def test_in_batch_negatives_of_graded_pairs(refuse: Callable[..., str]) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = "pairs.jsonl: in_batch_negatives is of queries with positives, and graded pairs have no negatives"
    assert refuse(train='[{"path": "pairs.jsonl", "in_batch_negatives": false}]').startswith(message)


def test_settings_that_graded_pairs_would_leave_unused(refuse: Callable[..., str]) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = "loss.spread_out_weight: all datasets are graded pairs, which learn their scores alone; leave this out"
    assert refuse(train="pairs.jsonl", **{"loss.spread_out_weight": 0.5}).startswith(message)


NO_NEGATIVES = "pairs.jsonl: without loss.terms its rows need hard negatives, and it has or draws none"
OWN_NEGATIVES = "pairs.jsonl: without in_batch_negatives its rows need hard negatives, and it has or draws none"
ONE_QUERY = "pairs.jsonl: all its rows have the same query, so that no text of a batch is a negative of another row, "
ONE_POSITIVE = ONE_QUERY.replace("query", "positive")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"query": "q {}", "positives": ["p {}"]}, {"loss.terms": "[]"}, NO_NEGATIVES),
        ({"query": "q {}", "positives": ["p {}"]}, {"in_batch_negatives": False}, OWN_NEGATIVES),
        ({"query": "q", "positives": ["p {}"]}, {}, ONE_QUERY),
        ({"query": "q {}", "positives": ["p"]}, {}, ONE_POSITIVE),
        ({"query": "q {}", "positives": ["p"], "negatives": ["n {}"]}, {"num_negatives": 0}, ONE_POSITIVE),
    ],
)
def test_data_whose_loss_would_be_0_in_every_step(
    row: dict[str, object], settings: dict[str, object], message: str, refuse: Callable[..., str]
) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row).replace("{}", str(i)) + "\n" for i in range(16)))
    data = {"path": "pairs.jsonl", "in_batch_negatives": settings.pop("in_batch_negatives", True)}
    assert refuse(train=json.dumps([data]), **settings).startswith(message)


def test_a_model_that_could_not_be_exported(refuse: Callable[..., str], model: Path, tmp_path: Path) -> None:
    """test_exportable.py goes through all that an export refuses."""
    write_pairs(tmp_path / "pairs.jsonl", 16, "some")
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text("[]")
    message = refuse(train="pairs.jsonl", model=tmp_path / "model")
    assert message.startswith("model/sentence_bert_config.json: expected a")


def test_a_cache_that_does_not_fit_on_the_disk(refuse: Callable[..., str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 1000, "some")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        message = refuse(train=tmp_path / "pairs.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write the cache folder" in message
    assert os.strerror(errno.EFBIG) in message
    assert not list((tmp_path / "cache").iterdir())


def test_dimensions_may_come_in_any_order_and_keep_their_weights(bert: Path) -> None:
    flags = ["--model", str(bert), "--output_dir", "o", "--train", "a", "--matryoshka_dims", "16,48,24"]
    lengths = ["--query_max_length", "64", "--document_max_length", "64"]
    config = parse_config(EmbedConfig, None, [*flags, *lengths, "--matryoshka_weights", "1,2,3"])
    assert list(matryoshka_dims(config).items()) == [(48, 2.0), (24, 3.0), (16, 1.0)]
