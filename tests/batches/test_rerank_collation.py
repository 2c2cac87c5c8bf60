"""From records to a rank's prompts and labels."""

import json
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from nestling.batches.groups import GroupChunk, positions_of
from nestling.batches.packing import Chunk
from nestling.batches.pair_prompts import PairTokenizer, RerankPrompt
from nestling.batches.rerank_collation import (
    Labelled,
    RerankBatch,
    RerankCollator,
    characters,
    deal,
    drawn_record,
    join_labels,
    label,
)
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.records import Record, RecordTable, load_records

WORDS = ["files", "folders", "users", "lines", "count", "sort", "print", "remove"]
EVERYTHING = RowSampler(positives=9, negatives=9, seed=0)
PLAN = BatchIndices(0, list(range(8)), [0] * 8)
Pairs = Counter[tuple[tuple[int, ...], float, float | None]]


def table(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows") -> RecordTable:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(file, progress=False, allow_no_positives=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    """Ragged: one to three positives or none, none to five negatives, all with scores that tell them apart."""
    generator = random.Random(1)
    made: list[dict[str, Any]] = []
    for i in range(8):
        positives, negatives = (0, 3) if i == 5 else (generator.randint(1, 3), generator.randint(0, 5))
        texts = [
            f"{' '.join(generator.choices(WORDS, k=generator.randint(1, 20)))} {i} {n}"
            for n in range(positives + negatives)
        ]
        made.append(
            {
                "query": f"{generator.choice(WORDS)} {i}",
                "positives": texts[:positives],
                "negatives": texts[positives:],
                "positive_scores": [(10 * i + n) / 128 for n in range(positives)],
                "negative_scores": [(10 * i + n + positives) / 128 for n in range(negatives)],
            }
        )
    return table(tmp_path_factory.mktemp("rows"), made)


@pytest.fixture(scope="module")
def pairs(qwen3: Path) -> PairTokenizer:
    return PairTokenizer(
        AutoTokenizer.from_pretrained(qwen3), RerankPrompt(prefix="", suffix="\n?", instruction="judge")
    )


def collator(records: RecordTable, pairs: PairTokenizer, **more: Any) -> RerankCollator:
    settings = {
        "query_max_length": 32,
        "document_max_length": 32,
        "chunk_tokens": 120,
        "share": True,
        "packed": True,
        **more,
    }
    return RerankCollator([Source(records)], EVERYTHING, pairs, **settings)


def prompts(batch: RerankBatch) -> list[list[list[int]]]:
    """Of each chunk."""
    found = []
    for chunk in batch.chunks:
        if isinstance(chunk, GroupChunk):
            found.append([prompt for group in chunk.prompts() for prompt in group])
        else:
            found.append([row[:n] for row, n in zip(chunk.input_ids.tolist(), chunk.lengths.tolist(), strict=True)])
    return found


def labelled(batches: Sequence[RerankBatch]) -> Pairs:
    """How often each prompt with its target and its teacher's score comes."""
    found: Pairs = Counter()
    for batch in batches:
        assert len(batch.chunks) == len(batch.labels)
        for own, labels in zip(prompts(batch), batch.labels, strict=True):
            teacher = [None] * len(own) if labels.teacher is None else labels.teacher.tolist()
            triples = zip(own, labels.targets.tolist(), teacher, strict=True)
            found.update((tuple(prompt), target, score) for prompt, target, score in triples)
    return found


def expected(records: RecordTable, pairs: PairTokenizer, *, soft: bool = False) -> Pairs:
    """The same, read off the records one by one."""
    found: Pairs = Counter()
    for i in range(len(records)):
        record = records[i]
        for texts, scores, hard in (
            (record.positives, record.positive_scores, 1.0),
            (record.negatives, record.negative_scores, 0.0),
        ):
            for text, score in zip(texts, scores or (), strict=True):
                (ids,) = pairs(record.query, [text], query_max_length=32, document_max_length=32).ids
                found[tuple(ids), score if soft else hard, score] += 1
    return found


def test_a_batch_to_the_letter(pairs: PairTokenizer, tmp_path: Path) -> None:
    records = table(
        tmp_path,
        [
            {"query": "a", "positives": ["files"], "negatives": ["users", "lines"]},
            {"query": "b", "positives": ["sort"], "negatives": []},
        ],
    )
    batch = collator(records, pairs, chunk_tokens=1000)[BatchIndices(0, [1, 0], [0, 0])]
    (chunk,), (labels,) = batch.chunks, batch.labels
    limits = {"query_max_length": 32, "document_max_length": 32}
    first, second = (pairs("a", ["files", "users", "lines"], **limits).ids, pairs("b", ["sort"], **limits).ids)
    assert isinstance(chunk, GroupChunk)
    assert chunk.prompts() == [first, second]  # the longer group first
    assert labels.targets.tolist() == [1, 0, 0, 1]
    assert labels.targets.dtype == torch.float32
    assert labels.teacher is None
    assert labels.group.tolist() == [[0, 1, 2], [3, -1, -1]]
    assert (batch.queries, batch.pairs, batch.truncated) == (2, 4, 0)
    assert batch.tokens == sum(map(len, first + second))
    assert batch.positions == chunk.positions < batch.tokens


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("share", "packed"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("budget", [1, 120, 5000])
def test_every_prompt_has_its_label_in_any_chunks(
    budget: int, whole: bool, share: bool, packed: bool, soft: bool, rows: RecordTable, pairs: PairTokenizer
) -> None:
    made = collator(rows, pairs, chunk_tokens=budget, whole_groups=whole, share=share, packed=packed, soft=soft)
    batch = made[PLAN]
    assert labelled([batch]) == expected(rows, pairs, soft=soft)
    assert batch.pairs == expected(rows, pairs).total()
    assert all(isinstance(chunk, GroupChunk if packed else Chunk) for chunk in batch.chunks)
    for own, labels in zip(prompts(batch), batch.labels, strict=True):
        groups = [[own[i] for i in row if i >= 0] for row in labels.group.tolist()]
        assert [prompt for group in groups for prompt in group] == own
        sizes = [positions_of(group, share=share) for group in groups]
        single = len(groups) == 1 and (whole or len(groups[0]) == 1)
        assert single or sum(sizes) <= budget
        assert labels.teacher is not None
        scores = labels.teacher.tolist()
        for row in labels.group.tolist():  # prompts of one query, by what its scores begin with
            assert len({scores[i] * 128 // 10 for i in row if i >= 0}) == 1
    if whole:
        assert sorted(len(row[row >= 0]) for labels in batch.labels for row in labels.group) == sorted(
            len(rows[i].positives) + len(rows[i].negatives) for i in range(8)
        )
    if budget == 1:
        assert len(batch.chunks) == (8 if whole else batch.pairs)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_ranks_have_the_batch_of_one_together(world: int, rows: RecordTable, pairs: PairTokenizer) -> None:
    one = collator(rows, pairs)[PLAN]
    parts = [collator(rows, pairs, rank=rank, world_size=world)[PLAN] for rank in range(world)]
    assert labelled(parts) == labelled([one])
    assert sum(part.tokens for part in parts) == one.tokens
    for part in parts:
        assert (part.queries, part.pairs) == (one.queries, one.pairs)
        assert part.chunks


def test_long_groups_come_first(rows: RecordTable, pairs: PairTokenizer) -> None:
    batch = collator(rows, pairs, chunk_tokens=1, whole_groups=True)[PLAN]
    sizes = [chunk.positions for chunk in batch.chunks]
    assert sizes == sorted(sizes, reverse=True)


def test_cut_texts_are_counted(rows: RecordTable, pairs: PairTokenizer) -> None:
    batch = collator(rows, pairs, document_max_length=3)[PLAN]
    limits = {"query_max_length": 32, "document_max_length": 3}
    cut = [pairs(rows[i].query, rows[i].positives + rows[i].negatives, **limits) for i in range(8)]
    assert batch.truncated == sum(each.truncated_documents for each in cut) > 8
    parts = [collator(rows, pairs, document_max_length=3, rank=rank, world_size=2)[PLAN] for rank in range(2)]
    assert sum(part.truncated for part in parts) == batch.truncated


def test_what_is_drawn_keeps_its_scores(rows: RecordTable) -> None:
    row_sampler = RowSampler(positives=1, negatives=2, seed=3)
    seen = set()
    for row_epoch in range(4):
        for row in range(8):
            record, whole = drawn_record(rows, row_sampler, row, row_epoch), rows[row]
            assert len(record.positives) == min(1, len(whole.positives))
            assert len(record.negatives) == min(2, len(whole.negatives))
            for texts, scores, all_texts, all_scores in (
                (record.positives, record.positive_scores, whole.positives, whole.positive_scores),
                (record.negatives, record.negative_scores, whole.negatives, whole.negative_scores),
            ):
                assert scores == tuple((all_scores or ())[all_texts.index(text)] for text in texts)
            seen.update(record.negatives)
    assert seen == {text for row in range(8) for text in rows[row].negatives}


PLAIN = Record("q", ("p",), ("n", "m"))
SCORED = Record("q", ("p",), ("n", "m"), positive_scores=(0.75,), negative_scores=(0.5, 0.25))


@pytest.mark.parametrize(
    ("record", "soft", "targets", "teacher"),
    [
        (PLAIN, False, [1, 0, 0], None),
        (SCORED, False, [1, 0, 0], [0.75, 0.5, 0.25]),
        (SCORED, True, [0.75, 0.5, 0.25], [0.75, 0.5, 0.25]),
        (Record("q", (), ("n", "m")), False, [0, 0], None),
        (Record("q", (), ("n",), positive_scores=(), negative_scores=(0.5,)), True, [0.5], [0.5]),
        (Record("q", (), ("n",), negative_scores=(0.5,)), True, [0.5], [0.5]),
        (Record("q", ("p",), (), positive_scores=(0.5,)), False, [1], [0.5]),
        (Record("q", ("p",), ("n",), positive_scores=(0.5,)), True, [1, 0], None),
        (Record("q", ("p",), score=0.25), False, [0.25], [0.25]),
        (Record("q", ("p",), score=0.25), True, [0.25], [0.25]),
    ],
)
def test_labels(record: Record, soft: bool, targets: list[float], teacher: list[float] | None) -> None:
    assert label(record, soft=soft) == (targets, teacher)


def test_a_chunk_has_teacher_scores_if_all_of_it_has() -> None:
    scored, bare = Labelled([[1], [2]], [1.0, 0.0], [3.0, 2.0]), Labelled([[3]], [0.0], None)
    both = join_labels([scored, bare])
    assert both.teacher is None
    assert both.group.tolist() == [[0, 1], [2, -1]]
    alone = join_labels([scored]).to(torch.device("cpu"))
    assert alone.teacher is not None and alone.teacher.tolist() == [3, 2]


def test_deals_are_complete_and_balanced() -> None:
    generator = random.Random(0)
    for _ in range(200):
        ranks = generator.randint(1, 8)
        sizes = [
            generator.choice([1, 5, 5, 200, generator.randint(1, 1000)]) for _ in range(ranks * generator.randint(1, 6))
        ]
        hands = deal(sizes, ranks)
        assert sorted(i for hand in hands for i in hand) == list(range(len(sizes)))
        assert {len(hand) for hand in hands} == {len(sizes) // ranks}
        assert all(hand == sorted(hand) for hand in hands)
        loads = [sum(sizes[i] for i in hand) for hand in hands]
        assert max(loads) - min(loads) <= max(sizes) - min(sizes)
    assert deal([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]


def test_the_deal_goes_by_what_is_read() -> None:
    assert characters(Record("abc", ("12", "345"), ("6",))) == 2 + 3 + 1 + 3 * 3
    assert characters(Record("abc", (), ())) == 0


def test_workers_get_copies_that_make_the_same(rows: RecordTable, pairs: PairTokenizer) -> None:
    original = collator(rows, pairs)
    copy = pickle.loads(pickle.dumps(original))
    assert prompts(copy[PLAN]) == prompts(original[PLAN])


def test_padded_chunks_keep_within_the_budget_with_their_padding(rows: RecordTable, pairs: PairTokenizer) -> None:
    """Prompts of one length lie together, whichever query they are of, since they share nothing."""
    budget = 120
    batch = collator(rows, pairs, share=False, packed=False, chunk_tokens=budget)[PLAN]
    assert sum(len(chunk.lengths) for chunk in batch.chunks) == batch.pairs
    assert any(isinstance(chunk, Chunk) and chunk.padded for chunk in batch.chunks)
    assert all(chunk.positions <= budget or len(chunk.lengths) == 1 for chunk in batch.chunks)
    assert batch.positions < 1.2 * batch.tokens
