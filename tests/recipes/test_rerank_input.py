"""What train/rerank.py refuses: one line that says what is wrong, status 2, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import recipe

from nestling.config import RerankConfig, parse_config
from recipes.runs import refusal, unloadable, write_dev, write_pairs

RECIPE = recipe("rerank")
SCORES = {"positive_scores": [0.9], "negative_scores": [0.1]}


@pytest.fixture(scope="module")
def weightless(qwen3_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unloadable(qwen3_base, tmp_path_factory.mktemp("models") / "unloadable")


@pytest.fixture
def refuse(weightless: Path, workplace: Path) -> Callable[..., str]:
    """Start the recipe in this process, before the model loads unless it is given; returns its line of errors."""

    def started(**more: object) -> str:
        settings = {"model": weightless, "output_dir": "run", "query_max_length": 48, "document_max_length": 24}
        settings |= {"batch_size": 4, "use_cpu": "true", **more}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        return refusal(lambda: RECIPE.main(parse_config(RerankConfig, None)), *flags, folder=workplace)

    return started


def write(rows: list[dict[str, object]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(**more: object) -> list[dict[str, object]]:
    return [{"query": f"q {i}", "positives": [f"p {i}"], "negatives": [f"n {i}"], **more} for i in range(8)]


NO_NEGATIVES = "rows.jsonl: a reranker learns from negatives, and it has or draws none; mine some first"
NO_SCORES = "rows.jsonl: the loss needs scores, and not every row has them; write them with"
NO_PROBABILITIES = "rows.jsonl: scores from 0.1 to 2 are no probabilities; scale them to 0..1"
SOFT = {"loss.labels": "teacher"}
DISTILLED = {"loss.objective": "distillation"}
GRADED: list[dict[str, object]] = [
    {"sentence1": f"left {i}", "sentence2": f"right {i}", "score": 0.1 if i else 2} for i in range(8)
]
SOME_SCORES: list[dict[str, object]] = [*rows(**SCORES)[:-1], rows()[-1]]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (rows(negatives=[]), {}, NO_NEGATIVES),
        (rows(), {"num_negatives": 0}, NO_NEGATIVES),
        (rows(), DISTILLED, NO_SCORES),
        (rows(), SOFT, NO_SCORES),
        (SOME_SCORES, DISTILLED, NO_SCORES),
        (rows(), {"loss.objective": "margin_mse"}, NO_SCORES),
        (rows(), {**SOFT, "loss.objective": "lambda"}, NO_SCORES),
        (rows(**{**SCORES, "positive_scores": [2]}), SOFT, NO_PROBABILITIES),
        (
            rows(**{**SCORES, "negative_scores": [-1]}),
            {**SOFT, "loss.objective": "lambda"},
            "rows.jsonl: scores from -1 to 0.9 are no grades, whose gain is 2^grade - 1; scale them to 0..10",
        ),
        (GRADED, {}, NO_PROBABILITIES),
        (rows(positives=[], negatives=[]), {}, "rows.jsonl:1: "),
        (
            rows(positives=[]),
            {"loss.objective": "listwise"},
            "rows.jsonl: no row has a positive, and listwise compares",
        ),
        (rows(positives=[]), {"loss.objective": "lambda"}, "rows.jsonl: no row has a positive, and lambda compares"),
        (rows(positives=[]), {}, "rows: no row has a positive, so that a reranker would learn that no document is"),
        (rows()[:3], {}, "rows has 3 rows, fewer than the batch_size of 4"),
    ],
)
def test_training_data(
    content: list[dict[str, object]], settings: dict[str, object], message: str, refuse: Callable[..., str]
) -> None:
    write(content)
    assert refuse(train="rows.jsonl", **settings).startswith(message)


@pytest.mark.parametrize("objective", ["listwise", "lambda", "distillation", "margin_mse"])
def test_graded_pairs_have_nothing_to_compare(objective: str, refuse: Callable[..., str]) -> None:
    write([{**row, "score": 0.5 if i else 0.25} for i, row in enumerate(GRADED)])
    message = f"rows.jsonl: graded pairs have one document a query, and the {objective} objective compares several"
    assert refuse(train="rows.jsonl", **{"loss.objective": objective}).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attn_implementation": "flash_attention_2", "precision": "fp32"},
            "attn_implementation: flash_attention_2 computes in bfloat16 only; set precision: bf16",
        ),
        (
            {"loss.temperature": 2},
            "loss: pointwise has no temperature; set objective: listwise, lambda, distillation or margin_mse",
        ),
        (
            {"loss.objective": "listwise", "loss.labels": "teacher"},
            "loss: labels is for pointwise and lambda, and the objective is listwise",
        ),
        ({"loss.positive_weight": 0}, "loss.positive_weight is 0, expected a finite number above 0"),
        ({"loss.objectve": "listwise"}, "unknown key 'loss.objectve'; did you mean 'loss.objective'?"),
        ({"matryoshka_dims": "64"}, "unknown key 'matryoshka_dims'; "),
        ({"answers": "yes"}, "answers: ['yes'], expected two words: for relevant and not relevant"),
        ({"early_stopping_patience": 1}, "early_stopping_patience needs a dev set; give one with --dev FOLDER"),
        ({"train": '[{"path": "pairs.jsonl", "in_batch_negatives": false}]'}, "train: in_batch_negatives is the embed"),
        ({"dev": '[{"path": "dev", "depth": 0}]'}, "dev: depth is 0, expected at least 1"),
        ({"dev": '[{"path": "dev", "candidates": "gone.run"}]'}, "gone.run"),
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl: file: there is no such file or folder"),
    ],
)
def test_settings(settings: dict[str, object], message: str, refuse: Callable[..., str]) -> None:
    write_pairs(Path("pairs.jsonl"), 16, "some")
    write_dev(Path("dev"))
    assert refuse(**{"train": "pairs.jsonl", **settings}).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"answers": "relevant document,no"},
            "the answer 'relevant document' into",
        ),
        ({"answers": "yes,yes"}, "'yes' and 'yes' are the same token"),
        ({"document_max_length": 480}, "query_max_length, document_max_length: with the "),
    ],
)
def test_what_the_model_cannot_read(
    settings: dict[str, object], message: str, qwen3_base: Path, refuse: Callable[..., str]
) -> None:
    write(rows())
    assert message in refuse(model=qwen3_base, train="rows.jsonl", **settings)
