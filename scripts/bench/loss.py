"""Time and memory of the streaming loss beside sentence-transformers' losses, from embeddings to their gradients.

python scripts/bench/loss.py
python scripts/bench/loss.py --rows 512 --num_negatives 1,3 --repeats 9

Both compute the same loss: query-document, query-query and document-document directions, all Matryoshka dimensions,
masks off; the last columns switch our masks on. Up to `plain_negatives` hard negatives the peer is
MatryoshkaLoss(MultipleNegativesRankingLoss), above it the cached form, as its plain one needs too much memory.
Times are medians of runs that take turns in one process. Memory is the peak of resident memory over what the inputs
need, each in a process of its own (Linux only).
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from measure import status

from nestling.config import parse_config, require, require_dims, run
from nestling.console import table

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from nestling.losses.negatives import BatchStructure

TEMPERATURE = 0.05
DIRECTIONS: tuple[Literal["query_to_doc"], Literal["query_to_query"], Literal["doc_to_doc"]] = (
    "query_to_doc",
    "query_to_query",
    "doc_to_doc",
)


@dataclass(frozen=True)
class LossBenchConfig:
    """Settings of scripts/bench/loss.py.

    Args:
        rows: Sizes of the batch.
        num_negatives: Hard negatives a row.
        plain_negatives: Up to so many the peer is its plain loss.
        dims: Matryoshka dimensions; the greatest is the embedding's.
        cached_rows: Rows that the peer's cached loss works on at a time.
        repeats: Runs of each.
    """

    rows: list[int] = field(default_factory=lambda: [512, 2048])
    num_negatives: list[int] = field(default_factory=lambda: [1, 3, 7])
    plain_negatives: int = 3
    dims: list[int] = field(default_factory=lambda: [1024, 768, 512, 256, 128, 64, 32])
    cached_rows: int = 512
    repeats: int = 5

    def __post_init__(self) -> None:
        require(bool(self.rows) and min(self.rows) > 0, "rows: give sizes above 0")
        require(bool(self.num_negatives) and min(self.num_negatives) >= 0, "num_negatives: give numbers from 0")
        require(bool(self.dims), "dims is empty; give at least one dimension")
        require_dims(self.dims)
        require(self.cached_rows > 0 and self.repeats > 0, "cached_rows and repeats have to be above 0")


@dataclass(frozen=True)
class Case:
    rows: int
    negatives: int
    dims: list[int]
    cached_rows: int


def main() -> None:
    config = parse_config(LossBenchConfig, __doc__)
    import torch

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, dims {config.dims}, {config.repeats} runs each"
    )
    lines = []
    for rows in config.rows:
        for negatives in config.num_negatives:
            case = Case(rows, negatives, config.dims, config.cached_rows)
            lines.append(compare(case, "plain" if negatives <= config.plain_negatives else "cached", config.repeats))
    headings = ["N, K", "peer", "peer s", "ours s", "time", "peer MiB", "ours MiB", "memory", "masks: time", "memory"]
    print(table(headings, lines, markdown=True))


def compare(case: Case, peer: str, repeats: int) -> list[object]:
    """A line of the table."""
    methods = [peer, "ours", "masked"]
    seconds = times(case, methods, repeats)
    mebibytes = {method: peak_in_own_process(method, case) for method in methods}
    share = {method: seconds[method] / seconds[peer] for method in methods}
    memory = {method: mebibytes[method] / mebibytes[peer] for method in methods}
    return [
        f"{case.rows}, {case.negatives}",
        peer,
        seconds[peer],
        seconds["ours"],
        share["ours"],
        round(mebibytes[peer]),
        round(mebibytes["ours"]),
        memory["ours"],
        share["masked"],
        memory["masked"],
    ]


def times(case: Case, methods: list[str], repeats: int) -> dict[str, float]:
    """Median seconds of each method; the first, untimed turn makes sure that peer and ours compute the same."""
    runs = {method: prepare(method, case) for method in methods}
    values = {method: step() for method, step in runs.items()}
    expected, actual = values[methods[0]], values["ours"]
    require(abs(actual - expected) < 1e-4 * abs(expected), f"{methods[0]} gives {expected}, ours {actual}")
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method, step in runs.items():
            start = time.perf_counter()
            step()
            seconds[method].append(time.perf_counter() - start)
    return {method: statistics.median(each) for method, each in seconds.items()}


def peak_in_own_process(method: str, case: Case) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, method, case).result()


def peak(method: str, case: Case) -> float:
    """MiB that one run needs over its inputs. A tiny run first loads libraries and their kernels."""
    prepare(method, Case(64, case.negatives, case.dims, case.cached_rows))()
    step = prepare(method, case)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on VmHWM is the peak of what follows
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / 1024


def prepare(method: str, case: Case) -> Callable[[], float]:
    """Inputs of a case, and a function that computes loss and gradients once and returns the loss."""
    import torch

    random = torch.Generator().manual_seed(0)
    queries = torch.randn(case.rows, max(case.dims), generator=random)
    columns = [torch.randn(queries.shape, generator=random) for _ in range(1 + case.negatives)]
    columns[0].add_(queries, alpha=0.3)
    if method == "plain":
        return plain(case, [each.requires_grad_() for each in (queries, *columns)])
    if method == "cached":
        return cached(case, [each.requires_grad_() for each in (queries, *columns)])
    documents = torch.cat(columns).requires_grad_()
    return ours(case, queries.requires_grad_(), documents, masks=method == "masked")


def ours(case: Case, queries: "Tensor", documents: "Tensor", masks: bool) -> Callable[[], float]:
    from nestling.losses.chunked import info_nce

    structure = tuples(case.rows, case.negatives)
    margin = 0.1 if masks else None

    def step() -> float:
        queries.grad = documents.grad = None
        loss = info_nce(
            queries,
            documents,
            structure,
            temperature=TEMPERATURE,
            dims=case.dims,
            score_margin=margin,
            mask_identity=masks,
        )
        loss.backward()
        return loss.item()

    return step


def tuples(rows: int, negatives: int) -> "BatchStructure":
    """One positive and equally many negatives a row, documents standing column by column, all texts different."""
    import torch

    from nestling.losses.negatives import BatchStructure

    order = torch.arange(rows)
    return BatchStructure(
        query=order,
        positive=order,
        weight=torch.full((rows,), 1 / rows),
        owner=order.repeat(1 + negatives),
        is_negative=torch.arange(rows * (1 + negatives)) >= rows,
        query_text=order,
        document_text=torch.arange(rows * (1 + negatives)),
        known_positives=order.unsqueeze(1),
    )


def plain(case: Case, columns: list["Tensor"]) -> Callable[[], float]:
    import torch
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = stub()
    inner = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, directions=DIRECTIONS)
    loss = MatryoshkaLoss(model, inner, case.dims)

    def step() -> float:
        for each in columns:
            each.grad = None
        value = loss([{"sentence_embedding": each} for each in columns], torch.empty(0))
        value.backward()
        return float(value.detach())

    return step


def cached(case: Case, columns: list["Tensor"]) -> Callable[[], float]:
    """The second of its three steps: from embeddings in mini-batches to their gradients."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss

    model = stub()
    inner = CachedMultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, mini_batch_size=case.cached_rows, directions=DIRECTIONS
    )
    MatryoshkaLoss(model, inner, case.dims)  # replaces inner.calculate_loss
    parts = [[part.detach().requires_grad_() for part in each.split(case.cached_rows)] for each in columns]

    def step() -> float:
        for part in (part for each in parts for part in each):
            part.grad = None
        return float(inner.calculate_loss(parts, with_backward=True))

    return step


def stub() -> "SentenceTransformer":
    """A model whose output is its input."""
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")


if __name__ == "__main__":
    run(main)
