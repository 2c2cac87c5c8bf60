"""One optimizer step beside sentence-transformers' cached loss: time, memory of activations, padding.

python scripts/bench/step.py
python scripts/bench/step.py --rows 64 --single_rows 32 --repeats 1

A small Qwen3 with random weights in float32; rows of a query, a positive and a hard negative, every text different,
with lognormal lengths. The peer is MatryoshkaLoss(CachedMultipleNegativesRankingLoss) with its default mini-batch,
padding on the right, and on the left as Qwen3-Embedding's tokenizer has it. Ours has the same terms and no masks, hence
the same loss and gradients, which are compared. The ideal of a cached step is one graph over the whole batch, in the
same chunks; its memory allows fewer rows, `single_rows`.

Each side has a process of its own, and they take turns; times are medians. A step goes from token ids to updated
weights: our sorting and packing is in it, the peer's padding is not. Memory is the peak of the untimed first step over
weights, gradients and optimizer state: resident memory on a CPU (Linux only), allocated memory on a GPU. No side
recomputes activations inside the model. The learning rate is 0, so that every step computes the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from measure import Result, Turns, machine, measured_steps, met, pick_device
from step_case import LONGEST, Case, StepBenchConfig, count_tokens, write_columns, write_model

from nestling.config import parse_config, run
from nestling.console import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from nestling.losses.negatives import BatchStructure

TEMPERATURE = 0.05  # the peer's default scale of 20
WARM_UP = 8  # rows of a first step, after which gradients and optimizer state exist and kernels are loaded

RIGHT, LEFT = "sentence-transformers, padded right", "sentence-transformers, padded left"
TWICE, SOME, KEPT, SINGLE = "every chunk twice", "some graphs kept", "all graphs kept", "one graph"


@dataclass
class Side:
    """What a step needs.

    Args:
        model: Whose gradients are compared, and whose calls are counted.
        optimizer: Over its parameters.
        load: From columns of texts to a function that adds the gradient of their loss and returns the loss.
    """

    model: "nn.Module"
    optimizer: "Optimizer"
    load: Callable[[list[list[str]]], Callable[[], "Tensor"]]


def main() -> None:
    config = parse_config(StepBenchConfig, __doc__)
    with TemporaryDirectory() as name:
        folder = Path(name)
        print(describe(config, write_model(config, folder)), flush=True)
        peers = compare([RIGHT, LEFT, TWICE, SOME], config.rows, folder, config)
        print(f"\n{config.rows} rows\n\n{comparison(peers, {'right': RIGHT, 'left': LEFT})}", flush=True)
        single = compare([SINGLE, KEPT, TWICE], config.single_rows, folder, config)
        print(f"\n{config.single_rows} rows\n\n{comparison(single, {SINGLE: SINGLE})}", flush=True)
    print("\n" + targets(peers, single))


def describe(config: StepBenchConfig, parameters: int) -> str:
    lengths = sorted(count_tokens(text) for column in write_columns(config.rows, config) for text in column)
    return (
        f"{machine(pick_device(config.device))}, {config.repeats} runs each\n"
        f"{parameters / 1e6:.1f} M parameters: hidden {config.hidden}, {config.layers} layers; dims {config.dims}; "
        f"{len(lengths)} texts of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}, "
        f"{sum(lengths):,} in all"
    )


def compare(sides: list[str], rows: int, folder: Path, config: StepBenchConfig) -> dict[str, Result]:
    """Results of several sides, whose timed steps take turns."""
    with Turns({side: partial(steps, Case(side, rows, folder, config)) for side in sides}) as turns:
        turns.add(config.repeats)
        results: dict[str, Result] = turns.first
    return results


def steps(case: Case) -> Iterator[Result | tuple[float, float]]:
    """In a process of its own: the untimed step's result, then what each step took."""
    device = pick_device(case.config.device)
    side = SIDES[case.side](case, device)
    side.model.train()
    columns = write_columns(case.rows, case.config)
    return measured_steps(
        side.model,
        side.optimizer,
        side.load(columns),
        warm_up=side.load([column[:WARM_UP] for column in columns]),
        tokens=sum(count_tokens(text) for column in columns for text in column),
        device=device,
    )


def peer(case: Case, device: "torch.device", *, padding: str) -> Side:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from nestling.backends.optimizer import adamw

    config = case.config
    transformer = Transformer(str(case.folder), processor_kwargs={"padding_side": padding})
    pooling = Pooling(config.hidden, pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=str(device))
    inner = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=config.mini_batch)
    loss = MatryoshkaLoss(model, inner, config.dims)
    nothing = torch.empty(0, device=device)

    def load(columns: list[list[str]]) -> Callable[[], "Tensor"]:
        features = [
            {name: each.to(device) for name, each in model.preprocess(column).items() if isinstance(each, torch.Tensor)}
            for column in columns
        ]

        def backward() -> "Tensor":
            value: Tensor = loss(features, nothing)
            value.backward()
            return value.detach()

        return backward

    return Side(transformer.auto_model, adamw(model, learning_rate=0.0, weight_decay=0.0), load)


def ours(case: Case, device: "torch.device", *, memory: float) -> Side:
    """`cached_backward` with room for `memory` bytes of graphs."""
    from nestling.backends.optimizer import adamw
    from nestling.backends.plain import Plain
    from nestling.batches.packing import pack, token_budget
    from nestling.models.embedder import Embedder
    from nestling.training.cached import ActivationBudget, cached_backward
    from nestling.training.memory import activation_bytes, sample_chunk

    embedder = Embedder.from_pretrained(case.folder, cpu=device.type == "cpu").to(device).train()
    optimizer = adamw(embedder, learning_rate=0.0, weight_decay=0.0)
    backend = Plain(embedder, optimizer)
    chunk_tokens = case.config.chunk_tokens or token_budget(device)
    chunk = sample_chunk(LONGEST, chunk_tokens, case.config.vocabulary, device)
    budget = ActivationBudget(
        memory, activation_bytes(embedder, partial(backend.forward, last_backward=True), chunk) / chunk.positions
    )

    def load(columns: list[list[str]]) -> Callable[[], "Tensor"]:
        ids = embedder.text_tokenizer([text for column in columns for text in column], LONGEST).ids
        loss_of = loss_of_rows(len(columns[0]), case.config, device)

        def backward() -> "Tensor":
            batch = pack(ids, chunk_tokens, embedder.text_tokenizer.pad_id).to(device)
            return cached_backward(backend, batch, loss_of, budget)

        return backward

    return Side(embedder.backbone, optimizer, load)


def single_graph(case: Case, device: "torch.device") -> Side:
    """The same chunks in one graph: no embedding is computed twice."""
    import torch

    from nestling.backends.optimizer import adamw
    from nestling.batches.packing import pack, token_budget
    from nestling.models.embedder import Embedder

    embedder = Embedder.from_pretrained(case.folder, cpu=device.type == "cpu").to(device).train()
    chunk_tokens = case.config.chunk_tokens or token_budget(device)

    def load(columns: list[list[str]]) -> Callable[[], "Tensor"]:
        ids = embedder.text_tokenizer([text for column in columns for text in column], LONGEST).ids
        loss_of = loss_of_rows(len(columns[0]), case.config, device)

        def backward() -> "Tensor":
            batch = pack(ids, chunk_tokens, embedder.text_tokenizer.pad_id).to(device)
            encoded = [embedder(chunk, in_place=True) for chunk in batch.chunks]
            loss = loss_of(torch.cat(encoded)[batch.position])
            loss.backward()
            return loss.detach()

        return backward

    return Side(embedder.backbone, adamw(embedder, learning_rate=0.0, weight_decay=0.0), load)


def loss_of_rows(rows: int, config: StepBenchConfig, device: "torch.device") -> Callable[["Tensor"], "Tensor"]:
    """The peer's loss, which looks from queries to documents alone and masks none."""
    from nestling.losses.chunked import info_nce
    from nestling.losses.negatives import Terms

    structure = tuples(rows, device)

    def loss_of(embeddings: "Tensor") -> "Tensor":
        return info_nce(
            embeddings[:rows],
            embeddings[rows:],
            structure,
            temperature=TEMPERATURE,
            dims=config.dims,
            terms=Terms(query_query=False, document_document=False),
            score_margin=None,
            mask_identity=False,
        )

    return loss_of


def tuples(rows: int, device: "torch.device") -> "BatchStructure":
    """A positive and a hard negative a row, documents standing column by column, all texts different."""
    import torch

    from nestling.losses.negatives import BatchStructure

    order, documents = torch.arange(rows, device=device), torch.arange(2 * rows, device=device)
    return BatchStructure(
        query=order,
        positive=order,
        weight=torch.full((rows,), 1 / rows, device=device),
        owner=order.repeat(2),
        is_negative=documents >= rows,
        query_text=order,
        document_text=documents,
        known_positives=order.unsqueeze(1),
    )


def comparison(results: dict[str, Result], references: dict[str, str]) -> str:
    """A line for each side; ratios over `references`, sides by their short names, whose loss is that of the first."""
    first = results[next(iter(references.values()))]
    lines = [
        [
            side,
            result.median,
            *(result.median / results[reference].median for reference in references.values()),
            round(result.mebibytes),
            *(result.mebibytes / results[reference].mebibytes for reference in references.values()),
            result.padding,
            *(1e6 * each for each in result.difference(first)),
        ]
        for side, result in results.items()
    ]
    over = [f"over {name}" for name in references]
    headings = ["", "seconds", *over, "MiB", *over, "positions / tokens", "loss off, 1e-6", "gradient off, 1e-6"]
    return table(headings, lines, markdown=True)


def targets(peers: dict[str, Result], single: dict[str, Result]) -> str:
    """Which of the project's targets were met."""
    twice, right, left = peers[TWICE], peers[RIGHT], peers[LEFT]
    differences = [twice.difference(right), twice.difference(left), single[TWICE].difference(single[SINGLE])]
    found: list[list[object]] = [
        ["time over right padding", twice.median / right.median, 0.30],
        ["memory over right padding", twice.mebibytes / right.mebibytes, 0.25],
        ["time over left padding", twice.median / left.median, 0.20],
        ["time over one graph, all graphs kept", single[KEPT].median / single[SINGLE].median, 1.15],
        ["positions over tokens", twice.padding, 1.05],
        ["difference of loss or gradient, 1e-6", 1e6 * max(max(each) for each in differences), 10],
    ]
    return met(found, ["target", "found"])


SIDES: dict[str, Callable[[Case, "torch.device"], Side]] = {
    RIGHT: partial(peer, padding="right"),
    LEFT: partial(peer, padding="left"),
    TWICE: partial(ours, memory=0.0),
    KEPT: partial(ours, memory=float("inf")),
    SOME: lambda case, device: ours(case, device, memory=case.config.activation_memory * 1e9),
    SINGLE: single_graph,
}

if __name__ == "__main__":
    run(main)
