"""Many texts to embeddings, as evaluation and mining need them: each tokenised once, sorted, in even chunks.

Texts come in windows of some thousands. While the model runs one window, a thread tokenises, sorts and cuts the next:
what is held at a time is two windows of tokens and one of embeddings, however many texts there are.

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

# Texts that are sorted together: enough that padding is about 1 %, few enough to hold their tokens.
WINDOW = 8192

TokenIds = list[list[int]]

Part = TypeVar("Part")
Read = TypeVar("Read")


class Encoder(Protocol):
    """What `encode_texts` asks of an `Embedder`."""

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
class Tally:
    """What went into some embeddings, counted while they are made.

    Attributes:
        texts: Texts that were read.
        truncated: How many of them were longer than the limit.
        encoded: Texts that ran through the model.
        tokens: Their tokens.
        positions: The same with padding.
        seconds: Time that it took.
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


def keep_all(ids: TokenIds) -> TokenIds:
    return ids


def alone(count: int) -> int:
    """The largest count of a single process."""
    return count


def encode_texts(
    model: Encoder,
    texts: Sequence[str],
    *,
    prefix: str,
    max_length: int,
    rows: range | None = None,
    tokens_per_batch: int | None = None,
    keep: Callable[[TokenIds], TokenIds] = keep_all,
    agree: Callable[[int], int] = alone,
    progress: str | None = None,
    tally: Tally | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Normalised embeddings of each window, [b, D] float32 on the CPU, and their place among all that are encoded.

    The longest texts of a window come first, so that too large a batch fails at once. Until the iterator is exhausted
    or closed, the model is in evaluation mode.

    Args:
        model: The embedder.
        texts: Read a window at a time, with one slice.
        prefix: The prompt before each text.
        max_length: Tokens of a text, prompt and special tokens included.
        rows: Which of `texts` to encode; all by default.
        tokens_per_batch: Positions of a chunk, padding included; by default what suits the device.
        keep: From a window's token ids to those that are encoded; called in a thread, once a window, in order.
        agree: For models whose forward is a collective: the maximum of a number over all ranks, which then give equally
            many windows and run equally many chunks, also a rank without texts. All ranks must go on to the end.
        progress: Label of a bar that shows texts a second.
        tally: Counts up, but for the seconds.

    Raises:
        ValueError: `max_length` leaves no room for a text, or the tokenizer drops the end token.
    """
    rows = range(len(texts)) if rows is None else rows
    tally = Tally() if tally is None else tally
    budget = tokens_per_batch or token_budget(model.device)
    parts = [rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)]
    read = partial(_read, model.text_tokenizer, texts, prefix, max_length, budget, keep)
    more = repeat(Window.empty(), agree(len(parts)) - len(parts))
    start = 0
    with evaluating(model), progress_bar(len(rows), progress) as bar:
        for window in chain(ahead(read, parts), more):
            embeddings = _encode_window(model, window.batch, agree, bar)
            bar.update(window.texts - len(embeddings))
            window.count(tally)
            yield slice(start, start + len(embeddings)), embeddings
            start += len(embeddings)


@dataclass(frozen=True)
class Window:
    """Some texts, tokenised.

    Args:
        batch: Those of them that are encoded.
        texts: How many were read.
        truncated: How many of these were cut.
    """

    batch: TokenBatch
    texts: int
    truncated: int

    @classmethod
    def empty(cls) -> "Window":
        return cls(TokenBatch([], torch.empty(0, dtype=torch.int64), 0), 0, 0)

    def count(self, tally: Tally) -> None:
        tally.texts += self.texts
        tally.truncated += self.truncated
        tally.encoded += len(self.batch.position)
        tally.tokens += self.batch.tokens
        tally.positions += sum(chunk.positions for chunk in self.batch.chunks)


def _read(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    prefix: str,
    max_length: int,
    budget: int,
    keep: Callable[[TokenIds], TokenIds],
    rows: range,
) -> Window:
    tokenized = tokenizer([prefix + text for text in texts[rows.start : rows.stop : rows.step]], max_length)
    kept = keep(tokenized.ids)
    batch = pack(kept, budget, tokenizer.pad_id) if kept else Window.empty().batch
    return Window(batch, len(rows), tokenized.truncated)


def ahead(read: Callable[[Part], Read], parts: Iterable[Part]) -> Iterator[Read]:
    """What is read of each part, in order; a thread reads the next one while the caller works on the last."""
    waiting: Future[Read] | None = None
    with ThreadPoolExecutor(1) as thread:
        for part in parts:
            following = thread.submit(read, part)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _encode_window(model: Encoder, batch: TokenBatch, agree: Callable[[int], int], bar: "tqdm[Any]") -> Tensor:
    """[b, D] in the order of the texts; runs as many chunks as the rank that has most."""
    found = [torch.empty(0, model.dim, device=model.device)]
    more = agree(len(batch.chunks)) - len(batch.chunks)
    with torch.no_grad(), model.computing():
        for chunk in trimming(batch.chunks):
            found.append(normalize(model(chunk.to(model.device)), dim=-1))
            bar.update(len(chunk.lengths))
        for _ in range(more):
            model(pad([[model.text_tokenizer.pad_id]], 0).to(model.device))
    # One copy for the window: a copy for each chunk would wait for the device each time.
    return torch.cat(found).cpu()[batch.position]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, a module is in evaluation mode."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def progress_bar(total: int, label: str | None, unit: str = "text") -> "tqdm[Any]":
    """A bar on a terminal; hidden without label."""
    # The longest texts of a window come first, so only the mean rate says how long the rest takes.
    return tqdm(total=total, desc=label, unit=unit, smoothing=0, disable=None if label else True, leave=False)
