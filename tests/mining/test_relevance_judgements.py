"""Counts of false negatives, by the judgements of a BEIR folder."""

from pathlib import Path

import numpy as np

from mining.small import opened, write_rows
from nestling.mining.candidates import union_candidates
from nestling.mining.relevance_judgements import FalseNegativeCounts, RelevanceJudgements
from nestling.mining.retrieved import Retrieved
from sets import write_beir


def test_queries_of_one_text_share_their_judgements(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(6)]
    judged = {"q0": {"d1": 1, "d2": 0}, "q1": {"d3": 1, "d6": 1}, "q2": {"d2": 1, "d4": 0}}
    write_beir(tmp_path / "judged", [*texts, "not in the pool"], ["same", "other", "same"], judged)
    rows = [
        {"query": "unjudged", "positives": [texts[1]]},
        {"query": "same", "positives": [texts[0]], "negatives": texts[1:]},
        {"query": "other", "positives": [texts[0]]},
    ]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    judgements = RelevanceJudgements.read(tmp_path / "judged", "test", query_set, pool)
    assert judgements.queries.tolist() == [False, True, True]
    by_text = {text: i for i, text in enumerate(pool.texts)}
    documents = np.array([[by_text[text] for text in texts[1:]]] * 3)
    candidates = union_candidates({"any": Retrieved(documents, np.zeros(documents.shape, np.float32))})
    # Of "same" 1 and 2 are relevant and 4 is not, of "other" 3 is relevant.
    expected = FalseNegativeCounts(total=15, of_judged_queries=10, judged=4, false=3)
    assert judgements.count(candidates, np.arange(15)) == expected
