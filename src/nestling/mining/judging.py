"""A reranker as a judge of candidates: its logits, shared over ranks and kept in the cache."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_and_world
from nestling.mining.arrays import ArrayCache, cache_folder
from nestling.mining.fingerprints import add_weights, of_reranker
from nestling.mining.lists import Lists
from nestling.mining.pool import Pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Scores
from nestling.models.encoding import progress_bar
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group, ScoringStats
from nestling.models.token_model import is_decoder, read_config
from nestling.models.weights import model_file
from nestling.records.record import Record, text_id
from nestling.records.table import RecordTable
from nestling.retrieval.reranking import SelectedTexts

# Queries whose scores are written at once: a killed run goes on behind them.
BLOCK = 256
# What says how a CrossEncoder reads a pair.
CROSS_ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")
# Rows whose scores are held at a time.
ROWS_PER_BLOCK = 1024


class Judge(Protocol):
    """What scores candidates.

    Attributes:
        source: Directory or hub id.
        fingerprint: Tells whether it is the same as before.
    """

    source: str
    fingerprint: str

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        """Of each group the logits of its documents being relevant, [documents] float32 each."""


class RerankerJudge:
    """A reranker of ours."""

    def __init__(self, reranker: Reranker) -> None:
        self.source, self._reranker = reranker.source, reranker
        self.fingerprint = of_reranker(reranker)

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._reranker.logits(groups)


class CrossEncoderJudge:
    """A sentence-transformers CrossEncoder with one output; instructions are not read.

    Raises ValueError for one with several outputs.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        from sentence_transformers import CrossEncoder

        self.source = model
        self._model = CrossEncoder(model, device=str(device))
        if self._model.num_labels != 1:
            raise ValueError(f"--judge {model}: it gives {self._model.num_labels} scores a pair, expected one")
        settings = [model_file(model, name) for name in CROSS_ENCODER_FILES]
        digest = xxhash.xxh3_128(repr([None if path is None else path.read_bytes() for path in settings]).encode())
        add_weights(digest, self._model)
        self.fingerprint = digest.hexdigest()

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        pairs = [(group.query, document) for group in groups for document in group.documents]
        scores: Any = self._model.predict(
            pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True, show_progress_bar=False
        )
        return list(scores.float().cpu().split([len(group.documents) for group in groups]))


def open_judge(model: str, *, precision: torch.dtype, device: torch.device) -> Judge:
    """A reranker of ours, or else a CrossEncoder, by what its configuration says."""
    config = read_config(model)
    classifier = any("SequenceClassification" in name for name in config.architectures or [])
    if classifier or not is_decoder(config):
        return CrossEncoderJudge(model, device)
    reranker = Reranker.from_pretrained(model, precision=precision)
    return RerankerJudge(reranker.to(device))


def judge_lists(judge: Judge, query_set: QuerySet, pool: Pool, lists: Lists, *, progress: str | None = None) -> Scores:
    """Logits of listed documents, [n] float32 as `lists.values`, the same on every rank; all ranks must call it.

    Raises:
        ValueError: The judge gave logits that are not finite, or the ranks do not share the cache folder.
        CacheError: The cache cannot be written.
    """
    cache = ArrayCache(cache_folder(f"judged-{Path(judge.source).name}", judge.fingerprint))
    filled = np.flatnonzero(lists.counts > 0)
    blocks = [filled[start : start + BLOCK].tolist() for start in range(0, len(filled), BLOCK)]
    keys = [block_key(query_set, pool, lists, block) for block in blocks]
    missing = on_rank_zero(lambda: [i for i, each in enumerate(keys) if cache.open(each) is None])
    rank, world = rank_and_world()

    def score() -> None:
        mine = missing[rank::world]
        with progress_bar(sum(len(blocks[i]) for i in mine), progress, "query") as bar:
            for i in mine:
                groups = [
                    Group(
                        query_set.texts[query], SelectedTexts(pool.texts, lists[query]), query_set.instructions[query]
                    )
                    for query in blocks[i]
                ]
                cache.write(keys[i], finite(torch.cat(judge.logits(groups)), judge.source).numpy())
                bar.update(len(groups))

    on_every_rank(score)
    found = [cache.open(each) for each in keys]
    if any(each is None for each in found):
        raise ValueError(f"{cache.folder} lacks scores that were just written; the ranks must share this folder")
    return np.concatenate([np.zeros(0, np.float32), *(each for each in found if each is not None)])


def block_key(query_set: QuerySet, pool: Pool, lists: Lists, block: Sequence[int]) -> str:
    """A digest of the texts of some queries and of what is to be scored for them."""
    digest = xxhash.xxh3_128()
    for query in block:
        task = query_set.instructions[query]
        about = [int(query_set.identities[query]), None if task is None else text_id(task), len(lists[query])]
        digest.update(json.dumps(about).encode())
        digest.update(pool.identities[lists[query]].tobytes())
    return digest.hexdigest()


def finite(logits: Tensor, source: str) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{source} gave NaN or infinity; it has diverged")
    return logits


def probabilities(logits: Scores) -> Scores:
    """Of documents being relevant; NaN stays."""
    values: Scores = torch.from_numpy(logits).sigmoid().numpy()
    return values


def judged_records(
    reranker: Reranker, table: RecordTable, stats: ScoringStats, *, probabilities: bool, progress: bool
) -> Iterator[Record]:
    """The rows of a table with a reranker's scores of all their documents, a block at a time.

    Raises ValueError for scores that are not finite.
    """
    with progress_bar(len(table), "rows" if progress else None, "row") as bar:
        for start in range(0, len(table), ROWS_PER_BLOCK):
            records = [table[i] for i in range(start, min(start + ROWS_PER_BLOCK, len(table)))]
            groups = [Group(each.query, each.positives + each.negatives, each.instruction) for each in records]
            for record, own in zip(records, reranker.logits(groups, stats=stats), strict=True):
                finite(own, reranker.source)
                values = (own.sigmoid() if probabilities else own).tolist()
                first = len(record.positives)
                yield replace(record, positive_scores=tuple(values[:first]), negative_scores=tuple(values[first:]))
            bar.update(len(records))
