"""Mining one training dataset again with the model in training, and writing its records with the new negatives.

Shapes: n records, Q distinct queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nestling.batches.sampling import Source
from nestling.config import RefreshConfig
from nestling.config.embed import EmbedConfig
from nestling.files import replacing
from nestling.mining.candidates import union_candidates
from nestling.mining.lists import Lists
from nestling.mining.own_documents import own_documents, own_documents_line, search_others
from nestling.mining.pool import Pool, open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.result import MiningResult, hardness
from nestling.mining.retrievers import DenseRetriever
from nestling.mining.rules import Positives, drop_high_scores, drop_known_and_repeated, positives_in_pool
from nestling.mining.selection import CandidateFilter, Thresholds, draw, make_random_keys
from nestling.records.arrow_files import open_batches, write_batches
from nestling.records.beir import is_beir
from nestling.records.table import SCHEMA, RecordTable
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class RefreshDataset:
    """A training dataset whose negatives are mined again during training.

    Attributes:
        table: Its n records.
        query_set: Their queries.
        pool: The documents that negatives come from.
        own: Of each query the documents that have its id in a BEIR folder, which are no negatives of it.
    """

    table: RecordTable
    query_set: QuerySet
    pool: Pool
    own: Lists

    @classmethod
    def open(cls, table: RecordTable, path: str, corpus: str | None, *, progress: bool) -> "RefreshDataset | None":
        """None for graded pairs, which have no negatives. Raises what `open_pool` raises.

        Args:
            table: The records.
            path: Where they were read from; if it is a BEIR folder, its own corpus is used instead of `corpus`.
            corpus: A BEIR folder or a corpus.jsonl; None for the documents of the records.
            progress: Show a bar for conversions that take more than a second.
        """
        if table.graded:
            return None
        place = path if is_beir(Path(path)) else corpus
        query_set = QuerySet.of(table)
        needed = query_set.known_positives.values
        pool = open_pool(table, None if place is None else Path(place), needed, progress=progress)
        return cls(table, query_set, pool, own_documents(Path(path), query_set, pool))


def open_refresh_datasets(config: EmbedConfig, sources: Sequence[Source], *, show: bool) -> list[RefreshDataset | None]:
    """The queries and documents of each dataset, if hard negatives are mined again during training; else an empty list.

    None stands for a dataset of graded pairs.
    """
    if config.refresh.steps is None:
        return []
    datasets = [
        RefreshDataset.open(source.table, data.path, config.refresh.corpus, progress=show)
        for data, source in zip(config.train, sources, strict=True)
    ]
    if show:
        print(*(f"negatives from {each.pool}" for each in datasets if each is not None), sep="\n", flush=True)
        own = [each.own for each in datasets if each is not None and len(each.own.values)]
        print(*map(own_documents_line, own), sep="\n", end="\n" * bool(own), flush=True)
    return datasets


def mine_again(
    dataset: RefreshDataset, retriever: DenseRetriever, rules: RefreshConfig, *, negatives: int, seed: int
) -> MiningResult:
    """At most `negatives` hard negatives of each query, from what the model retrieves; all ranks must call it."""
    query_set, pool, scorer = dataset.query_set, dataset.pool, retriever.name
    retrieved = search_others(retriever, min(rules.depth, pool.size), dataset.own)
    candidates, lists = union_candidates({scorer: retrieved}), positives_in_pool(query_set, pool)
    scores = retriever.score(lists.owners, lists.values)
    positives = Positives(lists, {scorer: scores}, np.ones(len(scores), dtype=bool))
    candidate_filter = CandidateFilter(len(candidates))
    drop_known_and_repeated(candidate_filter, query_set, pool, lists, candidates)
    drop_high_scores(candidate_filter, candidates, positives, scorer, Thresholds(max_score_ratio=rules.max_score_ratio))
    drawn = draw(
        candidates.lists,
        candidates.scores[scorer],
        candidate_filter.remaining,
        negatives,
        random_keys=make_random_keys(
            seed, query_set.identities[candidates.queries], pool.identities[candidates.documents]
        ),
        among=rules.among,
    )
    none = Lists.of([np.zeros(0, np.int64)] * len(query_set))
    return MiningResult(query_set, pool, positives, candidates, candidate_filter, scorer, drawn, none)


def write_refreshed(path: Path, table: RecordTable, result: MiningResult) -> None:
    """Write the records of a table with mined negatives and without teacher scores, in their order, atomically."""
    counts = result.negatives.counts[result.query_set.query_of_record]
    summary = replace(
        table.summary,
        negatives=int(counts.sum()),
        max_negatives=int(counts.max(initial=0)),
        rows_with_negatives=int((counts > 0).sum()),
        rows_scored=0,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, write_batches(partial, SCHEMA, summary.to_json()) as writer:
        for batch in refreshed_batches(table, result):
            writer.write_batch(batch)


def refreshed_batches(table: RecordTable, result: MiningResult) -> Iterator[Any]:
    """The Arrow record batches of a table with its negatives replaced."""
    start = 0
    for batch in open_batches(table.path)[0]:
        queries = result.query_set.query_of_record[start : start + batch.num_rows]
        start += batch.num_rows
        documents = [result.candidates.documents[result.negatives[query]] for query in queries.tolist()]
        none = [None] * batch.num_rows
        changed = {
            "negatives": texts_of(result.pool, documents),
            "negative_ids": [result.pool.identities[each] for each in documents],
            "positive_scores": none,
            "negative_scores": none,
        }
        columns = [
            pa.array(changed[field.name], field.type) if field.name in changed else batch.column(field.name)
            for field in SCHEMA
        ]
        yield pa.record_batch(columns, schema=SCHEMA)


def texts_of(pool: Pool, documents: Sequence[Integers]) -> list[list[str]]:
    """The texts of several lists of documents; a document in many lists is read once."""
    distinct, which = np.unique(np.concatenate([np.zeros(0, np.int64), *documents]), return_inverse=True)
    pool_texts: Any = pool.texts
    texts = np.array(pool_texts[distinct] if len(distinct) else [], dtype=object)
    return [each.tolist() for each in np.split(texts[which], np.cumsum([len(each) for each in documents])[:-1])]


def refresh_line(result: MiningResult, wanted: int) -> str:
    """How many negatives were mined and how hard they are, as text. `wanted` is how many a query should have."""
    score, gap = hardness(result)
    short = int((result.negatives.counts < wanted).sum())
    fewer = f"; {short:,} of {len(result.query_set):,} queries have fewer than {wanted}" if short else ""
    return (
        f"{len(result.negatives.values):,} hard negatives mined again, cosine {score:.4f} in the mean, {gap:.4f} below "
        f"the lowest positive{fewer}"
    )
