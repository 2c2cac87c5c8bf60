"""What the printed plan and the model card say of a dataset, and what the default prompt becomes."""

import json
from pathlib import Path
from typing import Any

import pytest

from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, RerankConfig, parse_config
from nestling.records.load import load_records
from nestling.training.data import query_prompts, shared_instruction, train_reads
from nestling.training.objectives import describe_dataset, zero_loss_reasons

FIND, NAME = "Find the sentence that answers", "Name the animal"
PLAIN: list[dict[str, Any]] = [{"query": f"q {i}", "positives": [f"p {i}"]} for i in range(4)]
MINED: list[dict[str, Any]] = [{**row, "negatives": [f"n {i}", f"m {i}"]} for i, row in enumerate(PLAIN)]
SCORED: list[dict[str, Any]] = [{**row, "positive_scores": [1], "negative_scores": [0, 0.5]} for row in MINED]
GRADED: list[dict[str, Any]] = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 4} for i in range(4)]
INSTRUCTED: list[dict[str, Any]] = [{**row, "instruction": FIND} for row in MINED]


def source(folder: Path, rows: list[dict[str, Any]], *, instruction: str | None = None, **settings: Any) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(load_records(path, instruction=instruction, allow_no_positives=True), **settings)


def embed_config(**more: object) -> EmbedConfig:
    flags = [f"--{name}={value}" for name, value in {"model": "m", "output_dir": "o", "train": "rows", **more}.items()]
    return parse_config(EmbedConfig, None, flags)


def rerank_config(**more: object) -> RerankConfig:
    flags = [f"--{name}={value}" for name, value in {"model": "m", "output_dir": "o", "train": "rows", **more}.items()]
    return parse_config(RerankConfig, None, flags)


DISTILLED = {"loss.distillation_weight": 0.5}
FROZEN = {
    **DISTILLED,
    "loss.teacher": "t",
    "loss.teacher_temperature": 0.05,
    "loss.guide": "g",
    "loss.spread_out_weight": 1,
    "loss.retention_weight": 1,
}
OWN = "instruction: the model's own in all rows"


@pytest.mark.parametrize(
    ("rows", "settings", "lines"),
    [
        (PLAIN, {}, ["InfoNCE", "4 rows; 4 positives, 0 hard negatives", OWN]),
        (
            PLAIN,
            {"loss.score_margin": 0.1, "loss.mask_hard_negatives": "true"},
            [
                "InfoNCE, without hard negatives for loss.mask_hard_negatives to mask",
                "4 rows; 4 positives, 0 hard negatives",
                OWN,
            ],
        ),
        (
            [*MINED[:3], PLAIN[3]],
            {"instruction": NAME},
            [
                "InfoNCE",
                "4 rows, 3 with hard negatives; 4 positives, 6 hard negatives",
                f"instruction: {NAME!r} in all rows",
            ],
        ),
        (
            SCORED,
            DISTILLED,
            [
                "InfoNCE and distillation from teacher scores",
                "4 rows, 4 with hard negatives, 4 with teacher scores; 4 positives, 8 hard negatives",
                OWN,
            ],
        ),
        (
            [*SCORED[:3], MINED[3]],
            DISTILLED,
            [
                "InfoNCE, without distillation, for which every row needs teacher scores",
                "4 rows, 4 with hard negatives, 3 with teacher scores; 4 positives, 8 hard negatives",
                OWN,
            ],
        ),
        (
            SCORED,
            {**DISTILLED, "loss.distillation_objective": "margin_mse"},
            [
                "InfoNCE and distillation from the margins of teacher scores",
                "4 rows, 4 with hard negatives, 4 with teacher scores; 4 positives, 8 hard negatives",
                OWN,
            ],
        ),
        (
            PLAIN,
            FROZEN,
            [
                "InfoNCE with false negatives masked by a guide and the spread-out regulariser and retention of random "
                "words and distillation from a teacher's embeddings",
                "4 rows; 4 positives, 0 hard negatives",
                OWN,
            ],
        ),
        (GRADED, DISTILLED, ["CoSENT, the scores of pairs as order", "4 graded pairs, scores 0 to 0.75", OWN]),
        (
            INSTRUCTED,
            {},
            [
                "InfoNCE",
                "4 rows, 4 with hard negatives; 4 positives, 8 hard negatives",
                f"instruction: {FIND!r} in 4 of 4 rows",
            ],
        ),
        (
            [{**INSTRUCTED[0], "instruction": NAME}, *INSTRUCTED[1:3], PLAIN[3]],
            {},
            [
                "InfoNCE",
                "4 rows, 3 with hard negatives; 4 positives, 6 hard negatives",
                f"instruction: {FIND!r} in 2, {NAME!r} in 1 of 4 rows; the model's own in the other 1",
            ],
        ),
        (
            [{**row, "instruction": f"task {i}"} for i, row in enumerate(PLAIN)],
            {},
            [
                "InfoNCE",
                "4 rows; 4 positives, 0 hard negatives",
                "instruction: 'task 0' in 1, 'task 1' in 1, 'task 2' in 1, 1 more in 1 of 4 rows",
            ],
        ),
    ],
)
def test_an_embedders_dataset(
    rows: list[dict[str, Any]], settings: dict[str, object], lines: list[str], tmp_path: Path
) -> None:
    assert describe_dataset(embed_config(**settings), source(tmp_path, rows)) == lines


def test_negatives_of_each_row_alone(tmp_path: Path) -> None:
    own = source(tmp_path, MINED, in_batch_negatives=False)
    assert describe_dataset(embed_config(), own)[0] == "InfoNCE with each row's own negatives only"


@pytest.mark.parametrize(
    ("rows", "settings", "objective"),
    [
        (MINED, {}, "pointwise with labels 1 and 0 as targets"),
        (SCORED, {"loss.labels": "teacher"}, "pointwise with teacher scores as targets"),
        (GRADED, {}, "pointwise with the scores of pairs as targets"),
        (MINED, {"loss.objective": "pointwise_vocabulary"}, "pointwise_vocabulary with labels 1 and 0 as targets"),
        (MINED, {"loss.objective": "listwise"}, "listwise"),
        (SCORED, {"loss.objective": "distillation"}, "distillation"),
        (MINED, {"loss.objective": "lambda"}, "lambda with labels 1 and 0 as targets"),
        (SCORED, {"loss.objective": "lambda", "loss.labels": "teacher"}, "lambda with teacher scores as targets"),
        (SCORED, {"loss.objective": "margin_mse"}, "margin_mse"),
    ],
)
def test_a_rerankers_dataset(
    rows: list[dict[str, Any]], settings: dict[str, object], objective: str, tmp_path: Path
) -> None:
    assert describe_dataset(rerank_config(**settings), source(tmp_path, rows))[0] == objective


def test_rows_without_positives_are_a_kind(tmp_path: Path) -> None:
    rows = [*MINED[:3], {**MINED[3], "positives": []}]
    kinds = "4 rows, 4 with hard negatives, 1 without positives; 3 positives, 8 hard negatives"
    assert describe_dataset(rerank_config(), source(tmp_path, rows))[1] == kinds


def test_the_summary_after_loading_counts_instructions(tmp_path: Path) -> None:
    rows = [*INSTRUCTED, INSTRUCTED[0], PLAIN[0]]
    text = str(source(tmp_path, rows).table.summary)
    assert f"\n  instructions of rows: {FIND!r} in 4 of 5 rows\n  dropped 1: row repeated" in text


@pytest.mark.parametrize(
    ("rows", "instruction", "shared"),
    [
        (INSTRUCTED, None, FIND),
        (INSTRUCTED, NAME, FIND),
        ([*INSTRUCTED[:3], PLAIN[3]], None, None),
        ([*INSTRUCTED[:3], {**INSTRUCTED[3], "instruction": NAME}], None, None),
        (PLAIN, NAME, None),
    ],
)
def test_an_instruction_of_all_rows_becomes_the_default_and_a_prompt_by_name(
    rows: list[dict[str, Any]], instruction: str | None, shared: str | None, tmp_path: Path
) -> None:
    reads = train_reads([source(tmp_path, rows, instruction=instruction)])
    assert shared_instruction(reads) == shared
    data = [{"path": "rows.jsonl", "instruction": instruction}]
    prompts = query_prompts(embed_config(train=json.dumps(data)), reads)
    assert prompts == {name: text for name, text in {"rows": shared or instruction}.items() if text}


def test_reasons_for_a_loss_of_0_are_those_that_the_data_allow(tmp_path: Path) -> None:
    graded, mined = source(tmp_path, GRADED), source(tmp_path, MINED)
    (reason,) = zero_loss_reasons(embed_config(), [graded])
    assert "all pairs of a batch have one score; raise batch_size" in reason
    assert [each.split(":")[0] for each in zero_loss_reasons(embed_config(), [mined])] == ["rows", "rows"]
    reasons = zero_loss_reasons(rerank_config(**{"loss.objective": "listwise"}), [mined])
    assert reasons[0].startswith("listwise compares positives with negatives of a query")
    graded_lists = rerank_config(**{"loss.objective": "lambda", "loss.labels": "teacher"})
    assert zero_loss_reasons(graded_lists, [mined])[0].startswith("lambda compares documents of a query whose scores")
