"""Judges: logits of a Reranker and of a CrossEncoder, and their cache."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import nestling.mining.judge
from mining.small import opened, random_rows, write_rows
from nestling.export.reranker import export_reranker
from nestling.mining.judge import CrossEncoderJudge, Judge, RerankerJudge, judge_lists, open_judge, probabilities
from nestling.mining.lists import Lists
from nestling.mining.pool import Pool
from nestling.mining.query_set import QuerySet
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group

CPU = torch.device("cpu")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[QuerySet, Pool, Lists]:
    """Queries, documents, and some of these to judge for each; one query has none."""
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nestling.mining.judge, "QUERIES_PER_BLOCK", 4)
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", random_rows(12)))
    rng = np.random.default_rng(0)
    return query_set, pool, Lists.of([rng.choice(len(pool), i % 4, replace=False) for i in range(len(query_set))])


def cross_encoder(bert: Path, folder: Path, outputs: int) -> Path:
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("*.safetensors", "modules.json", "*sentence*", "1_*"))
    config = BertConfig.from_pretrained(bert, num_labels=outputs)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_logits_are_those_of_the_reranker(task: tuple[QuerySet, Pool, Lists], qwen3_reranker: Path) -> None:
    query_set, pool, lists = task
    logits = judge_lists(open_judge(str(qwen3_reranker), precision=torch.float32, device=CPU), *task)
    reranker = Reranker.from_pretrained(qwen3_reranker)
    for query in range(len(query_set)):
        span = slice(lists.offsets[query], lists.offsets[query + 1])
        pairs = [(query_set.texts[query], pool.texts[document]) for document in lists[query].tolist()]
        if pairs:
            expected = reranker.score(pairs, instruction=query_set.instructions[query])
            np.testing.assert_allclose(probabilities(logits[span]), expected.numpy(), atol=1e-6)
    assert logits.dtype == np.float32


class Counting:
    """A judge that counts what it reads, and may be killed."""

    source, fingerprint = "counting", "0"

    def __init__(self, last: int = 10**9) -> None:
        self.last, self.read = last, 0

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        if self.read >= self.last:
            raise KeyboardInterrupt
        self.read += sum(len(group.documents) for group in groups)
        return [torch.tensor([float(len(text)) for text in group.documents]) for group in groups]


def judge(counting: Counting, task: tuple[QuerySet, Pool, Lists]) -> np.ndarray:
    as_judge: Judge = counting
    return judge_lists(as_judge, *task)


def test_a_killed_judge_continues_and_scores_no_pair_twice(task: tuple[QuerySet, Pool, Lists]) -> None:
    _, pool, lists = task
    with pytest.raises(KeyboardInterrupt):
        judge(killed := Counting(last=1), task)
    again = Counting()
    expected = [len(pool.texts[document]) for document in lists.values.tolist()]
    assert judge(again, task).tolist() == expected
    assert killed.read > 0
    assert killed.read + again.read == len(expected)
    third = Counting()
    assert judge(third, task).tolist() == expected
    assert third.read == 0


def test_other_lists_cost_their_new_pairs(task: tuple[QuerySet, Pool, Lists]) -> None:
    """As with other thresholds, which change what is left of most queries."""
    query_set, pool, lists = task
    judge(Counting(), task)
    more = [np.append(lists[query][1:], query) for query in range(len(lists))]
    other = Lists.of([np.unique(each) for each in more])
    new = (~lists.holds(other.owners, other.values)).sum()
    again = Counting()
    expected = [len(pool.texts[document]) for document in other.values.tolist()]
    assert judge(again, (query_set, pool, other)).tolist() == expected
    assert 0 < new == again.read < len(expected)


def test_an_instruction_is_part_of_the_pair(task: tuple[QuerySet, Pool, Lists]) -> None:
    query_set, pool, lists = task
    judge(Counting(), task)
    again, instructions = Counting(), [f"{each} now" for each in query_set.instructions]
    judge(again, (replace(query_set, instructions=instructions), pool, lists))
    assert again.read == len(lists.values)


def test_damaged_logits_are_computed_again(task: tuple[QuerySet, Pool, Lists], tmp_path: Path) -> None:
    _, _, lists = task
    expected = judge(Counting(), task)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert len(files) > 1
    files[0].write_bytes(files[0].read_bytes()[:-20])
    again = Counting()
    assert judge(again, task).tolist() == expected.tolist()
    assert 0 < again.read < len(lists.values)


def test_logits_are_those_of_the_cross_encoder(task: tuple[QuerySet, Pool, Lists], bert: Path, tmp_path: Path) -> None:
    query_set, pool, lists = task
    model = cross_encoder(bert, tmp_path / "cross", outputs=1)
    logits = judge_lists(open_judge(str(model), precision=torch.float32, device=CPU), *task)
    pairs = [
        (query_set.texts[query], pool.texts[document])
        for query, document in zip(lists.owners, lists.values, strict=True)
    ]
    expected = CrossEncoder(str(model), device="cpu").predict(pairs, show_progress_bar=False)  # through a sigmoid
    np.testing.assert_allclose(probabilities(logits), expected, atol=1e-6)
    judge = open_judge(str(model), precision=torch.float32, device=CPU)
    assert isinstance(judge, RerankerJudge)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    shorter = open_judge(str(model), precision=torch.float32, device=CPU)
    assert shorter.fingerprint != judge.fingerprint, "it reads fewer tokens of a pair"
    with pytest.raises(ValueError, match="a classifier of 3 labels, and a reranker has one"):
        open_judge(str(cross_encoder(bert, tmp_path / "three", outputs=3)), precision=torch.float32, device=CPU)


def test_logits_are_those_of_a_causal_model_made_a_classifier(qwen3_reranker: Path, tmp_path: Path) -> None:
    reranker = Reranker.from_pretrained(qwen3_reranker)
    export_reranker(reranker, tmp_path / "classifier", shape="classifier", trained=False)
    judge = open_judge(str(tmp_path / "classifier"), precision=torch.float32, device=CPU)
    assert isinstance(judge, CrossEncoderJudge)
    groups = [Group("list the files", ["ls", "find every file"]), Group("count", ["wc"])]
    for found, expected in zip(judge.logits(groups), reranker.logits(groups), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_logits_that_are_not_finite_are_an_error(task: tuple[QuerySet, Pool, Lists]) -> None:
    class Diverged(Counting):
        def logits(self, groups: Sequence[Group]) -> list[Tensor]:
            return [each * torch.nan for each in super().logits(groups)]

    with pytest.raises(ValueError, match="counting gave NaN or infinity"):
        judge(Diverged(), task)
