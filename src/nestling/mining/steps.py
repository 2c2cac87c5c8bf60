"""The steps of scripts/mine.py between opening and writing, as its settings say: find, score, drop, draw."""

import sys
from dataclasses import replace

import numpy as np

from nestling.config import MineConfig, require
from nestling.mining.candidates import Candidates, unite
from nestling.mining.consistency import among_first
from nestling.mining.judging import Judge, judge_lists
from nestling.mining.lists import Lists
from nestling.mining.mined import Positives, drop_high, drop_similar, known_rows, left_lists, with_ensemble
from nestling.mining.retrieved import Retrieved
from nestling.mining.retrievers import Dense, Retriever
from nestling.mining.selection import Thresholds, Verdicts, draw, make_noise
from nestling.mining.task import Task


def choose_scorer(config: MineConfig, retrievers: dict[str, Retriever]) -> str:
    """The name of the retriever whose scores are used, or judge."""
    if config.scorer == "judge":
        return "judge"
    names = list(retrievers)
    if config.scorer is not None:
        place = config.retrievers.index(config.scorer) if config.scorer in config.retrievers else -1
        chosen = names[place]
    else:
        chosen = next(iter([*dense_ones(retrievers), *names]))
    require(chosen != "given", "given has no scores; name a --scorer, an embedder, bm25 or judge, to filter them by")
    return chosen


def dense_ones(retrievers: dict[str, Retriever]) -> dict[str, Dense]:
    return {name: each for name, each in retrievers.items() if isinstance(each, Dense)}


def find_candidates(
    config: MineConfig, task: Task, retrievers: dict[str, Retriever], scorer: str
) -> tuple[Candidates, Positives]:
    """The union of what the retrievers find, with the scorer's scores of all of it and of the positives."""
    searching = list(retrievers)[: len(config.retrievers)]
    found = {name: retrievers[name].search(config.depth) for name in searching}
    if config.index is not None:
        say_recall(task, dense_ones({name: retrievers[name] for name in searching}), found)
    candidates, lists = unite(found), known_rows(task.query_set, task.pool)
    trusted = np.ones(len(lists.values), dtype=bool)
    members = searching if config.scores == "ensemble" else []
    of_positives = {}
    for name in [each for each in retrievers if each in (scorer, *members)]:
        candidates = fill(candidates, retrievers[name])
        of_positives[name] = retrievers[name].score(lists.owners, lists.values)
    positives = Positives(lists, of_positives, trusted)
    if members:
        candidates, positives = with_ensemble(candidates, positives, members)
    if scorer == "judge":
        return candidates, positives
    scores = of_positives[scorer]
    if config.consistent is not None:
        own = found[scorer] if scorer in found else retrievers[scorer].search(config.depth)
        trusted &= among_first(own, lists, scores, config.consistent)
    if config.least_score is not None:
        trusted &= scores >= config.least_score
    return candidates, replace(positives, trusted=trusted)


def say_recall(task: Task, searching: dict[str, Dense], found: dict[str, Retrieved]) -> None:
    """Say what an index missed."""
    from nestling.mining.approximate import RECALL_QUERIES, recall  # which needs FAISS

    for name, dense in searching.items():
        recalled = recall(found[name], dense.queries, dense.documents, dense.size, dense.device)
        depth, queries = min(found[name].rows.shape[1], dense.size), min(RECALL_QUERIES, len(task.query_set))
        task.say(
            f"{name}: the index found {recalled:.1%} of the {depth:,} nearest documents of each of {queries} queries"
        )


def fill(candidates: Candidates, scorer: Retriever) -> Candidates:
    """Scores of those candidates too that others found."""
    scores = candidates.scores.get(scorer.name, np.full(len(candidates), np.nan, np.float32)).copy()
    missing = np.flatnonzero(np.isnan(scores))
    scores[missing] = scorer.score(candidates.queries[missing], candidates.rows[missing])
    return candidates.with_scores(scorer.name, scores)


def drop_by_score(
    config: MineConfig,
    candidates: Candidates,
    positives: Positives,
    verdicts: Verdicts,
    retrievers: dict[str, Retriever],
    scorer: str,
) -> None:
    """Thresholds, and the ceiling of the similarity with positives."""
    thresholds = Thresholds(config.max_score, config.absolute_margin, config.percent)
    drop_high(verdicts, candidates, positives, scorer, thresholds)
    if config.ceiling is not None:
        dense = next(iter(dense_ones(retrievers).values()))
        drop_similar(verdicts, candidates, positives, dense.similarities, config.ceiling)


def read_by_judge(
    task: Task, judge: Judge, candidates: Candidates, positives: Positives, left: Verdicts
) -> tuple[Candidates, Positives]:
    """The judge's logits of the candidates left and of the positives, as one more column of scores."""
    shown = "judging" if task.main and sys.stderr.isatty() else None
    lists, places = left_lists(left, candidates)
    logits = np.full(len(candidates), np.nan, np.float32)
    logits[places] = judge_lists(judge, task.query_set, task.pool, lists, progress=shown)
    of_positives = judge_lists(judge, task.query_set, task.pool, positives.lists, progress=shown)
    scores = {**positives.scores, "judge": of_positives}
    return candidates.with_scores("judge", logits), replace(positives, scores=scores)


def draw_negatives(config: MineConfig, task: Task, candidates: Candidates, verdicts: Verdicts, scorer: str) -> Lists:
    """The negatives of each query, as positions of candidates."""
    noise = None
    if config.sampling == "random":
        queries, documents = task.query_set.identities[candidates.queries], task.pool.identities[candidates.rows]
        noise = make_noise(config.seed, queries, documents)
    return draw(
        candidates.lists,
        candidates.scores[scorer],
        verdicts.left,
        config.num_negatives,
        noise=noise,
        among=config.among,
    )
