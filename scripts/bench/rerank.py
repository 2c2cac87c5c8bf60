"""One optimizer step of a reranker beside sentence-transformers' CrossEncoder: time, and memory of activations.

python scripts/bench/rerank.py
python scripts/bench/rerank.py --kind encoder
python scripts/bench/rerank.py --hidden 64 --layers 2 --groups 2 --vocabulary 1000 --repeats 1

A small Qwen3 with random weights in float32 and tied embeddings, at the vocabulary of the real one; groups of a
positive and seven negatives, whose prompts begin with about 90 tokens in common. The peer is BinaryCrossEntropyLoss
over a causal model and LogitScore, fed as its trainer does: shuffled pairs, padded on the left, the mean over
accumulated micro-batches. Ours has the pointwise loss and as many pairs in a micro-batch, hence the same loss and
gradients, which are compared before anything is timed. With `--kind encoder` it is a BERT (rerank_encoder.py).

Each side has a process of its own, and they take turns; times are medians, and so are processor times, which other work
on the machine changes less. A step goes from texts to updated weights, on both sides. Memory is the peak of the untimed
first step over weights, gradients and optimizer state: resident memory on a CPU (Linux only), allocated memory on a
GPU. The learning rate is 0, so that every step computes the same.
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from measure import Result, Turns, comparison, machine, measured_steps, met, pick_device
from rerank_case import (
    DOCUMENTS,
    INSTRUCTION,
    LONGEST,
    PREFIX,
    SPECIAL,
    SUFFIX,
    Case,
    Group,
    RerankBenchConfig,
    settings,
    write_groups,
    write_model,
)

from nestling.config import parse_config, require, run

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from nestling.batches.prefix_sharing import SharedPrefixChunk
    from nestling.models.reranker import Reranker

T = TypeVar("T")
TOLERANCE = 1e-5  # relative, of the loss and of the gradient

PEER, SHARED, SEPARATE, ENCODER = "sentence-transformers", "shared prefixes", "separate rows", "encoder alone"


@dataclass(frozen=True)
class Side:
    """What a step needs.

    Args:
        model: The transformer without head, whose gradients are compared, and whose calls are counted.
        optimizer: Over its parameters.
        load: From groups to a function that adds the gradient of their loss and returns the loss.
    """

    model: "nn.Module"
    optimizer: "Optimizer"
    load: Callable[[list[Group]], Callable[[], "Tensor"]]


def main() -> None:
    if {"--kind=encoder", "encoder"} & set(sys.argv[1:]):
        import rerank_encoder

        rerank_encoder.measure(parse_config(rerank_encoder.EncoderBenchConfig, rerank_encoder.__doc__))
        return
    config = parse_config(RerankBenchConfig, __doc__)
    with TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_model(config, folder)
        ratio = token_ratio(config, folder)
        print(describe(config, parameters, ratio), flush=True)
        results = compare(folder, config)
    print(f"\n{comparison(results, PEER, alone=ENCODER)}\n\n{targets(results, ratio)}")


def token_ratio(config: RerankBenchConfig, folder: Path) -> float:
    """Tokens of all prompts over the positions that are left with prefixes shared: G (P + l) / (P + G l)."""
    reranker = load_reranker(Case(SHARED, folder, config))
    chunks = [prompts_to_chunk(reranker, [group]) for group in write_groups(config)]
    return sum(int(chunk.lengths.sum()) for chunk in chunks) / sum(chunk.positions for chunk in chunks)


def describe(config: RerankBenchConfig, parameters: int, ratio: float) -> str:
    lengths = [len(document.split()) + SUFFIX for group in write_groups(config) for document in group.documents]
    return (
        f"{machine(pick_device(config.device))}, {config.repeats} runs each\n"
        f"{parameters / 1e6:.1f} M parameters: hidden {config.hidden}, {config.layers} layers, {config.vocabulary:,} "
        f"tokens; {config.groups} groups of {DOCUMENTS}, {config.micro_batch} in a micro-batch, documents of "
        f"{min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}; "
        f"{ratio:.3f} tokens a position"
    )


def compare(folder: Path, config: RerankBenchConfig) -> dict[str, Result]:
    """Results of all sides, whose timed steps take turns once they are seen to compute the same."""
    with Turns({side: partial(steps, Case(side, folder, config)) for side in SIDES}) as turns:
        results: dict[str, Result] = turns.first
        for side in (SHARED, SEPARATE):
            off = max(results[side].difference(results[PEER]))
            require(off < TOLERANCE, f"{side}: loss or gradient is off by {off:g} of the peer's")
        turns.add(config.repeats)
    return results


def steps(case: Case) -> Iterator[Result | tuple[float, float]]:
    """In a process of its own: the untimed step's result, then what each step took."""
    device = pick_device(case.config.device)
    side, groups = SIDES[case.side](case, device), write_groups(case.config)
    return measured_steps(
        side.model,
        side.optimizer,
        side.load(groups),
        warm_up=side.load(groups[: case.config.micro_batch]),
        tokens=sum(
            PREFIX + INSTRUCTION + len(SPECIAL[3:]) + len(group.query.split()) + len(document.split()) + SUFFIX
            for group in groups
            for document in group.documents
        ),
        device=device,
    )


def peer(case: Case, device: "torch.device") -> Side:
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from nestling.backends.optimizer import adamw

    model = CrossEncoder(str(case.folder), device=str(device))  # takes LogitScore of yes and no for a causal model
    model.train()
    loss = BinaryCrossEntropyLoss(model)

    def load(groups: list[Group]) -> Callable[[], "Tensor"]:
        pairs = [
            (group.query, document, float(i == 0)) for group in groups for i, document in enumerate(group.documents)
        ]
        random.Random(2).shuffle(pairs)  # as its trainer's sampler does
        batches = cut(pairs, case.config.micro_batch * DOCUMENTS)

        def backward() -> "Tensor":
            total = torch.zeros((), device=device)
            for batch in batches:
                queries, documents, labels = (list(column) for column in zip(*batch, strict=True))
                value = loss([queries, documents], torch.tensor(labels, device=device)) / len(batches)
                value.backward()
                total += value.detach()
            return total

        return backward

    return Side(model[0].model.model, adamw(model, learning_rate=0.0, weight_decay=0.0), load)


def ours(case: Case, device: "torch.device") -> Side:
    import torch

    from nestling.backends.optimizer import adamw
    from nestling.backends.plain import Plain
    from nestling.losses.reranker import pointwise
    from nestling.training.accumulated import accumulated_backward

    reranker = load_reranker(case).to(device).train()
    optimizer = adamw(reranker, learning_rate=0.0, weight_decay=0.0)
    backend = Plain(reranker, optimizer)
    targets = torch.zeros(case.config.micro_batch, DOCUMENTS, device=device)
    targets[:, 0] = 1

    def load(groups: list[Group]) -> Callable[[], "Tensor"]:
        def share_of(chunk: int, logits: "Tensor") -> "Tensor":
            losses = pointwise(logits[:, 0], targets.flatten(), positive_weight=1.0)
            return losses.sum() / (len(groups) * DOCUMENTS)

        def backward() -> "Tensor":
            chunks = [prompts_to_chunk(reranker, part).to(device) for part in cut(groups, case.config.micro_batch)]
            return accumulated_backward(backend, chunks, share_of)

        return backward

    return Side(reranker.transformer, optimizer, load)


def encoder(case: Case, device: "torch.device") -> Side:
    """The same but for the head: the gradient of the last states is given."""
    import torch

    from nestling.backends.optimizer import adamw

    reranker = load_reranker(case).to(device).train()

    def load(groups: list[Group]) -> Callable[[], "Tensor"]:
        def backward() -> "Tensor":
            chunks = [prompts_to_chunk(reranker, part).to(device) for part in cut(groups, case.config.micro_batch)]
            for chunk in chunks:
                states = reranker.hidden_states(chunk, in_place=True)[0, chunk.last_positions]
                states.backward(torch.full_like(states, 1 / len(states)))
            return torch.zeros(())

        return backward

    return Side(reranker.transformer, adamw(reranker, learning_rate=0.0, weight_decay=0.0), load)


def cut(items: list[T], size: int) -> list[list[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def load_reranker(case: Case) -> "Reranker":
    from nestling.models.reranker import Reranker

    return Reranker.from_pretrained(
        case.folder,
        settings=settings(case.config),
        share_prefix=case.side != SEPARATE,
        cpu=pick_device(case.config.device).type == "cpu",
    )


def prompts_to_chunk(reranker: "Reranker", groups: list[Group]) -> "SharedPrefixChunk":
    """Prompts of some groups, tokenised and packed."""
    from nestling.batches.prefix_sharing import pack_groups

    read = partial(reranker.pairs, query_max_length=LONGEST, document_max_length=LONGEST)
    parts = [read(group.query, group.documents).ids for group in groups]
    return pack_groups(parts, share_prefix=reranker.share_prefix)


def targets(results: dict[str, Result], ratio: float) -> str:
    """Which of the project's targets were met; the gain over separate rows is to be 0.9 of what tokens it saves."""
    shared = results[SHARED]

    def over(side: str) -> tuple[float, float]:
        return shared.median / results[side].median, shared.cpu_median / results[side].cpu_median

    memory = shared.mebibytes / results[PEER].mebibytes
    found: list[list[object]] = [
        ["time over the peer's", *over(PEER), 0.4],
        ["memory over the peer's", memory, "", 0.25],
        ["time over the encoder's alone", *over(ENCODER), 1.15],
        ["time over that of separate rows", *over(SEPARATE), 1 / (0.9 * ratio)],
    ]
    return met(found, ["target", "found", "by CPU time"])


SIDES: dict[str, Callable[[Case, "torch.device"], Side]] = {
    PEER: peer,
    SHARED: ours,
    SEPARATE: ours,
    ENCODER: encoder,
}

if __name__ == "__main__":
    run(main)
