"""Judges: rerankers whose logits say which candidates are relevant; logits are split over ranks and cached."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from nestling.config.checks import require
from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_and_world
from nestling.mining.fingerprints import add_weights, reranker_fingerprint
from nestling.mining.judged_pairs import JudgedPairs, PairIds, pair_ids
from nestling.mining.lists import Lists
from nestling.mining.pool import Pool, flat_values
from nestling.mining.query_set import QuerySet, read_instructions
from nestling.mining.retrieved import Scores
from nestling.models.checked_loading import loading
from nestling.models.encoding import progress_bar
from nestling.models.model_sources import classifies, require_no_embedder
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.remote_code import is_trusted
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group, ScoringStats
from nestling.models.token_model import is_decoder, read_config
from nestling.models.weights import model_file
from nestling.records.record import Record
from nestling.records.table import RecordTable
from nestling.retrieval.reranking import SelectedTexts

# Queries whose logits are one file of the cache; a run that was killed continues after the last complete one.
QUERIES_PER_BLOCK = 256
# The files that determine how a CrossEncoder reads a pair.
CROSS_ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")
# Records in memory at a time.
RECORDS_PER_BLOCK = 1024


class Judge(Protocol):
    """A model that scores query-document pairs.

    Attributes:
        source: Directory or hub id.
        fingerprint: Identifies the model, for the cache.
    """

    source: str
    fingerprint: str

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        """For each group, the logits of its documents being relevant to its query, [documents] float32."""


class RerankerJudge:
    """A `nestling.Reranker` as a judge."""

    def __init__(self, reranker: Reranker) -> None:
        self.source, self._reranker = reranker.source, reranker
        self.fingerprint = reranker_fingerprint(reranker)

    def logits(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._reranker.logits(groups)


class CrossEncoderJudge:
    """A sentence-transformers CrossEncoder as a judge; it does not read instructions.

    Raises ValueError for a model with more than one output.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        from sentence_transformers import CrossEncoder

        self.source = model
        load_tokenizer(model)  # for its errors
        with loading(model, "tokenizer and weights"):
            self._model = CrossEncoder(model, device=str(device), trust_remote_code=is_trusted(model))
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


def open_judge(model: str, *, precision: torch.dtype, device: torch.device, attn_implementation: str = "auto") -> Judge:
    """A CrossEncoder if the model is a causal language model made a classifier, otherwise a Reranker.

    Raises ValueError for an embedder, or an encoder without a classifier.
    """
    require_judge(model)
    config = read_config(model)
    if classifies(config.architectures) and is_decoder(config):
        return CrossEncoderJudge(model, device)
    reranker = Reranker.from_pretrained(model, precision=precision, attn_implementation=attn_implementation)
    return RerankerJudge(reranker.to(device))


def require_judge(model: str) -> None:
    """Raise ValueError, before any weights are read, for an embedder, or an encoder without a classifier."""
    config = read_config(model)
    if not classifies(config.architectures):
        require_no_embedder(model)
    require(
        is_decoder(config) or classifies(config.architectures),
        f"--judge {model}: {', '.join(config.architectures or [config.model_type])} gives pairs no scores; expected a "
        "reranker or a CrossEncoder",
    )


def judge_lists(judge: Judge, query_set: QuerySet, pool: Pool, lists: Lists, *, progress: str | None = None) -> Scores:
    """Logits of listed documents, the same on every rank; all ranks must call it.

    Args:
        judge: The model.
        query_set: The queries.
        pool: The documents.
        lists: The documents to judge for each query, n of all queries together, as positions in the pool.
        progress: Label of a progress bar; None for no bar.

    Returns:
        [n] float32, in the order of `lists.values`.

    Raises:
        ValueError: The judge gave logits that are not finite, or the ranks do not share the cache folder.
        CacheError: The cache cannot be written.
    """
    judged = JudgedPairs(judge.source, judge.fingerprint)
    documents = Lists(lists.offsets, pool.identities[lists.values])
    pairs = pair_ids(query_set.identities, query_set.instructions, documents)
    missing = on_rank_zero(lambda: np.flatnonzero(np.isnan(judged.find(pairs))))
    new = Lists.grouped(lists.owners[missing], missing, len(lists))
    with_new = np.flatnonzero(new.counts > 0)
    blocks = [with_new[start : start + QUERIES_PER_BLOCK] for start in range(0, len(with_new), QUERIES_PER_BLOCK)]
    rank, world = rank_and_world()

    def score() -> None:
        own = blocks[rank::world]
        with progress_bar(sum(map(len, own)), progress, "query") as bar:
            for block in own:
                groups = [
                    Group(
                        query_set.texts[query],
                        SelectedTexts(pool.texts, lists.values[new[query]]),
                        query_set.instructions[query],
                    )
                    for query in block.tolist()
                ]
                logits = require_finite(torch.cat(judge.logits(groups)), judge.source)
                judged.write(pairs[np.concatenate([new[query] for query in block.tolist()])], logits.numpy())
                bar.update(len(groups))

    on_every_rank(score)
    found = judged.find(pairs)
    if np.isnan(found).any():
        raise ValueError(f"{judged.folder} lacks scores that were just written; the ranks must share this folder")
    return found


def require_finite(logits: Tensor, source: str) -> Tensor:
    """The logits. Raises ValueError if one of them is NaN or infinite."""
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{source} gave NaN or infinity; it has diverged")
    return logits


def probabilities(logits: Scores) -> Scores:
    """The sigmoid of logits; NaN stays NaN."""
    values: Scores = torch.from_numpy(logits).sigmoid().numpy()
    return values


def judged_records(
    reranker: Reranker, table: RecordTable, stats: ScoringStats, *, probabilities: bool, progress: bool
) -> Iterator[Record]:
    """The records of a table with a reranker's scores of all their documents; those in the cache are not computed.

    Args:
        reranker: The model.
        table: The records.
        stats: Counts that scoring adds to.
        probabilities: Whether scores are probabilities rather than logits.
        progress: Show a progress bar.

    Raises:
        ValueError: A score is not finite.
        CacheError: The cache cannot be written.
    """
    instructions, instruction_of = read_instructions(table)
    documents = documents_of(table)
    pairs = pair_ids(table.query_ids, [instructions[i] for i in instruction_of.tolist()], documents)
    judged = JudgedPairs(reranker.source, reranker_fingerprint(reranker))
    logits = judged.find(pairs)
    with progress_bar(len(table), "rows" if progress else None, "row") as bar:
        for start in range(0, len(table), RECORDS_PER_BLOCK):
            records = [table[i] for i in range(start, min(start + RECORDS_PER_BLOCK, len(table)))]
            bounds = documents.offsets[start : start + len(records) + 1]
            block = slice(bounds[0], bounds[-1])
            add_missing(logits[block], pairs[block], records, reranker, judged, stats)
            for record, own in zip(records, np.split(logits[block], bounds[1:-1] - bounds[0]), strict=True):
                scores = torch.from_numpy(own)
                values, first = (scores.sigmoid() if probabilities else scores).tolist(), len(record.positives)
                yield replace(record, positive_scores=tuple(values[:first]), negative_scores=tuple(values[first:]))
            bar.update(len(records))


def add_missing(
    logits: Scores,
    pairs: PairIds,
    records: Sequence[Record],
    reranker: Reranker,
    judged: JudgedPairs,
    stats: ScoringStats,
) -> None:
    """Compute the logits that are NaN, in place and into the cache.

    Args:
        logits: [n] float32, of the documents of all records, positives before negatives.
        pairs: [n] uint64, their ids.
        records: The records.
        reranker: The model.
        judged: The cache.
        stats: Counts that scoring adds to.
    """
    missing = np.isnan(logits)
    sizes = [len(each.positives) + len(each.negatives) for each in records]
    groups = []
    for record, own in zip(records, np.split(missing, np.cumsum(sizes)[:-1]), strict=True):
        documents = record.positives + record.negatives
        if own.any():
            new = [documents[i] for i in np.flatnonzero(own).tolist()]
            groups.append(Group(record.query, new, record.instruction))
    if groups:
        logits[missing] = require_finite(torch.cat(reranker.logits(groups, stats=stats)), reranker.source).numpy()
        judged.write(pairs[missing], logits[missing])


def documents_of(table: RecordTable) -> Lists:
    """For each record the `text_id` of its positives and negatives."""
    rows = range(len(table))
    counts = [[len(ids(row)) for row in rows] for ids in (table.positive_ids, table.negative_ids)]
    owners = np.concatenate([np.repeat(np.arange(len(table)), each) for each in counts])
    identities = np.concatenate([flat_values(table, name) for name in ("positive_ids", "negative_ids")])
    return Lists.grouped(owners, identities, len(table))
