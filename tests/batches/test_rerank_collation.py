"""From records to the prompts and labels of a rank."""

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

from nestling.batches.packing import Chunk
from nestling.batches.pair_prompts import PairTokenizer, RerankPrompt
from nestling.batches.prefix_sharing import SharedPrefixChunk, group_positions
from nestling.batches.rerank_batch import LabelledGroup, RerankBatch, join_labels
from nestling.batches.rerank_collation import (
    RerankCollator,
    balance_over_ranks,
    sampled_record,
    targets_and_teacher,
    text_size,
)
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.records import Record, RecordTable, load_records

WORDS = ["files", "folders", "users", "lines", "count", "sort", "print", "remove"]
EVERYTHING = RowSampler(positives=9, negatives=9, seed=0)
INDICES = BatchIndices(0, list(range(8)), [0] * 8)
Pairs = Counter[tuple[tuple[int, ...], float, float | None]]


def table(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows") -> RecordTable:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(file, progress=False, allow_no_positives=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    """Rows with no to three positives and no to five negatives, each with a score of its own."""
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
        "share_prefix": True,
        "padding_free": True,
        **more,
    }
    return RerankCollator([Source(records)], EVERYTHING, pairs, **settings)


def prompts(batch: RerankBatch) -> list[list[list[int]]]:
    """Token ids of the prompts of each chunk."""
    found = []
    for chunk in batch.chunks:
        if isinstance(chunk, SharedPrefixChunk):
            found.append([prompt for group in chunk.prompts() for prompt in group])
        else:
            found.append([row[:n] for row, n in zip(chunk.input_ids.tolist(), chunk.lengths.tolist(), strict=True)])
    return found


def labelled(batches: Sequence[RerankBatch]) -> Pairs:
    """Counts of (prompt, target, teacher score)."""
    found: Pairs = Counter()
    for batch in batches:
        assert len(batch.chunks) == len(batch.labels)
        for own, labels in zip(prompts(batch), batch.labels, strict=True):
            teacher = [None] * len(own) if labels.teacher is None else labels.teacher.tolist()
            triples = zip(own, labels.targets.tolist(), teacher, strict=True)
            found.update((tuple(prompt), target, score) for prompt, target, score in triples)
    return found


def expected(records: RecordTable, pairs: PairTokenizer, *, teacher_targets: bool = False) -> Pairs:
    """The same counts, made from the records one by one."""
    found: Pairs = Counter()
    for i in range(len(records)):
        record = records[i]
        for texts, scores, hard in (
            (record.positives, record.positive_scores, 1.0),
            (record.negatives, record.negative_scores, 0.0),
        ):
            for text, score in zip(texts, scores or (), strict=True):
                (ids,) = pairs(record.query, [text], query_max_length=32, document_max_length=32).ids
                found[tuple(ids), score if teacher_targets else hard, score] += 1
    return found


def test_a_batch_by_hand(pairs: PairTokenizer, tmp_path: Path) -> None:
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
    assert isinstance(chunk, SharedPrefixChunk)
    assert chunk.prompts() == [first, second]  # the longer group first
    assert labels.targets.tolist() == [1, 0, 0, 1]
    assert labels.targets.dtype == torch.float32
    assert labels.teacher is None
    assert labels.group.tolist() == [[0, 1, 2], [3, -1, -1]]
    assert (batch.queries, batch.pairs, batch.truncated) == (2, 4, 0)
    assert batch.tokens == sum(map(len, first + second))
    assert batch.positions == chunk.positions < batch.tokens


def test_a_query_with_two_instructions_keeps_both_lists(pairs: PairTokenizer, tmp_path: Path) -> None:
    texts = {"Find the animal": ("a cat", "a car"), "Find the brand": ("a car", "a cat")}
    records = table(
        tmp_path,
        [
            {"query": "jaguar", "positives": [positive], "negatives": [negative], "instruction": task}
            for task, (positive, negative) in texts.items()
        ],
    )
    assert not records.summary.drops
    batch = collator(records, pairs, chunk_tokens=1000)[BatchIndices(0, [0, 1], [0, 0])]
    (chunk,), (labels,) = batch.chunks, batch.labels
    limits = {"query_max_length": 32, "document_max_length": 32}
    assert isinstance(chunk, SharedPrefixChunk)
    assert sorted(chunk.prompts()) == sorted(
        pairs("jaguar", documents, instruction=task, **limits).ids for task, documents in texts.items()
    )
    assert labels.targets.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("teacher_targets", [False, True])
@pytest.mark.parametrize(("share_prefix", "padding_free"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("budget", [1, 120, 5000])
def test_every_prompt_has_its_label_however_it_is_chunked(
    budget: int,
    whole: bool,
    share_prefix: bool,
    padding_free: bool,
    teacher_targets: bool,
    rows: RecordTable,
    pairs: PairTokenizer,
) -> None:
    made = collator(
        rows,
        pairs,
        chunk_tokens=budget,
        whole_groups=whole,
        share_prefix=share_prefix,
        padding_free=padding_free,
        teacher_targets=teacher_targets,
    )
    batch = made[INDICES]
    assert labelled([batch]) == expected(rows, pairs, teacher_targets=teacher_targets)
    assert batch.pairs == expected(rows, pairs).total()
    assert all(isinstance(chunk, SharedPrefixChunk if padding_free else Chunk) for chunk in batch.chunks)
    for own, labels in zip(prompts(batch), batch.labels, strict=True):
        groups = [[own[i] for i in row if i >= 0] for row in labels.group.tolist()]
        assert [prompt for group in groups for prompt in group] == own
        sizes = [group_positions(group, share_prefix=share_prefix) for group in groups]
        single = len(groups) == 1 and (whole or len(groups[0]) == 1)
        assert single or sum(sizes) <= budget
        assert labels.teacher is not None
        scores = labels.teacher.tolist()
        for row in labels.group.tolist():  # the integer part identifies the query
            assert len({scores[i] * 128 // 10 for i in row if i >= 0}) == 1
    if whole:
        assert sorted(len(row[row >= 0]) for labels in batch.labels for row in labels.group) == sorted(
            len(rows[i].positives) + len(rows[i].negatives) for i in range(8)
        )
    if budget == 1:
        assert len(batch.chunks) == (8 if whole else batch.pairs)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_together_have_the_batch_of_one_process(world: int, rows: RecordTable, pairs: PairTokenizer) -> None:
    one = collator(rows, pairs)[INDICES]
    parts = [collator(rows, pairs, rank=rank, world_size=world)[INDICES] for rank in range(world)]
    assert labelled(parts) == labelled([one])
    assert sum(part.tokens for part in parts) == one.tokens
    for part in parts:
        assert (part.queries, part.pairs) == (one.queries, one.pairs)
        assert part.chunks


def test_long_groups_come_first(rows: RecordTable, pairs: PairTokenizer) -> None:
    batch = collator(rows, pairs, chunk_tokens=1, whole_groups=True)[INDICES]
    sizes = [chunk.positions for chunk in batch.chunks]
    assert sizes == sorted(sizes, reverse=True)


def test_truncated_texts_are_counted(rows: RecordTable, pairs: PairTokenizer) -> None:
    batch = collator(rows, pairs, document_max_length=3)[INDICES]
    limits = {"query_max_length": 32, "document_max_length": 3}
    cut = [pairs(rows[i].query, rows[i].positives + rows[i].negatives, **limits) for i in range(8)]
    assert batch.truncated == sum(each.truncated_documents for each in cut) > 8
    parts = [collator(rows, pairs, document_max_length=3, rank=rank, world_size=2)[INDICES] for rank in range(2)]
    assert sum(part.truncated for part in parts) == batch.truncated


def test_sampled_texts_keep_their_scores(rows: RecordTable) -> None:
    row_sampler = RowSampler(positives=1, negatives=2, seed=3)
    seen = set()
    for row_epoch in range(4):
        for row in range(8):
            record, whole = sampled_record(rows, row_sampler, row, row_epoch), rows[row]
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
    ("record", "teacher_targets", "targets", "teacher"),
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
def test_targets_and_teacher_scores(
    record: Record, teacher_targets: bool, targets: list[float], teacher: list[float] | None
) -> None:
    assert targets_and_teacher(record, teacher_targets=teacher_targets) == (targets, teacher)


def test_a_chunk_has_teacher_scores_if_all_its_groups_have() -> None:
    scored, bare = LabelledGroup([[1], [2]], [1.0, 0.0], [3.0, 2.0]), LabelledGroup([[3]], [0.0], None)
    both = join_labels([scored, bare])
    assert both.teacher is None
    assert both.group.tolist() == [[0, 1], [2, -1]]
    single = join_labels([scored]).to(torch.device("cpu"))
    assert single.teacher is not None and single.teacher.tolist() == [3, 2]


def test_ranks_get_equally_many_queries_of_balanced_size() -> None:
    generator = random.Random(0)
    for _ in range(200):
        ranks = generator.randint(1, 8)
        sizes = [
            generator.choice([1, 5, 5, 200, generator.randint(1, 1000)]) for _ in range(ranks * generator.randint(1, 6))
        ]
        assigned = balance_over_ranks(sizes, ranks)
        assert sorted(i for part in assigned for i in part) == list(range(len(sizes)))
        assert {len(part) for part in assigned} == {len(sizes) // ranks}
        assert all(part == sorted(part) for part in assigned)
        loads = [sum(sizes[i] for i in part) for part in assigned]
        assert max(loads) - min(loads) <= max(sizes) - min(sizes)
    assert balance_over_ranks([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]


def test_text_size_counts_the_characters_of_all_prompts() -> None:
    assert text_size(Record("abc", ("12", "345"), ("6",))) == 2 + 3 + 1 + 3 * 3
    assert text_size(Record("abc", (), ())) == 0


def test_a_pickled_collator_makes_the_same_batches(rows: RecordTable, pairs: PairTokenizer) -> None:
    original = collator(rows, pairs)
    copy = pickle.loads(pickle.dumps(original))
    assert prompts(copy[INDICES]) == prompts(original[INDICES])


def test_padded_chunks_have_at_most_chunk_tokens_positions_with_padding(
    rows: RecordTable, pairs: PairTokenizer
) -> None:
    """Prompts are sorted by length, whichever query they are of, since padded prompts share no prefix."""
    budget = 120
    batch = collator(rows, pairs, share_prefix=False, padding_free=False, chunk_tokens=budget)[INDICES]
    assert sum(len(chunk.lengths) for chunk in batch.chunks) == batch.pairs
    assert any(isinstance(chunk, Chunk) and chunk.padded for chunk in batch.chunks)
    assert all(chunk.positions <= budget or len(chunk.lengths) == 1 for chunk in batch.chunks)
    assert batch.positions < 1.2 * batch.tokens
