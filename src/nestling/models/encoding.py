"""Embeddings of many texts, for evaluation and mining.

Texts are processed in windows of some thousands. While the model encodes one window, a thread tokenises the next, sorts
it by length and splits it into chunks. So memory holds the tokens of two windows and the embeddings of one, however
many texts there are.

Shapes: b texts of one window, D dimensions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from nestling.batches.packing import AnyChunk, TokenBatch, pack, pad, token_budget
from nestling.batches.prompts import TextTokenizer
from nestling.heap import trimming

# Texts of a window: enough that padding is about 1 %, few enough to hold their tokens in memory.
WINDOW = 8192

TokenIds = list[list[int]]

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


class Encoder(Protocol):
    """What `encode_texts` uses of an `Embedder`."""

    text_tokenizer: TextTokenizer
    training: bool

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, chunk: AnyChunk) -> Tensor: ...

    def computing(self) -> AbstractContextManager[object]: ...

    def train(self, mode: bool) -> Any: ...


@dataclass
class EncodingStats:
    """Counts of encoded texts and their tokens; `encode_texts` adds to them.

    Attributes:
        texts: Texts that were tokenised.
        truncated: Texts of these that were truncated.
        encoded: Texts of these that ran through the model.
        tokens: Tokens of the encoded texts.
        positions: Their tokens and padding.
        seconds: Time that encoding took; set by the caller.
    """

    texts: int = 0
    truncated: int = 0
    encoded: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        padded = self.positions / max(self.tokens, 1)
        rate = self.tokens / max(self.seconds, 1e-9)
        return (
            f"{self.texts:,} texts, {self.truncated:,} truncated; {self.encoded:,} encoded with {self.tokens:,} tokens "
            f"in {self.seconds:.1f} s, {rate:,.0f} tokens/s, {padded:.3f} positions a token"
        )


def select_all(ids: TokenIds) -> TokenIds:
    """Encode all texts of a window."""
    return ids


def single_process(count: int) -> int:
    """The maximum of a number over the ranks of a single process: itself."""
    return count


def encode_texts(
    model: Encoder,
    texts: Sequence[str],
    *,
    prefix: str | Sequence[str],
    max_length: int,
    rows: range | None = None,
    tokens_per_batch: int | None = None,
    select: Callable[[TokenIds], TokenIds] = select_all,
    max_over_ranks: Callable[[int], int] = single_process,
    progress: str | None = None,
    stats: EncodingStats | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Normalised embeddings, a window at a time.

    The longest texts of a window are encoded first, so that running out of memory shows early. The model is in
    evaluation mode until the iterator is exhausted or closed.

    Args:
        model: The embedder.
        texts: The texts; each window is read with one slice.
        prefix: Prompt of each text; or prompts, one for each text, which are read with the same slices.
        max_length: Tokens of a text, prompt and special tokens included.
        rows: Indices of the texts to encode; all by default.
        tokens_per_batch: Positions of a chunk, padding included; by default what suits the device.
        select: Chooses the texts of a window to encode: given their token ids, returns those of the chosen ones.
            Called in a thread, once for each window, in order. With one prompt for each text all are encoded.
        max_over_ranks: Returns the maximum of a number over all ranks. Needed for models whose forward pass is a
            collective (sharded parameters): all ranks then yield equally many windows and run equally many chunks,
            even a rank without texts, and all must exhaust the iterator.
        progress: Label of a progress bar; none by default.
        stats: Counts to add to, all but the seconds.

    Yields:
        The rows of a window among all encoded texts, and their embeddings, [b, D] float32 on the CPU.

    Raises:
        ValueError: `max_length` leaves no room for a text, or the tokenizer does not append the end token.
    """
    rows = range(len(texts)) if rows is None else rows
    stats = EncodingStats() if stats is None else stats
    chunk_tokens = tokens_per_batch or token_budget(model.device)
    windows = [rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)]
    tokenize = partial(_tokenize, model.text_tokenizer, texts, prefix, max_length, chunk_tokens, select)
    # Windows without texts, for a rank that has fewer windows than others.
    empty = repeat(TokenizedTexts.empty(), max_over_ranks(len(windows)) - len(windows))
    start = 0
    with evaluating(model), progress_bar(len(rows), progress) as bar:
        for window in chain(prefetch(tokenize, windows), empty):
            embeddings = _encode_window(model, window.batch, max_over_ranks, bar)
            bar.update(window.texts - len(embeddings))
            window.count(stats)
            yield slice(start, start + len(embeddings)), embeddings
            start += len(embeddings)


@dataclass(frozen=True)
class TokenizedTexts:
    """A window of tokenised texts.

    Args:
        batch: The texts to encode.
        texts: Number of texts that were tokenised.
        truncated: Number of these that were truncated.
    """

    batch: TokenBatch
    texts: int
    truncated: int

    @classmethod
    def empty(cls) -> "TokenizedTexts":
        return cls(TokenBatch([], torch.empty(0, dtype=torch.int64), 0), 0, 0)

    def count(self, stats: EncodingStats) -> None:
        """Add this window to the counts."""
        stats.texts += self.texts
        stats.truncated += self.truncated
        stats.encoded += len(self.batch.position)
        stats.tokens += self.batch.tokens
        stats.positions += sum(chunk.positions for chunk in self.batch.chunks)


def _tokenize(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    prefix: str | Sequence[str],
    max_length: int,
    chunk_tokens: int,
    select: Callable[[TokenIds], TokenIds],
    rows: range,
) -> TokenizedTexts:
    window = slice(rows.start, rows.stop, rows.step)
    prompts = [prefix] * len(rows) if isinstance(prefix, str) else prefix[window]
    pooled_from = tokenizer.pooled_from(prompts)
    tokenized = tokenizer(list(map("".join, zip(prompts, texts[window], strict=True))), max_length)
    selected = select(tokenized.ids)
    if not selected:
        return TokenizedTexts(TokenizedTexts.empty().batch, len(rows), tokenized.truncated)
    starts = None if pooled_from is None else pooled_from[: len(selected)]
    batch = pack(selected, chunk_tokens, tokenizer.pad_id, pooled_from=starts)
    return TokenizedTexts(batch, len(rows), tokenized.truncated)


def prefetch(prepare: Callable[[Item], Prepared], items: Iterable[Item]) -> Iterator[Prepared]:
    """`map(prepare, items)`, but a thread prepares the next item while the caller uses the current one."""
    current: Future[Prepared] | None = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            following = thread.submit(prepare, item)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()


def _encode_window(model: Encoder, batch: TokenBatch, max_over_ranks: Callable[[int], int], bar: "tqdm[Any]") -> Tensor:
    """Embeddings of a window, [b, D], in the order of its texts; runs as many chunks as the rank that has most."""
    embeddings = [torch.empty(0, model.dim, device=model.device)]
    missing = max_over_ranks(len(batch.chunks)) - len(batch.chunks)
    with torch.no_grad(), model.computing():
        for chunk in trimming(batch.chunks):
            embeddings.append(normalize(model(chunk.to(model.device)), dim=-1))
            bar.update(len(chunk.lengths))
        for _ in range(missing):
            model(pad([[model.text_tokenizer.pad_id]], 0).to(model.device))
    # One copy for the window: a copy for each chunk would wait for the device each time.
    return torch.cat(embeddings).cpu()[batch.position]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A context in which a module is in evaluation mode."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def progress_bar(total: int, label: str | None, unit: str = "text") -> "tqdm[Any]":
    """A progress bar on a terminal; none without a label."""
    # The longest texts of a window come first: only the mean rate predicts the remaining time.
    return tqdm(total=total, desc=label, unit=unit, smoothing=0, disable=None if label else True, leave=False)
