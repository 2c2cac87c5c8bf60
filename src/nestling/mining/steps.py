"""The steps of scripts/mine.py from candidates to negatives, with its settings: retrieve, score, drop, draw."""

import sys
from dataclasses import replace

import numpy as np

from nestling.config import MineConfig
from nestling.gpu import computing_dtype
from nestling.mining.candidates import Candidates, union_candidates
from nestling.mining.consistency import within_top
from nestling.mining.judge import judge_lists, open_judge, probabilities
from nestling.mining.lists import Lists, Mask
from nestling.mining.own_documents import search_others
from nestling.mining.retrieved import Retrieved
from nestling.mining.retrievers import DenseRetriever, Retriever
from nestling.mining.rules import (
    Positives,
    drop_below_top,
    drop_high_scores,
    drop_similar,
    positives_in_pool,
    remaining_documents,
    with_ensemble,
)
from nestling.mining.selection import CandidateFilter, Thresholds, draw, make_random_keys
from nestling.mining.task import MiningTask


def choose_scorer(config: MineConfig, retrievers: dict[str, Retriever]) -> str:
    """The name of the retriever whose scores order and filter candidates, or "judge"."""
    if config.scorer == "judge":
        return "judge"
    names = list(retrievers)
    if config.scorer is not None:
        # A scorer that does not search is opened after the retrievers.
        index = config.retrievers.index(config.scorer) if config.scorer in config.retrievers else -1
        chosen = names[index]
    else:
        chosen = next(name for name in [*dense_retrievers(retrievers), *names] if name != "given")
    return chosen


def dense_retrievers(retrievers: dict[str, Retriever]) -> dict[str, DenseRetriever]:
    return {name: each for name, each in retrievers.items() if isinstance(each, DenseRetriever)}


def find_candidates(
    config: MineConfig, task: MiningTask, retrievers: dict[str, Retriever], scorer: str
) -> tuple[Candidates, Positives]:
    """The union of what the retrievers find, and the known positives, both with the scorer's scores."""
    searching = list(retrievers)[: len(config.retrievers)]
    first = min(config.depth, task.pool.size)
    depth = first + int(task.own.counts.max(initial=0))
    with_own = {name: retrievers[name].search(depth) for name in searching}
    if config.index is not None:
        print_recall(task, dense_retrievers({name: retrievers[name] for name in searching}), with_own)
    retrieved = {name: each.without(task.own, first) for name, each in with_own.items()}
    candidates, lists = union_candidates(retrieved), positives_in_pool(task.query_set, task.pool)
    trusted = np.ones(len(lists.values), dtype=bool)
    members = searching if config.scores == "ensemble" else []
    of_positives = {}
    for name in [each for each in retrievers if each in (scorer, *members)]:
        candidates = fill_missing_scores(candidates, retrievers[name])
        of_positives[name] = retrievers[name].score(lists.owners, lists.values)
    positives = Positives(lists, of_positives, trusted)
    if members:
        candidates, positives = with_ensemble(candidates, positives, members)
    if scorer == "judge":
        return candidates, positives
    scores = of_positives[scorer]
    if config.consistent is not None:
        # So many that `consistent` of them are not positives.
        needed = min(config.consistent + int(lists.counts.max(initial=0)), task.pool.size)
        top = retrieved[scorer] if scorer in retrieved and needed <= first else None
        top = search_others(retrievers[scorer], needed, task.own) if top is None else top
        trusted &= within_top(top, lists, scores, config.consistent)
    if config.least_score is not None:
        trusted &= scores >= config.least_score
    return candidates, replace(positives, trusted=trusted)


def print_recall(task: MiningTask, searching: dict[str, DenseRetriever], retrieved: dict[str, Retrieved]) -> None:
    """Print the recall of the index for each embedder that searches."""
    from nestling.mining.faiss_index import RECALL_QUERIES, recall  # here, since it needs FAISS

    for name, dense in searching.items():
        recalled = recall(retrieved[name], dense.queries, dense.documents, dense.size, dense.device)
        depth, queries = min(retrieved[name].documents.shape[1], dense.size), min(RECALL_QUERIES, len(task.query_set))
        task.say(
            f"{name}: the index found {recalled:.1%} of the {depth:,} nearest documents of each of {queries} queries"
        )


def fill_missing_scores(candidates: Candidates, scorer: Retriever) -> Candidates:
    """A copy with a scorer's scores also of the candidates that only others found."""
    scores = candidates.scores.get(scorer.name, np.full(len(candidates), np.nan, np.float32)).copy()
    missing = np.flatnonzero(np.isnan(scores))
    scores[missing] = scorer.score(candidates.queries[missing], candidates.documents[missing])
    return candidates.with_scores(scorer.name, scores)


def drop_by_score(
    config: MineConfig,
    candidates: Candidates,
    positives: Positives,
    candidate_filter: CandidateFilter,
    retrievers: dict[str, Retriever],
    scorer: str,
) -> None:
    """Drop candidates that score too high, or are too similar to a positive."""
    thresholds = Thresholds(config.max_score, config.absolute_margin, config.max_score_ratio)
    drop_high_scores(candidate_filter, candidates, positives, scorer, thresholds)
    if config.ceiling is not None:
        dense = next(iter(dense_retrievers(retrievers).values()))
        drop_similar(candidate_filter, candidates, positives, dense.similarities, config.ceiling)


def score_with_judge(
    config: MineConfig,
    task: MiningTask,
    candidates: Candidates,
    positives: Positives,
    candidate_filter: CandidateFilter,
    order: str,
) -> tuple[Candidates, Positives]:
    """Copies with the judge's logits as scores by "judge", of candidates and of the positives.

    It reads the `judge_depth` remaining candidates of each query that score highest by `order`; others are dropped.
    """
    assert config.judge is not None
    drop_below_top(candidate_filter, candidates, order, config.judge_depth)
    judge = open_judge(
        config.judge,
        precision=computing_dtype(config.precision),
        device=task.device,
        attn_implementation=config.attn_implementation,
    )
    label = "judging" if task.main and sys.stderr.isatty() else None
    lists, remaining = remaining_documents(candidate_filter, candidates)
    logits = np.full(len(candidates), np.nan, np.float32)
    logits[remaining] = judge_lists(judge, task.query_set, task.pool, lists, progress=label)
    of_positives = judge_lists(judge, task.query_set, task.pool, positives.lists, progress=label)
    scores = {**positives.scores, "judge": of_positives}
    return candidates.with_scores("judge", logits), replace(positives, scores=scores)


def drop_relevant(config: MineConfig, candidates: Candidates, candidate_filter: CandidateFilter) -> Mask:
    """Drop the candidates to which the judge gives a probability above `relevant`; returns them, [C] bool."""
    relevant: Mask = candidate_filter.remaining & (probabilities(candidates.scores["judge"]) > config.relevant)
    candidate_filter.drop(f"relevant to the judge (above {config.relevant:g})", relevant)
    return relevant


def draw_negatives(
    config: MineConfig, task: MiningTask, candidates: Candidates, candidate_filter: CandidateFilter, scorer: str
) -> Lists:
    """The negatives of each query, as indices of candidates."""
    random_keys = None
    if config.sampling == "random":
        queries, documents = task.query_set.identities[candidates.queries], task.pool.identities[candidates.documents]
        random_keys = make_random_keys(config.seed, queries, documents)
    return draw(
        candidates.lists,
        candidates.scores[scorer],
        candidate_filter.remaining,
        config.num_negatives,
        random_keys=random_keys,
        among=config.among,
    )
