"""Scores of many candidates: windows, counts, equal forward passes of ranks, and errors while prefetching."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nestling.models.scoring
from nestling.batches.packing import AnyChunk, Chunk, prompts_to_chunk
from nestling.batches.prefix_sharing import SharedPrefixChunk
from nestling.models.causal_reranker import CausalReranker
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.scoring import Group, Scorer, ScoringStats, logit_of, score_groups, windows
from tiny import SENTENCES

GROUPS = [
    Group("list files", [SENTENCES[0], "ls", SENTENCES[3]]),
    Group("find every file", SENTENCES[1:6], instruction="judge the command"),
    Group("人工智慧", ["one"]),
    Group("count " * 30, ["files " * 40, "lines"]),
]


class Counting(CausalReranker):
    """Records the chunks of its forward passes."""

    forwards: list[AnyChunk]

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.forwards.append(chunk)
        return super().forward(chunk, in_place=in_place)


def load(folder: Path, attention: str = "auto", *, share_prefix: bool = True) -> Counting:
    settings = RerankerSettings(prefix="", suffix="\nanswer:", query_max_length=24, document_max_length=32)
    model = Counting.from_pretrained(
        folder, settings=settings, attn_implementation=attention, share_prefix=share_prefix
    ).train()
    model.forwards = []
    return model


def one_by_one(model: Counting, groups: Sequence[Group]) -> list[Tensor]:
    """Scores of each document in a forward pass of its own."""
    alone = [
        torch.cat(list(score_groups(model, [Group(group.query, [document], group.instruction)])))
        for group in groups
        for document in group.documents
    ]
    model.forwards.clear()
    return list(torch.cat(alone).split([len(group.documents) for group in groups]))


@pytest.mark.parametrize(("attention", "share_prefix"), [("auto", True), ("auto", False), ("sdpa", False)])
@pytest.mark.parametrize("budget", [1, 100, 4096])
@pytest.mark.parametrize("window", [1, 3, 2048])
def test_scores_are_those_of_each_pair_alone(
    window: int, budget: int, attention: str, share_prefix: bool, qwen3_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nestling.models.scoring, "WINDOW", window)
    model = load(qwen3_base, attention, share_prefix=share_prefix)
    expected = one_by_one(model, GROUPS)
    found = list(score_groups(model, GROUPS, tokens_per_batch=budget))
    assert [each.shape for each in found] == [(3,), (5,), (1,), (2,)]
    for values, wanted in zip(found, expected, strict=True):
        assert (values.dtype, values.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    assert model.training
    assert all(isinstance(chunk, Chunk if attention == "sdpa" else SharedPrefixChunk) for chunk in model.forwards)
    if budget == 1:
        assert len(model.forwards) == 11
    if budget == 4096:
        assert len(model.forwards) == {1: 4, 3: 3, 2048: 1}[window]


def test_chunks_have_at_most_tokens_per_batch_positions(qwen3_base: Path) -> None:
    model = load(qwen3_base)
    list(score_groups(model, GROUPS, tokens_per_batch=200))
    assert len(model.forwards) > 1
    for chunk in model.forwards:
        assert chunk.positions <= 200


def test_windows_are_of_about_so_many_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.models.scoring, "WINDOW", 4)
    groups = [Group(str(i), ["d"] * count) for i, count in enumerate([1, 2, 3, 9, 1, 4, 1])]
    found = [[group.query for group in window] for window in windows(groups)]
    assert found == [["0", "1", "2"], ["3"], ["4", "5"], ["6"]]
    assert list(windows([])) == []


def test_counts(qwen3_base: Path) -> None:
    model, stats = load(qwen3_base), ScoringStats(queries=1)
    list(score_groups(model, GROUPS, stats=stats, tokens_per_batch=4096))
    assert (stats.queries, stats.documents) == (5, 11)
    limits = {"query_max_length": 24, "document_max_length": 32}
    pairs = [model.pairs(group.query, group.documents, instruction=group.instruction, **limits) for group in GROUPS]
    assert stats.tokens == sum(len(ids) for pair in pairs for ids in pair.ids)
    assert stats.truncated_documents == sum(pair.truncated_documents for pair in pairs) >= 1
    assert stats.truncated_queries == 1
    assert stats.positions == sum(chunk.positions for chunk in model.forwards) < stats.tokens
    ratio = f"{stats.positions / stats.tokens:.3f} positions a token"
    truncated = f"11 documents, {stats.truncated_documents} truncated"
    assert str(stats) == f"5 queries, 1 truncated; {truncated}; {ratio}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_in_documents(qwen3_base: Path) -> None:
    model = load(qwen3_base)
    with redirect_stderr(Terminal()) as shown:
        list(score_groups(model, GROUPS, progress="candidates"))
    assert "candidates:" in shown.getvalue()
    assert "/11 [" in shown.getvalue()
    with redirect_stderr(Terminal()) as shown:
        list(score_groups(model, GROUPS))
    assert shown.getvalue() == ""


class Others:
    """A maximum over ranks in which the other ranks have the given numbers."""

    def __init__(self, answers: Sequence[int]) -> None:
        self.answers, self.asked = list(answers), list[int]()

    def __call__(self, number: int) -> int:
        self.asked.append(number)
        return max(number, self.answers.pop(0))


def test_ranks_run_as_many_chunks_as_the_one_that_has_most(qwen3_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.models.scoring, "WINDOW", 4)
    model = load(qwen3_base)
    expected = one_by_one(model, GROUPS)
    others = Others([5, 1, 9, 2, 3, 0])  # windows; chunks of each of five windows, of which this rank has three
    found = list(score_groups(model, GROUPS, tokens_per_batch=4096, max_over_ranks=others))
    assert others.asked == [2, 1, 1, 0, 0, 0]
    assert not others.answers
    assert len(model.forwards) == 1 + 9 + 2 + 3 + 0
    for values, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)


def test_a_rank_without_queries_runs_as_many_chunks(qwen3_base: Path) -> None:
    model = load(qwen3_base)
    assert list(score_groups(model, [], max_over_ranks=Others([2, 1, 2]))) == []
    assert [chunk.positions for chunk in model.forwards] == [1, 1, 1]


class Broken(Sequence[str]):
    """A collection that cannot be read to its end."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: object) -> str:  # type: ignore[override]
        raise OSError("the disk went away")


def test_errors_of_the_prefetching_thread_reach_the_caller(qwen3_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.models.scoring, "WINDOW", 3)
    model = load(qwen3_base)
    scores = score_groups(model, [GROUPS[0], Group("q", Broken())])
    with pytest.raises(OSError, match="the disk went away"):
        list(scores)
    assert model.training


def test_closing_early_restores_training_mode(qwen3_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.models.scoring, "WINDOW", 1)
    model: Scorer = load(qwen3_base)
    scores = score_groups(model, GROUPS)
    next(scores)
    assert not model.training
    scores.close()
    assert model.training


def test_the_logit_of_log_probabilities_is_their_difference() -> None:
    z = torch.tensor([[0.5], [-2.0]])
    assert logit_of(z).tolist() == [0.5, -2.0]
    both = torch.tensor([[-3.0, -1.0], [-0.5, -4.5]])
    assert logit_of(both).tolist() == [2.0, -4.0]


def test_chunks_are_packed_or_padded() -> None:
    groups = [[[1] * 20 + [2], [1] * 20 + [3, 4]], [[5]]]
    padding_free = prompts_to_chunk(groups, share_prefix=True, padding_free=True)
    assert isinstance(padding_free, SharedPrefixChunk)
    assert padding_free.prompts() == groups
    padded = prompts_to_chunk(groups, share_prefix=True, padding_free=False)
    assert isinstance(padded, Chunk)
    assert padded.lengths.tolist() == [21, 22, 1]
    assert padded.input_ids.shape == (3, 22)
