import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.lengths import measure_lengths
from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.batches.sampling import BatchIndices, BatchSampler, RowSampler, Source
from nestling.config import EmbedConfig, TrainData
from nestling.losses.negatives import REPORT_TERMS, NegativeMasks
from nestling.records import RecordTable, load_records, text_id
from nestling.training.schedule import total_steps

ROW_SAMPLER = RowSampler(positives=1, negatives=2, seed=0)


def table(folder: Path, rows: list[dict[str, object]], name: str = "rows") -> RecordTable:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_records(file, progress=False)


def pairs(folder: Path, count: int, name: str = "pairs") -> RecordTable:
    return table(folder, [{"query": f"{name} q{i}", "positives": [f"{name} d{i}"]} for i in range(count)], name)


def collator(
    sources: list[Source], tokenizer: Path, row_sampler: RowSampler = ROW_SAMPLER, rank: int = 0, world_size: int = 1
) -> EmbedCollator:
    return EmbedCollator(
        sources,
        row_sampler,
        TextTokenizer(AutoTokenizer.from_pretrained(tokenizer), require_end=True),
        Prompts("Q: ", "D: "),
        query_max_length=32,
        document_max_length=32,
        chunk_tokens=256,
        teacher=True,
        rank=rank,
        world_size=world_size,
    )


def test_an_epoch_visits_every_row_and_the_next_continues_the_stream(tmp_path: Path) -> None:
    batch_sampler = BatchSampler([Source(pairs(tmp_path, 10))], 4, ROW_SAMPLER, seed=1)
    assert batch_sampler.steps_per_epoch == 3
    batches = list(islice(batch_sampler.batches(), 5))
    visits = [visit for indices in batches for visit in zip(indices.row_epochs, indices.rows, strict=True)]
    assert Counter(visits).most_common(1)[0][1] == 1
    assert {row for row_epoch, row in visits if row_epoch == 0} == set(range(10))


def test_one_dataset_a_batch_in_proportion_to_size_and_weight(tmp_path: Path) -> None:
    small, large = pairs(tmp_path, 16, "small"), pairs(tmp_path, 64, "large")
    batch_sampler = BatchSampler([Source(small, weight=2.0), Source(large)], 8, ROW_SAMPLER, seed=1)
    assert Counter(indices.source for indices in islice(batch_sampler.batches(), 12)) == {0: 4, 1: 8}
    even = BatchSampler([Source(small), Source(large)], 8, ROW_SAMPLER, seed=1, mixing_temperature=2.0)
    assert even.batches_per_epoch == [4, 7]


def test_weights_and_epochs_in_decimals_add_no_batch(tmp_path: Path) -> None:
    batch_sampler = BatchSampler([Source(pairs(tmp_path, 100), weight=1.1)], 10, ROW_SAMPLER, seed=1)
    assert batch_sampler.steps_per_epoch == 11
    config = EmbedConfig(model="m", output_dir="o", train=[TrainData("pairs.jsonl")], num_train_epochs=2.2)
    plain = BatchSampler([Source(batch_sampler.sources[0].table)], 4, ROW_SAMPLER, seed=1)
    assert total_steps(config, plain) == 55
    assert total_steps(replace(config, num_train_epochs=2.21), plain) == 56


def test_batches_depend_on_the_seed_alone_and_can_be_skipped(tmp_path: Path) -> None:
    sources = [Source(pairs(tmp_path, 40, "a")), Source(pairs(tmp_path, 30, "b"))]
    batches = list(islice(BatchSampler(sources, 8, ROW_SAMPLER, seed=3).batches(), 20))
    assert batches[7:] == list(islice(BatchSampler(sources, 8, ROW_SAMPLER, seed=3).batches(skip=7), 13))
    assert batches != list(islice(BatchSampler(sources, 8, ROW_SAMPLER, seed=4).batches(), 20))


def test_equal_queries_and_conflicting_negatives_go_to_different_batches(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": f"q{i // 2}", "positives": [f"d{i}"], "negatives": [f"d{(i + 2) % 16}"]} for i in range(16)
    ]
    rows_table = table(tmp_path, rows)
    for indices in islice(BatchSampler([Source(rows_table)], 4, ROW_SAMPLER, seed=0).batches(), 40):
        records = [rows_table[row] for row in indices.rows]
        assert len({record.query for record in records}) == 4
        positives = {text for record in records for text in record.positives}
        negatives = [text for record in records for text in record.negatives]
        assert positives.isdisjoint(negatives)
        assert len(set(negatives)) == len(negatives)


def test_rows_that_always_conflict_are_still_trained(tmp_path: Path) -> None:
    same = table(tmp_path, [{"query": "q", "positives": [f"d{i}"]} for i in range(8)])
    batches = list(islice(BatchSampler([Source(same)], 4, ROW_SAMPLER, seed=0).batches(), 6))
    assert sorted(row for indices in batches[:2] for row in indices.rows) == list(range(8))


def test_a_dataset_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs has 3 rows, fewer than the batch_size of 4"):
        BatchSampler([Source(pairs(tmp_path, 3))], 4, ROW_SAMPLER, seed=0)
    with pytest.raises(ValueError, match=r"pairs has 3 rows beside those held out as a dev set \(dev_share\), "):
        BatchSampler([Source(pairs(tmp_path, 3), held_out=tmp_path)], 4, ROW_SAMPLER, seed=0)


def test_sampling_uses_all_negatives_before_it_repeats_one(tmp_path: Path) -> None:
    negatives = [f"n{i}" for i in range(6)]
    rows_table = table(tmp_path, [{"query": "q", "positives": ["a", "b", "c"], "negatives": negatives}])
    drawn = [ROW_SAMPLER(rows_table, 0, row_epoch) for row_epoch in range(3)]
    assert sorted(i for _, negatives in drawn for i in negatives) == list(range(6))
    assert sorted(i for positives, _ in drawn for i in positives) == [0, 1, 2]
    assert ROW_SAMPLER(rows_table, 0, 3)[1] == drawn[0][1]
    assert RowSampler(9, 9, 0)(rows_table, 0, 5) == ([0, 1, 2], list(range(6)))


def test_rows_without_positives_are_sampled_like_others(tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    rows = [
        {"query": f"q{i}", "positives": [f"p{i}"] * (i % 2), "negatives": [f"n{i} {j}" for j in range(3)]}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = load_records(file, progress=False, allow_no_positives=True)
    assert [ROW_SAMPLER(judged, row, 0)[0] for row in range(4)] == [[], [0], [], [0]]
    drawn = [ROW_SAMPLER(judged, 0, row_epoch)[1] for row_epoch in range(3)]
    assert sorted(i for negatives in drawn for i in negatives) == [0, 0, 1, 1, 2, 2]
    batches = list(islice(BatchSampler([Source(judged)], 4, ROW_SAMPLER, seed=0).batches(), 3))
    assert sorted(row for indices in batches for row in indices.rows) == list(range(12))


ROWS: list[dict[str, object]] = [
    {"query": "one", "positives": ["a", "b"], "negatives": ["x"], "positive_scores": [3, 2], "negative_scores": [1]},
    {"query": "two", "positives": ["b"], "negatives": ["y", "z"], "positive_scores": [5], "negative_scores": [0, 1]},
    {"query": "one", "positives": ["c"], "negatives": [], "positive_scores": [4], "negative_scores": []},
    {"query": "four", "positives": ["d"], "negatives": ["x"], "positive_scores": [1], "negative_scores": [0]},
]


def test_batch_structure_by_hand(tmp_path: Path, qwen3: Path) -> None:
    batch = collator([Source(table(tmp_path, ROWS))], qwen3, RowSampler(2, 2, 0))[
        BatchIndices(0, [0, 1, 2, 3], [0, 0, 0, 0])
    ]
    structure = batch.structure
    assert structure.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3]
    assert structure.is_negative.int().tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 1]
    assert structure.document_text.tolist() == [text_id(text) for text in "abxbyzcdx"]
    assert structure.query.tolist() == [0, 0, 1, 2, 3]
    assert structure.positive.tolist() == [0, 1, 3, 6, 7]
    assert structure.weight.tolist() == [0.125, 0.125, 0.25, 0.25, 0.25]
    known = [{text_id(text) for text in texts} for texts in ("abc", "b", "abc", "d")]
    assert [set(row.tolist()) - {-1} for row in structure.known_positives] == known
    assert batch.document_counts == [9]
    assert batch.group is not None and batch.teacher is not None
    assert batch.group.tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, -1], [7, 8, -1]]
    assert batch.teacher.tolist() == [[3, 2, 1], [5, 0, 1], [4, 0, 0], [1, 0, 0]]


def test_a_query_with_two_instructions_is_two_queries(tmp_path: Path, qwen3: Path) -> None:
    """A naive loop over (instruction, text): nothing is dropped, and nothing is masked between the two."""
    rows: list[dict[str, object]] = [
        {"query": "jaguar", "positives": ["a cat"], "negatives": ["a car"], "instruction": "Find the animal"},
        {"query": "jaguar", "positives": ["a car"], "negatives": ["a cat"], "instruction": "Find the brand"},
        {"query": "jaguar", "positives": ["a big cat"], "negatives": ["a dog"], "instruction": "Find the animal"},
        {"query": "jaguar", "positives": ["a car"], "negatives": ["a bus"]},
    ]
    records = table(tmp_path, rows)
    assert [records[i].negatives for i in range(4)] == [("a car",), ("a cat",), ("a dog",), ("a bus",)]
    assert not records.summary.drops
    known = [records.known_positives(i).tolist() for i in range(4)]
    assert known == [sorted(map(text_id, ["a cat", "a big cat"])), [text_id("a car")], known[0], [text_id("a car")]]

    structure = collator([Source(records)], qwen3, RowSampler(1, 1, 0))[
        BatchIndices(0, [0, 1, 2, 3], [0] * 4)
    ].structure
    documents, queries, _, _ = NegativeMasks(structure, REPORT_TERMS, mask_identity=True).allowed(slice(0, 4))
    # Documents: cat, car; car, cat; big cat, dog; car, bus. Equal queries are rows 0 and 2; 1 and 3 share a positive.
    assert documents.int().tolist() == [
        [0, 1, 1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 1, 1, 0, 1],
        [0, 1, 1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 1, 1, 0, 1],
    ]
    assert queries.int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]


def test_a_query_with_two_instructions_may_be_twice_in_a_batch(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": f"q{i}", "positives": [f"{task} {i}"], "instruction": task} for i in range(8) for task in ("a", "b")
    ]
    indices = next(BatchSampler([Source(table(tmp_path, rows))], 16, ROW_SAMPLER, seed=0).batches())
    assert sorted(indices.rows) == list(range(16))
    assert indices.row_epochs == [0] * 16


def test_equal_texts_are_tokenised_once(tmp_path: Path, qwen3: Path) -> None:
    collate = collator([Source(table(tmp_path, ROWS))], qwen3, RowSampler(2, 2, 0))
    batch = collate[BatchIndices(0, [0, 1, 2, 3], [0, 0, 0, 0])]
    rows = [row for chunk in batch.tokens.chunks for row in zip(chunk.input_ids, chunk.lengths, strict=True)]
    texts = [collate.tokenizer.backend.decode(rows[i][0][: rows[i][1] - 1].tolist()) for i in batch.tokens.position]
    assert sorted(texts) == sorted([f"Q: {q}" for q in ("one", "two", "four")] + [f"D: {d}" for d in "abcdxyz"])
    assert [texts[i] for i in batch.queries] == ["Q: one", "Q: two", "Q: one", "Q: four"]
    assert [texts[i] for i in batch.documents] == [f"D: {d}" for d in "abxbyzcdx"]


def test_ranks_share_a_batch(tmp_path: Path, qwen3: Path) -> None:
    sources = [Source(table(tmp_path, ROWS))]
    indices = BatchIndices(0, [0, 1, 2, 3], [0, 0, 0, 0])
    whole = collator(sources, qwen3, RowSampler(2, 2, 0))[indices]
    parts = [collator(sources, qwen3, RowSampler(2, 2, 0), rank, 2)[indices] for rank in range(2)]
    assert [part.document_counts for part in parts] == [[6, 3], [6, 3]]
    assert [len(part.queries) for part in parts] == [2, 2]
    assert [len(part.documents) for part in parts] == [6, 3]
    for name in ("query", "positive", "weight"):
        together = torch.cat([getattr(part.structure, name) for part in parts])
        assert torch.equal(together, getattr(whole.structure, name)), name
    for name in ("owner", "is_negative", "query_text", "document_text", "known_positives"):
        assert torch.equal(getattr(parts[1].structure, name), getattr(whole.structure, name)), name
    assert parts[1].group is not None
    assert parts[1].group.tolist() == [[6, -1], [7, 8]]


def test_graded_pairs_have_their_labels(tmp_path: Path, qwen3: Path) -> None:
    rows: list[dict[str, object]] = [
        {"sentence1": f"left {i}", "sentence2": f"right {i}", "score": i / 4} for i in range(4)
    ]
    batch = collator([Source(table(tmp_path, rows))], qwen3)[BatchIndices(0, [3, 1], [0, 0])]
    assert batch.scores is not None
    assert batch.scores.tolist() == [0.75, 0.25]


def test_both_texts_of_graded_pairs_are_queries_unless_the_dataset_is_asymmetric(tmp_path: Path, qwen3: Path) -> None:
    rows: list[dict[str, object]] = [
        {"sentence1": "left", "sentence2": "right " * 40, "score": 1},
        {"sentence1": "left", "sentence2": "other", "score": 0, "instruction": "Compare"},
    ]
    indices, graded = BatchIndices(0, [0, 1], [0, 0]), table(tmp_path, rows)
    both, apart = (collator([Source(graded, symmetric=each)], qwen3) for each in (True, False))
    both.query_max_length = apart.query_max_length = 16
    for collate, prompts, longest in (
        (both, ["Q: ", "Instruct: Compare\nQuery:"], 16),
        (apart, ["D: ", "D: "], 32),
    ):
        assert collate.texts(indices) == (
            ["Q: left", "Instruct: Compare\nQuery:left"],
            [prompts[0] + "right " * 40, prompts[1] + "other"],
        )
        batch = collate[indices]
        assert max(int(chunk.lengths.max()) for chunk in batch.tokens.chunks) == longest
        assert batch.truncated == measure_lengths(collate, 0).truncated_documents == 1


def test_the_prompts_of_other_rows_do_not_depend_on_symmetric(tmp_path: Path, qwen3: Path) -> None:
    collate = collator([Source(pairs(tmp_path, 2))], qwen3)
    assert collate.texts(BatchIndices(0, [0], [0])) == (["Q: pairs q0"], ["D: pairs d0"])


def test_the_instruction_of_a_row_replaces_the_default_prompt(tmp_path: Path, qwen3: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": "q1", "positives": ["d1"], "instruction": "Find"},
        {"query": "q2", "positives": ["d2"]},
    ]
    queries, documents = collator([Source(table(tmp_path, rows))], qwen3).texts(BatchIndices(0, [0, 1], [0, 0]))
    assert queries == ["Instruct: Find\nQuery:q1", "Q: q2"]
    assert documents == ["D: d1", "D: d2"]


def test_a_collator_pickles_small(tmp_path: Path, qwen3: Path) -> None:
    collate = collator([Source(pairs(tmp_path, 1000))], qwen3)
    again = pickle.loads(pickle.dumps(collate))
    indices = BatchIndices(0, [5, 6], [0, 0])
    assert torch.equal(again[indices].tokens.chunks[0].input_ids, collate[indices].tokens.chunks[0].input_ids)
    assert len(pickle.dumps(collate.sources)) < 2000


def test_lengths_count_truncated_texts(tmp_path: Path, qwen3: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": "q1", "positives": ["word " * 100]},
        {"query": "q2", "positives": ["word " * 100]},
        {"query": "q3 " * 100, "positives": ["short"]},
    ]
    lengths = measure_lengths(collator([Source(table(tmp_path, rows))], qwen3), 0)
    assert (lengths.queries, lengths.truncated_queries, lengths.documents, lengths.truncated_documents) == (3, 1, 2, 1)
    assert "truncated 1 of 3 queries and 1 of 2 documents" in str(lengths)


def test_banking77_batches_share_positives(shared_data: Path) -> None:
    rows_table = load_records(shared_data / "banking77", progress=False)
    indices = next(BatchSampler([Source(rows_table)], 64, ROW_SAMPLER, seed=0).batches())
    positives = [int(rows_table.positive_ids(row)[0]) for row in indices.rows]
    assert len(set(positives)) < 60
