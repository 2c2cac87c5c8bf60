"""The audit page: valid HTML that loads nothing, with scores and truncated texts."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from mining.small import opened, write_rows
from nestling.mining.audit import Section, audit_page, lowest_positives, sections
from nestling.mining.candidates import union_candidates
from nestling.mining.lists import Lists
from nestling.mining.result import MiningResult
from nestling.mining.retrieved import Retrieved
from nestling.mining.rules import Positives, positives_in_pool
from nestling.mining.selection import CandidateFilter


class Page(HTMLParser):
    """The texts of a page, and whether its elements close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_result(tmp_path: Path) -> MiningResult:
    """Two queries; the second one's negative scores above its positive."""
    rows = [
        {"query": "is 1 < 2 & 3?", "positives": ["<b>yes</b>"], "negatives": ["no & no"]},
        {"query": "second", "positives": ["right"], "negatives": ["wrong", "x" * 5000]},
    ]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    texts = list(pool.texts)
    wanted = [[texts.index("no & no"), -1], [texts.index("wrong"), texts.index("x" * 5000)]]
    candidates = union_candidates({"m": Retrieved(np.array(wanted), np.array([[0.2, np.nan], [0.7, 0.1]], np.float32))})
    candidate_filter = CandidateFilter(3)
    candidate_filter.drop("some rule", np.array([False, False, False]))
    lists = positives_in_pool(query_set, pool)
    positives = Positives(lists, {"m": np.array([0.9, 0.5], np.float32)}, np.ones(2, dtype=bool))
    negatives = Lists.grouped(candidates.queries, np.arange(3), 2)
    return MiningResult(
        query_set, pool, positives, candidates, candidate_filter, "m", negatives, Lists.of([np.zeros(0, np.int64)] * 2)
    )


def test_the_page_shows_texts_scores_and_settings(tmp_path: Path) -> None:
    html = audit_page(make_result(tmp_path), scorer="m", title="a <title>", settings={"margin": 0.1}, lines=["3 < 4"])
    page = Page(html)
    assert page.open == []
    assert not re.search(r"https?://|url\(|@import|src=", html)
    assert "Highest beside the positive" in page.text
    assert "This page loads nothing and runs no script." in page.text
    assert "<b>yes</b>" in page.text
    assert "a <title>" in page.text
    assert "is 1 < 2 & 3?" in page.text
    assert "x" * 1200 + " …" in page.text
    assert "x" * 1201 not in page.text
    assert "+0.200 from the lowest positive · 140% of it · m 0.700" in page.text
    assert "-0.700 from the lowest positive · 22% of it · m 0.200" in page.text


def many(tmp_path: Path) -> MiningResult:
    """Forty queries with a positive and a negative each, whose scores are in orders of their own."""
    rows = [{"query": f"q{i}", "positives": [f"p{i}"], "negatives": [f"n{i}"]} for i in range(40)]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    texts = list(pool.texts)
    found = np.array([[texts.index(f"n{i}")] for i in range(40)])
    scores = np.array([[0.3 + i * 7 % 40 / 100] for i in range(40)], np.float32)
    candidates = union_candidates({"m": Retrieved(found, scores)})
    positives = positives_in_pool(query_set, pool)
    own = np.array([0.1 + int(texts[each][1:]) * 11 % 40 / 50 for each in positives.values], np.float32)
    return MiningResult(
        query_set,
        pool,
        Positives(positives, {"m": own}, np.ones(40, dtype=bool)),
        candidates,
        CandidateFilter(40),
        "m",
        Lists.grouped(candidates.queries, np.arange(40), 40),
        Lists.of([np.zeros(0, np.int64)] * 40),
    )


def test_each_list_holds_what_its_sentence_promises(tmp_path: Path) -> None:
    result = many(tmp_path)
    own, beside, suspects, ordinary = sections(result, "m", lowest_positives(result, "m"))
    score = {f"n{i}": 0.3 + i * 7 % 40 / 100 for i in range(40)}
    positive = {f"n{i}": 0.1 + i * 11 % 40 / 50 for i in range(40)}
    ratio = {name: score[name] / positive[name] for name in score}

    def shown(section: Section) -> list[str]:
        return [each.text for query in section.queries for each in query.negatives]

    assert own.title == "The 25 negatives that score highest"
    assert shown(own) == sorted(score, key=lambda name: -score[name])[:25]
    assert shown(beside) == sorted(ratio, key=lambda name: -ratio[name])[:25]
    assert suspects.title == "The 25 queries whose positives score lowest"
    assert shown(suspects) == sorted(positive, key=lambda name: positive[name])[:25]
    assert ordinary.title == "10 queries at random"
    assert len(ordinary.queries) == 10


def test_of_many_positives_and_negatives_the_most_suspicious_are_shown(tmp_path: Path) -> None:
    texts = {kind: [f"{kind}{i}" for i in range(60)] for kind in "pn"}
    rows = [{"query": "q", "positives": texts["p"], "negatives": texts["n"]}]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    scores = np.array([[i * 7 % 60 / 60 for i in range(60)]], np.float32)
    found = np.array([[list(pool.texts).index(text) for text in texts["n"]]])
    candidates = union_candidates({"m": Retrieved(found, scores)})
    positives = positives_in_pool(query_set, pool)
    own = np.array([1 + int(pool.texts[each][1:]) * 11 % 60 for each in positives.values.tolist()], np.float32)
    negatives, none = Lists.of([np.arange(60)]), Lists.of([np.zeros(0, np.int64)])
    known = Positives(positives, {"m": own}, np.ones(60, dtype=bool))
    result = MiningResult(query_set, pool, known, candidates, CandidateFilter(60), "m", negatives, none)
    *_, ordinary = sections(result, "m", lowest_positives(result, "m"))
    (shown,) = ordinary.queries
    assert {each.text for each in shown.positives} == {f"p{i}" for i in range(60) if i * 11 % 60 < 25}
    assert {each.text for each in shown.negatives} == {f"n{i}" for i in range(60) if i * 7 % 60 >= 35}
    page = audit_page(result, scorer="m", title="t", settings={}, lines=[])
    assert page.count("35 more positives, which score higher, and 35 more negatives, which score lower") == 2
    assert page.count("35 more positives, which score higher, and 0 more negatives, which score lower") == 2


def test_positives_at_or_below_zero_have_no_share(tmp_path: Path) -> None:
    """As with logits, whose ratios mean nothing."""
    result = many(tmp_path)
    logits = replace(
        result, positives=replace(result.positives, scores={"m": np.linspace(-4, 0, 40, dtype=np.float32)})
    )
    _, beside, *_ = sections(logits, "m", lowest_positives(logits, "m"))
    assert beside.queries == []
    assert "% of it" not in audit_page(logits, scorer="m", title="t", settings={}, lines=[])
