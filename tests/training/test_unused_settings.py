"""Settings of an objective that no dataset of a run learns by."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, RerankConfig, parse_config
from nestling.records.load import load_records
from nestling.training.unused_settings import require_relevant, require_used

PLAIN: list[dict[str, Any]] = [{"query": f"q {i}", "positives": [f"p {i}"]} for i in range(4)]
SCORED: list[dict[str, Any]] = [{**row, "positive_scores": [1]} for row in PLAIN]
MINED: list[dict[str, Any]] = [{**row, "negatives": [f"n {i}"]} for i, row in enumerate(PLAIN)]
JUDGED: list[dict[str, Any]] = [{**row, "positive_scores": [1], "negative_scores": [0]} for row in MINED]
REFUSED: list[dict[str, Any]] = [{"query": f"q {i}", "positives": [], "negatives": [f"n {i}"]} for i in range(4)]
GRADED: list[dict[str, Any]] = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 4} for i in range(4)]

TEACHER = {"loss.teacher": "t", "loss.distillation_weight": 1, "loss.teacher_temperature": 0.05}
HARDNESS = {"loss.hardness_mode": "all_negatives", "loss.hardness_strength": 5}
OWN, IN_BATCH = ({**HARDNESS, "loss.hardness_mode": each} for each in ("hard_negatives", "in_batch_negatives"))
MARGINS = {"loss.distillation_weight": 1, "loss.distillation_objective": "margin_mse"}


def sources(folder: Path, *datasets: list[dict[str, Any]], **settings: Any) -> list[Source]:
    found = []
    for i, rows in enumerate(datasets):
        path = folder / f"{i}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(Source(load_records(path, allow_no_positives=True), **settings))
    return found


def flags(**more: object) -> list[str]:
    return [f"--{name}={value}" for name, value in {"model": "m", "output_dir": "o", "train": "rows", **more}.items()]


@pytest.mark.parametrize(
    ("datasets", "settings", "message"),
    [
        ([GRADED], {"loss.guide": "g"}, "loss.guide: all datasets are graded pairs"),
        ([GRADED, GRADED], TEACHER, "loss.distillation_weight: all datasets are graded pairs"),
        ([GRADED], {"loss.distillation_weight": 1}, "loss.distillation_weight: all datasets are graded pairs"),
        (
            [GRADED],
            {**HARDNESS, "loss.spread_out_weight": 1},
            "loss.spread_out_weight, loss.hardness_mode: all datasets are graded pairs, which learn their scores alone",
        ),
        ([GRADED], {"refresh.steps": 0}, "refresh.steps: all datasets are graded pairs"),
        ([PLAIN], {"loss.graded_temperature": 0.1}, "loss.graded_objective and loss.graded_temperature are of graded"),
        ([PLAIN], OWN, "loss.hardness_mode: hard_negatives weights a row's own hard negatives, and no dataset has"),
        (
            [PLAIN, PLAIN],
            {"loss.other_hard_negatives": "false"},
            "loss.other_hard_negatives: false leaves hard negatives of other rows out, and no dataset has or draws any",
        ),
        (
            [PLAIN],
            {**HARDNESS, "loss.terms": "query_query"},
            "loss.hardness_mode: all_negatives weights documents compared with the query: a row's own hard negatives",
        ),
        ([MINED, GRADED], {"loss.distillation_weight": 1}, "loss.distillation_weight needs teacher scores"),
        ([SCORED, MINED], MARGINS, "loss.distillation_objective: margin_mse learns margins between positives and hard"),
        ([JUDGED], {**MARGINS, "num_negatives": 0}, "loss.distillation_objective: margin_mse learns margins"),
    ],
)
def test_refused(
    datasets: list[list[dict[str, Any]]], settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        require_used(parse_config(EmbedConfig, None, flags(**settings)), sources(tmp_path, *datasets))


def test_hardness_of_documents_of_other_rows_where_they_are_no_negatives(tmp_path: Path) -> None:
    config = parse_config(EmbedConfig, None, flags(**IN_BATCH))
    with pytest.raises(ValueError, match=r"in_batch_negatives weights documents of other rows, and no dataset has"):
        require_used(config, sources(tmp_path, MINED, in_batch_negatives=False))
    require_used(config, sources(tmp_path, MINED))


@pytest.mark.parametrize(
    ("datasets", "settings"),
    [
        ([GRADED], {"loss.score_margin": 0.1, "loss.graded_objective": "angle"}),
        ([GRADED, PLAIN], {**TEACHER, "loss.guide": "g", "loss.spread_out_weight": 1, "loss.graded_temperature": 0.1}),
        ([PLAIN, MINED], OWN),
        ([PLAIN], {**OWN, "refresh.steps": 2}),
        ([PLAIN], HARDNESS),
        ([MINED], {**HARDNESS, "loss.terms": "query_query"}),
        ([PLAIN, MINED], {"loss.other_hard_negatives": "false"}),
        ([PLAIN], {"loss.other_hard_negatives": "false", "refresh.steps": 2}),
        ([PLAIN], {"loss.score_margin": 0.1, "loss.mask_hard_negatives": "true"}),  # as shipped configurations say
        ([SCORED, JUDGED], MARGINS),
        ([SCORED], {"loss.distillation_weight": 1}),
    ],
)
def test_used_by_one_of_the_datasets(
    datasets: list[list[dict[str, Any]]], settings: dict[str, object], tmp_path: Path
) -> None:
    require_used(parse_config(EmbedConfig, None, flags(**settings)), sources(tmp_path, *datasets))


def test_a_reranker_needs_something_relevant(tmp_path: Path) -> None:
    config = parse_config(RerankConfig, None, flags())
    with pytest.raises(ValueError, match=r"^0, 1: no row has a positive, so that a reranker would learn that"):
        require_relevant(config, sources(tmp_path, REFUSED, REFUSED))
    require_relevant(config, sources(tmp_path, REFUSED, MINED))
    require_relevant(config, sources(tmp_path, GRADED))
    taught = parse_config(RerankConfig, None, flags(**{"loss.labels": "teacher"}))
    require_relevant(taught, sources(tmp_path, [{**row, "negative_scores": [0.9]} for row in REFUSED]))
