"""One optimizer step and the scoring of an encoder reranker beside sentence-transformers' CrossEncoder.

python scripts/bench/rerank.py --kind encoder
python scripts/bench/rerank.py --kind encoder --hidden 64 --layers 2 --groups 1 --vocabulary 1000 --repeats 1 --pairs 64

A BERT with random weights in float32, and groups of a positive and seven negatives with documents of lognormal lengths.
The peer trains with BinaryCrossEntropyLoss on shuffled pairs, all of the batch at once and padded, and scores by
`predict` with its default batches; ours trains with the pointwise loss in chunks of the size that a recipe takes, and
scores by `Reranker.score`. Losses, gradients and scores are compared before anything is timed. What is timed, and how,
is as in rerank.py.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Literal, cast

from measure import Result, Turns, comparison, machine, measured_steps, met, pick_device
from random_models import random_length, spread_out, write_word_tokenizer

from nestling.config import require
from nestling.console import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nestling.batches.rerank_batch import LabelledGroup

DOCUMENTS = 8  # of a group: a positive and its negatives
QUERY, QUERY_SPREAD, DOCUMENT = 12, 0.3, 120  # mean lengths, and the spread of the logarithm
SHORTEST, LONGEST, POSITIONS = 3, 400, 512
HEAD = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TOLERANCE = 1e-5  # relative, of the loss and of the gradient; absolute, of scores
PEER, OURS = "sentence-transformers", "nestling"


@dataclass(frozen=True)
class EncoderBenchConfig:
    """Settings of scripts/bench/rerank.py --kind encoder.

    Args:
        kind: encoder.
        groups: Queries of the batch, each with a positive and seven negatives.
        pairs: Pairs to score.
        spread: Of the logarithm of documents' lengths.
        hidden: Hidden size; heads have 32 dimensions.
        layers: Layers of the model.
        vocabulary: Tokens of the vocabulary.
        repeats: Timed steps, and timed scorings, of each side.
        device: cpu, cuda, or auto.
    """

    kind: Literal["encoder"] = "encoder"
    groups: int = 4
    pairs: int = 5000
    spread: float = 0.75
    hidden: int = 384
    layers: int = 12
    vocabulary: int = 30_522
    repeats: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require(min(self.groups, self.pairs, self.layers, self.repeats) > 0, "numbers have to be above 0")
        require(self.hidden > 0 and self.hidden % HEAD == 0, f"hidden is {self.hidden}; expected a multiple of {HEAD}")
        require(self.vocabulary >= 1000, f"vocabulary is {self.vocabulary}; expected at least 1000 tokens")


@dataclass(frozen=True)
class Case:
    """What a process is to do: one side's work, with the model that lies in `folder`."""

    side: str
    folder: Path
    config: EncoderBenchConfig


@dataclass(frozen=True)
class Pair:
    """A query and one of its documents."""

    query: str
    document: str
    relevant: bool


def measure(config: EncoderBenchConfig) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_model(config, folder)
        print(describe(config, parameters), flush=True)
        results = compare_steps(folder, config)
        print(f"\n{comparison(results, PEER, heading='a step')}", flush=True)
        seconds = compare_scoring(folder, config)
    print(f"\n{scoring(seconds)}\n\n{targets(results, seconds)}")


def write_model(config: EncoderBenchConfig, folder: Path) -> int:
    """A BERT with a tokenizer of whole words; the number of its parameters."""
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.hidden // HEAD,
        intermediate_size=4 * config.hidden,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    shape.num_labels = 1
    model = BertForSequenceClassification(shape)
    spread_out(model)
    model.save_pretrained(folder)
    write_word_tokenizer(
        folder,
        words(config),
        unknown="[UNK]",
        post_processor=processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
        ),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    return sum(parameter.numel() for parameter in model.parameters())


def words(config: EncoderBenchConfig) -> list[str]:
    return [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), config.vocabulary))]


def write_pairs(config: EncoderBenchConfig, groups: int) -> list[list[Pair]]:
    """Groups of random words, so that every text is different."""
    source, known = random.Random(0), words(config)[len(SPECIAL) :]

    def text(mean: int, spread: float) -> str:
        median = mean * exp(-(spread**2) / 2)
        length = random_length(source, median=median, spread=spread, shortest=SHORTEST, longest=LONGEST)
        return " ".join(source.choices(known, k=length))

    queries = [text(QUERY, QUERY_SPREAD) for _ in range(groups)]
    return [[Pair(query, text(DOCUMENT, config.spread), i == 0) for i in range(DOCUMENTS)] for query in queries]


def tokens_of(pair: Pair) -> int:
    return len(pair.query.split()) + len(pair.document.split()) + 3


def describe(config: EncoderBenchConfig, parameters: int) -> str:
    lengths = [tokens_of(pair) for group in write_pairs(config, config.groups) for pair in group]
    return (
        f"{machine(pick_device(config.device))}, {config.repeats} runs each\n"
        f"{parameters / 1e6:.1f} M parameters: hidden {config.hidden}, {config.layers} layers; {config.groups} groups "
        f"of {DOCUMENTS}, pairs of {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}"
    )


def compare_steps(folder: Path, config: EncoderBenchConfig) -> dict[str, Result]:
    """Results of both sides, whose timed steps take turns once they are seen to compute the same."""
    with Turns({side: partial(steps, Case(side, folder, config)) for side in SIDES}) as turns:
        results: dict[str, Result] = turns.first
        off = max(results[OURS].difference(results[PEER]))
        require(off < TOLERANCE, f"loss or gradient is off by {off:g} of the peer's")
        turns.add(config.repeats)
    return results


def steps(case: Case) -> Iterator[Result | tuple[float, float]]:
    """In a process of its own: the untimed step's result, then what each step took."""
    device, groups = pick_device(case.config.device), write_pairs(case.config, case.config.groups)
    model, load = SIDES[case.side](case, device)
    from nestling.backends.optimizer import adamw

    return measured_steps(
        model,
        adamw(model, learning_rate=0.0, weight_decay=0.0),
        load(groups),
        warm_up=load(groups[:1]),
        tokens=sum(tokens_of(pair) for group in groups for pair in group),
        device=device,
        counted="bert.embeddings.LayerNorm",
    )


Load = Callable[[list[list[Pair]]], Callable[[], "Tensor"]]


def peer(case: Case, device: "torch.device") -> tuple[Any, Load]:
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model: Any = CrossEncoder(str(case.folder), device=str(device))
    model.train()
    loss = BinaryCrossEntropyLoss(model)

    def load(groups: list[list[Pair]]) -> Callable[[], "Tensor"]:
        pairs = [pair for group in groups for pair in group]
        random.Random(2).shuffle(pairs)  # as its trainer's sampler does
        texts = [[pair.query for pair in pairs], [pair.document for pair in pairs]]

        def backward() -> "Tensor":
            value: Tensor = loss(texts, torch.tensor([float(pair.relevant) for pair in pairs], device=device))
            value.backward()
            return value.detach()

        return backward

    return model[0].model, load


def ours(case: Case, device: "torch.device") -> tuple[Any, Load]:
    from nestling.backends.optimizer import adamw
    from nestling.backends.plain import Plain
    from nestling.batches.packing import token_budget
    from nestling.batches.rerank_collation import RerankCollator
    from nestling.losses.reranker import pointwise
    from nestling.models.encoder_reranker import EncoderReranker
    from nestling.training.accumulated import accumulated_backward

    reranker = EncoderReranker.from_pretrained(case.folder, cpu=device.type == "cpu").to(device).train()
    backend = Plain(reranker, adamw(reranker, learning_rate=0.0, weight_decay=0.0))
    collator = RerankCollator(
        [],
        cast(Any, None),  # its chunks alone are made here
        reranker.pairs,
        query_max_length=POSITIONS,
        document_max_length=POSITIONS,
        chunk_tokens=token_budget(device),
        share_prefix=False,
        padding_free=reranker.padding_free,
    )

    def load(groups: list[list[Pair]]) -> Callable[[], "Tensor"]:
        def backward() -> "Tensor":
            chunks, labels = collator.chunks([labelled(collator, group) for group in groups], collator.chunk_tokens)
            count = sum(map(len, groups))

            def share_of(chunk: int, logits: "Tensor") -> "Tensor":
                targets = labels[chunk].targets.to(device)
                return pointwise(logits[:, 0], targets, positive_weight=1.0).sum() / count

            return accumulated_backward(backend, [chunk.to(device) for chunk in chunks], share_of)

        return backward

    return reranker.classifier, load


def labelled(collator: Any, group: list[Pair]) -> "LabelledGroup":
    """A tokenised group with its labels."""
    from nestling.batches.rerank_batch import LabelledGroup

    limits = {"query_max_length": POSITIONS, "document_max_length": POSITIONS}
    prompts = collator.tokenizer(group[0].query, [pair.document for pair in group], **limits).ids
    return LabelledGroup(prompts, [float(pair.relevant) for pair in group], None)


def compare_scoring(folder: Path, config: EncoderBenchConfig) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds of each side's scorings, which take turns."""
    import torch

    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with Turns({side: partial(scorings, Case(side, folder, config)) for side in SIDES}) as turns:
        off = float((torch.tensor(turns.first[OURS]) - torch.tensor(turns.first[PEER])).abs().max())
        require(off < TOLERANCE, f"scores are off by {off:g}")
        for _ in range(config.repeats):
            for side, took in turns.take():
                seconds[side].append(took)
    return seconds


def scorings(case: Case) -> Iterator[Any]:
    """In a process of its own: some scores, then what scoring all pairs took."""
    from sentence_transformers import CrossEncoder

    from nestling import Reranker

    device = pick_device(case.config.device)
    pairs = [pair for group in write_pairs(case.config, -(-case.config.pairs // DOCUMENTS)) for pair in group]
    texts = [(pair.query, pair.document) for pair in pairs[: case.config.pairs]]
    score: Callable[[list[tuple[str, str]]], Any]
    if case.side == PEER:
        score = partial(CrossEncoder(str(case.folder), device=str(device)).predict, show_progress_bar=False)
    else:
        score = Reranker.from_pretrained(case.folder, cpu=device.type == "cpu").to(device).score
    yield [float(each) for each in score(texts[:64])]
    while True:
        start, cpu_start = perf_counter(), process_time()
        score(texts)
        yield perf_counter() - start, process_time() - cpu_start


def medians(took: list[tuple[float, float]]) -> list[float]:
    """Of seconds and of processor seconds."""
    from statistics import median

    return [median(column) for column in zip(*took, strict=True)]


def scoring(seconds: dict[str, list[tuple[float, float]]]) -> str:
    """A line for each side."""
    lines = [[side, *medians(took)] for side, took in seconds.items()]
    return table(["scoring", "seconds", "CPU seconds"], lines, markdown=True)


def targets(results: dict[str, Result], seconds: dict[str, list[tuple[float, float]]]) -> str:
    """Which of the project's targets were met."""
    own, other = results[OURS], results[PEER]
    scored = [mine / theirs for mine, theirs in zip(*(medians(seconds[side]) for side in (OURS, PEER)), strict=True)]
    found: list[list[object]] = [
        ["time of a step", own.median / other.median, own.cpu_median / other.cpu_median, 0.45],
        ["memory of a step", own.mebibytes / other.mebibytes, "", 0.4],
        ["time of scoring", *scored, 0.5],
    ]
    return met(found, ["over the peer's", "found", "by CPU time"])


SIDES: dict[str, Callable[[Case, "torch.device"], tuple[Any, Load]]] = {PEER: peer, OURS: ours}
