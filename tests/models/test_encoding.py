"""Encoding in windows: values, order and counts; equal forward passes of ranks are tested in tests/distributed."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from nestling.batches.packing import pack
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats, TokenIds, encode_texts

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
TEXTS = [" ".join(WORDS[: 1 + (7 * i) % 10]) + f" {i}" for i in range(25)]


@pytest.fixture
def embedder(bert: Path, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    monkeypatch.setattr("nestling.models.encoding.WINDOW", 10)
    return Embedder.from_pretrained(bert)


def one_by_one(embedder: Embedder, texts: list[str], max_length: int) -> torch.Tensor:
    ids = embedder.text_tokenizer(texts, max_length).ids
    with torch.no_grad():
        return normalize(torch.cat([embedder(pack([each], 1, 0).chunks[0]) for each in ids]), dim=-1)


def test_windows_follow_the_order_of_the_texts(embedder: Embedder) -> None:
    blocks = list(encode_texts(embedder, TEXTS, prefix="to ", max_length=12, tokens_per_batch=30))
    assert [rows for rows, _ in blocks] == [slice(0, 10), slice(10, 20), slice(20, 25)]
    expected = one_by_one(embedder, [f"to {text}" for text in TEXTS], 12)
    torch.testing.assert_close(torch.cat([block for _, block in blocks]), expected, atol=2e-6, rtol=0)


def test_some_rows_are_encoded(embedder: Embedder) -> None:
    blocks = list(encode_texts(embedder, TEXTS, prefix="", max_length=32, rows=range(1, 25, 2)))
    assert [rows for rows, _ in blocks] == [slice(0, 10), slice(10, 12)]
    expected = one_by_one(embedder, TEXTS[1::2], 32)
    torch.testing.assert_close(torch.cat([block for _, block in blocks]), expected, atol=2e-6, rtol=0)


def test_rows_count_selected_texts_only(embedder: Embedder) -> None:
    windows: list[int] = []

    def select(ids: TokenIds) -> TokenIds:
        windows.append(len(ids))
        return [] if len(windows) == 2 else ids[:4]

    stats = EncodingStats()
    blocks = list(encode_texts(embedder, TEXTS, prefix="", max_length=32, select=select, stats=stats))
    assert windows == [10, 10, 5]
    assert [rows for rows, _ in blocks] == [slice(0, 4), slice(4, 4), slice(4, 8)]
    expected = one_by_one(embedder, TEXTS[:4] + TEXTS[20:24], 32)
    torch.testing.assert_close(torch.cat([block for _, block in blocks]), expected, atol=2e-6, rtol=0)
    assert (stats.texts, stats.encoded) == (25, 8)


def test_counts_by_hand(embedder: Embedder) -> None:
    stats = EncodingStats()
    texts = ["a", "a a a a a a", "a a", "a a a"]  # with [CLS] and [SEP]: 3, 8, 4 and 5 tokens; cut to 7
    lengths = [len(ids) for ids in embedder.text_tokenizer(texts, 7).ids]
    assert lengths == [3, 7, 4, 5]
    list(encode_texts(embedder, texts, prefix="", max_length=7, tokens_per_batch=10, stats=stats))
    # chunks: 7 | 5 + 4 padded to 5 | 3
    assert stats == EncodingStats(texts=4, truncated=1, encoded=4, tokens=19, positions=20)
    stats.seconds = 2.0
    assert str(stats) == (
        "4 texts, 1 truncated; 4 encoded with 19 tokens in 2.0 s, 10 tokens/s, 1.053 positions a token"
    )


def test_the_longest_texts_of_a_window_are_encoded_first(embedder: Embedder) -> None:
    shapes: list[int] = []
    embedder.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].input_ids.shape[1]))
    embedder.encode(TEXTS[:10], kind="document", max_length=32, tokens_per_batch=1)
    assert len(shapes) == 10
    assert shapes == sorted(shapes, reverse=True)
    assert shapes[0] > shapes[-1]


def test_training_mode_is_restored_when_the_iterator_is_closed_early(embedder: Embedder) -> None:
    embedder.train()
    blocks = encode_texts(embedder, TEXTS, prefix="", max_length=32)
    next(blocks)
    assert not embedder.training
    blocks.close()  # type: ignore[attr-defined]
    assert embedder.training
    assert torch.is_grad_enabled()


def test_no_texts_give_no_embeddings(embedder: Embedder) -> None:
    assert embedder.encode([], kind="query", max_length=32).shape == (0, embedder.dim)


def test_errors_of_the_thread_reach_the_caller(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="a maximum length of 2 tokens leaves no room"):
        embedder.encode(["a"], kind="query", max_length=2)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_texts_a_second(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    embedder.encode(TEXTS, kind="query", max_length=8, progress="queries")
    assert "queries:   0%" in terminal.getvalue()
    assert "0/25 [" in terminal.getvalue()
    assert "text/s]" in terminal.getvalue()


def test_no_terminal_shows_nothing(embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.encode(TEXTS, kind="query", max_length=8, progress="queries")
    assert capsys.readouterr().err == ""
