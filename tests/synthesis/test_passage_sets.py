"""Which passages go together, and what a query of several passages is."""

import json
from pathlib import Path

import numpy as np
import pytest

from mining.small import make_vectors
from nestling.config import MakeQueriesConfig, read_section
from nestling.models.embedder import Embedder
from nestling.synthesis import passage_sets
from nestling.synthesis.conversation import Completion, ConversationResult, replay
from nestling.synthesis.passage_sets import PassageSets, draw_counts, find_passage_sets, following_chunks
from nestling.synthesis.prompts import judgement_prompt
from nestling.synthesis.query_spec import CRITERIA, MULTI_HOP_CRITERIA
from synthesis.small import small_task

CHUNKS = {f"{file}.md#{number}": f"part {number} of {file}" for file in ("a", "b#1") for number in (0, 1, 2, 10)}
CONFIGURATION = Completion('{"character": 1, "question_type": "multi_hop", "difficulty": "easy"}')
QUERY = Completion('{"query": "which of them came before the other, and why"}')


@pytest.mark.parametrize("given", [{2: 0.1}, {"2": 0.1}], ids=["YAML", "JSON"])
def test_shares_are_by_number(given: dict[object, float]) -> None:
    settings = {"data": "c", "model": "m", "output": "o.jsonl", "multi_hop": given}
    assert read_section("queries", MakeQueriesConfig, settings).multi_hop == {2: 0.1}


def test_chunks_follow_by_number_within_a_file() -> None:
    ids = ["a#2", "b#0", "a#10", "alone", "a#1", "b#1", "x/a#3", "a#", "#4"]
    assert following_chunks(ids).tolist() == [2, 5, -1, -1, 0, -1, -1, -1, -1]


def test_a_larger_share_draws_the_same_documents_and_more() -> None:
    text_ids = np.arange(1000)
    few, more = draw_counts(text_ids, {2: 0.2}, 1), draw_counts(text_ids, {3: 0.1, 2: 0.3}, 1)
    assert few == {document: more[document] for document in few}
    assert 160 < len(few) < 240 and 260 < sum(count == 2 for count in more.values()) < 340
    assert 70 < sum(count == 3 for count in more.values()) < 130
    assert draw_counts(text_ids, {2: 0.2}, 2) != few
    assert len(draw_counts(text_ids, {2: 0.5, 3: 0.5}, 1)) == 1000


def test_the_chunks_that_follow_stand_outside_of_a_draw_too(tmp_path: Path) -> None:
    passages = small_task(tmp_path, CHUNKS, limit=5).passages
    found = find_passage_sets(passages, {3: 1.0}, 1, None)
    ids = {passages.ids[document]: [passages.usable_ids[i] for i in each] for document, each in found.sets.items()}
    order = list(CHUNKS)
    complete = [each for each in passages.ids if each[-2:] in ("#0", "#1")]
    assert ids == {each: order[order.index(each) : order.index(each) + 3] for each in complete}
    assert found.alone == 5 - len(complete) > 0 and found.near == 0
    assert any(i >= 5 for each in found.sets.values() for i in each)
    whole = find_passage_sets(small_task(tmp_path, CHUNKS).passages, {3: 1.0}, 1, None)
    assert found.sets.items() <= whole.sets.items() and len(whole.sets) == 4


def test_documents_without_a_next_chunk_go_with_the_nearest(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d1 is a copy of d0, and each of d2 and d3 is the other's nearest."""
    angles = {"d0": 0, "d1": 5, "d2": 30, "d3": 50, "d4": 100}

    def embed(embedder: object, texts: list[str], ids: object, **more: object) -> object:
        radians = np.radians([angles[text.split()[-1]] for text in texts])
        return make_vectors(np.stack([np.cos(radians), np.sin(radians)], axis=1), 2)

    monkeypatch.setattr(passage_sets, "embed", embed)
    passages = small_task(tmp_path, {each: f"text {each}" for each in angles}).passages
    with pytest.raises(ValueError, match=r"multi_hop: no two documents of .* or give an --embedder"):
        find_passage_sets(passages, {2: 1.0}, 1, None)
    found = find_passage_sets(passages, {2: 1.0}, 1, Embedder.from_pretrained(str(bert)))
    ids = [tuple(passages.usable_ids[i] for i in each) for each in found.sets.values()]
    assert set(ids) - {("d2", "d3"), ("d3", "d2")} == {("d0", "d2"), ("d1", "d2"), ("d4", "d3")}
    assert len(ids) == 4 and found.near == 4 and found.alone == 1
    first = next(each for each in passages.ids if each in ("d2", "d3"))
    assert any(each[0] == first for each in ids if set(each) == {"d2", "d3"}), "the one that was drawn first"


def test_the_last_query_of_a_document_needs_its_passages(tmp_path: Path) -> None:
    texts = {"a#0": "first text", "a#1": "second text"}
    plain, several = (
        small_task(tmp_path, texts, num_queries=2, passage_sets=PassageSets(sets)) for sets in ({}, {0: (0, 1)})
    )
    ids = [[task.query_id(index) for index in range(4)] for task in (plain, several)]
    assert [one == other for one, other in zip(*ids, strict=True)] == [True, False, True, True]
    assert [len(several.passages_of(index)) for index in range(4)] == [1, 2, 1, 1]
    assert [len(several.options_of(index).question_types) for index in range(4)] == [1] * 4
    assert list(several.options_of(1).question_types) == ["multi_hop"]
    assert (several.spec(1).least, several.spec(1).most) == (15, 40), "the longest of the lengths"
    result = ConversationResult("q", None, None, ())
    assert several.row(result, several.positives(1, [2]), None)["positives"] == list(several.passages.texts)


def test_the_model_sees_all_passages_and_judges_that_each_is_needed(tmp_path: Path) -> None:
    task = small_task(tmp_path, {"a#0": "first text", "a#1": "second text"}, passage_sets=PassageSets({0: (0, 1)}))
    running = task.conversation(0)
    prompts = [next(running).messages[0]["content"], running.send(CONFIGURATION).messages[0]["content"]]
    prompts.append(judgement_prompt(task.visible_texts(0), "q"))
    for prompt in prompts:
        assert "2 passages from" in prompt and prompt.count("<passage>") == 2
        assert all(f"<passage>\n{text}\n</passage>" in prompt for text in task.passages.texts)
    assert "The query has to need all of the passages" in prompts[1] and "15 to 40 words" in prompts[1]
    assert f"- multi_hop: {MULTI_HOP_CRITERIA['multi_hop']}" in prompts[2]
    assert "multi_hop" not in judgement_prompt(["one text"], "q") and "multi_hop" not in CRITERIA


def test_a_query_that_one_passage_answers_is_not_kept(tmp_path: Path) -> None:
    sets = PassageSets({0: (0, 1)})
    task = small_task(tmp_path, {"a#0": "first text", "a#1": "second text"}, passage_sets=sets, min_grade=4)
    grades = {"answerable": 5, "specific": 5, "natural": 5, "multi_hop": 2}
    result = replay(task.conversation(0), [CONFIGURATION, QUERY, Completion(json.dumps(grades))])
    assert result is not None and result.query is None and result.failure == "not multi_hop enough"
    result = replay(task.conversation(0), [CONFIGURATION, QUERY, Completion(json.dumps(grades | {"multi_hop": 4}))])
    assert result is not None and result.query == "which of them came before the other, and why"
    del grades["multi_hop"]
    result = replay(task.conversation(0), [CONFIGURATION, QUERY, Completion(json.dumps(grades))])
    assert result is not None and result.failure == "not judged: unknown grade"
