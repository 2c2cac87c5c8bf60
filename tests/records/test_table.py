"""The table: drops over the whole dataset, known positives, the cache, and bounded memory."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.records import LoadSummary, Record, RecordTable, load_records, load_retrieval_set, text_id
from nestling.records.instruction_counts import RowInstructions
from nestling.records.record import query_id
from nestling.records.summary import Drop


def load(folder: Path, rows: list[dict[str, Any]], **options: Any) -> RecordTable:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(path, cache_dir=folder / "cache", **options)


def ids(*texts: str) -> list[int]:
    return [text_id(text) for text in texts]


def test_text_id_is_stable_and_fits_63_bits() -> None:
    assert [text_id("query"), text_id("玉山"), text_id("")] == TEXT_IDS
    assert all(0 <= text_id(str(i)) < 2**63 for i in range(1000))


def test_the_id_of_a_query_is_of_text_and_instruction() -> None:
    assert query_id("apple", None) == text_id("apple")
    several = {query_id(text, task) for text in ("apple", "a", "") for task in ("fruit", "company", "", None)}
    assert len(several) == 12
    assert all(0 <= each < 2**63 for each in several)


# XXH3-64 >> 1, as `xxhsum -H3` prints for the UTF-8 bytes.
TEXT_IDS = [7604319485781382624, 7789679803002841146, 1622210670741801569]


def test_drops_are_counted_with_their_first_place(tmp_path: Path) -> None:
    table = load(
        tmp_path,
        [
            {"query": "q", "positives": ["p", "p", "q"], "negatives": ["n", "n", "p", "q", "r"],
             "positive_scores": [3, 2, 1], "negative_scores": [5, 4, 3, 2, 1]},
            {"query": "q", "positives": ["r"], "negatives": ["p", "n"]},
            {"query": "s", "positives": ["s"]},
            {"query": "q", "positives": ["r"], "negatives": ["p", "n"]},
            {"query": "t", "positives": ["p"], "negatives": ["r"], "positive_scores": [1], "negative_scores": [0]},
            {"query": "q", "positives": ["r"], "negatives": ["p", "n"], "instruction": "other"},
        ],
    )  # fmt: skip
    assert [table[i] for i in range(len(table))] == [
        Record("q", ("p",), ("n",), (3.0,), (5.0,)),
        Record("q", ("r",), ("n",)),
        Record("t", ("p",), ("r",), (1.0,), (0.0,)),
        Record("q", ("r",), ("p", "n"), instruction="other"),
    ]
    place = f"{tmp_path}/rows.jsonl"
    assert table.summary == LoadSummary(
        source=place, dialect="nestling", rows_read=6, rows_kept=4, rows_scored=2, rows_with_negatives=4,
        positives=4, negatives=5, max_positives=1, max_negatives=2,
        drops=(
            Drop("positive repeated in its row", 1, f"{place}:1"),
            Drop("document equal to its query", 3, f"{place}:1"),
            Drop("negative repeated in its row", 1, f"{place}:1"),
            Drop("negative that is a positive of its row", 1, f"{place}:1"),
            Drop("row without a positive that differs from its query", 1, f"{place}:3"),
            Drop("row repeated", 1, f"{place}:4"),
            Drop("negative that is a positive of the same query in another row", 2, f"{place}:1"),
        ),
        instructions=RowInstructions(1, 1, (("other", 1),)),
    )  # fmt: skip
    assert not table.has_scores and not table.graded
    assert [table.known_positives(i).tolist() for i in range(4)] == [
        sorted(ids("p", "r")), sorted(ids("p", "r")), ids("p"), ids("r"),
    ]  # fmt: skip
    assert table.query_ids.tolist() == [*ids("q", "q", "t"), query_id("q", "other")]
    assert (table.positive_ids(2).tolist(), table.negative_ids(2).tolist()) == (ids("p"), ids("r"))


@pytest.mark.parametrize("options", [{"instruction": "task"}, {"default_instruction": "task"}])
def test_the_instruction_of_the_dataset_in_a_row_makes_no_other_query(tmp_path: Path, options: dict[str, str]) -> None:
    rows = [
        {"query": "q", "positives": ["p"], "negatives": ["n", "o"], "instruction": "task"},
        {"query": "q", "positives": ["n"]},
        {"query": "q", "positives": ["o"], "instruction": "other"},
    ]
    table = load(tmp_path, rows, **options)
    implied = options.get("instruction")
    assert [table[i].instruction for i in range(3)] == [implied, implied, "other"]
    assert table[0].negatives == ("o",), "n is a positive of the same query"
    assert table.query_ids.tolist() == [*ids("q", "q"), query_id("q", "other")]
    assert table.summary.instructions == RowInstructions(1, 1, (("other", 1),))
    assert load(tmp_path, rows)[0].instruction == "task", "in a cache file of its own"


def test_summary_as_text(tmp_path: Path) -> None:
    table = load(tmp_path, [{"query": "q", "positives": ["p", "p"], "id": 3}, {"query": "r", "positives": ["p"]}])
    assert str(table.summary) == (
        f"{tmp_path}/rows.jsonl (nestling): 2 rows read, 2 kept\n"
        "  2 positives (at most 1 a row), 0 hard negatives (at most 0 a row)\n"
        f"  dropped 1: positive repeated in its row (first at {tmp_path}/rows.jsonl:1)\n"
        "  ignored field 'id' in 1 rows"
    )


def test_no_row_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row can be kept(\n.*){3}\n  dropped 2: row without a positive"):
        load(tmp_path, [{"query": "q", "positives": ["q"]}, {"query": "r", "positives": ["r"]}])


def test_rows_of_negatives_only(tmp_path: Path) -> None:
    table = load(
        tmp_path,
        [
            {"query": "q", "positives": [], "negatives": ["n", "p", "q"]},
            {"query": "q", "positives": ["p"], "negatives": ["r"], "positive_scores": [1], "negative_scores": [0]},
            {"query": "q", "positives": [], "negatives": ["p"]},
            {"query": "s", "positives": ["s"], "negatives": ["p", "n"], "negative_scores": [2, 1]},
            {"query": "t", "positives": ["t"], "negatives": ["t"]},
        ],
        allow_no_positives=True,
    )
    assert [table[i] for i in range(len(table))] == [
        Record("q", (), ("n",)),
        Record("q", ("p",), ("r",), (1.0,), (0.0,)),
        Record("s", (), ("p", "n"), None, (2.0, 1.0)),
    ]
    place = f"{tmp_path}/rows.jsonl"
    assert table.summary == LoadSummary(
        source=place, dialect="nestling", rows_read=5, rows_kept=3, rows_scored=2, rows_without_positives=2,
        rows_with_negatives=3,        positives=1, negatives=4, max_positives=1, max_negatives=2,
        drops=(
            Drop("document equal to its query", 4, f"{place}:1"),
            Drop("row left without a document", 2, f"{place}:5"),
            Drop("negative that is a positive of the same query in another row", 2, f"{place}:1"),
        ),
    )  # fmt: skip
    assert "  only negatives in 2 of 3 rows\n" in str(table.summary)
    assert [table.positive_ids(i).tolist() for i in range(3)] == [[], ids("p"), []]
    assert [table.negative_ids(i).tolist() for i in range(3)] == [ids("n"), ids("r"), ids("p", "n")]
    assert [table.known_positives(i).tolist() for i in range(3)] == [ids("p"), ids("p"), []]
    assert table.positive_ids(0).dtype == table.known_positives(2).dtype == np.int64
    assert not table.graded and not table.has_scores


def test_a_table_without_any_positive(tmp_path: Path) -> None:
    rows = [{"query": query, "positives": [], "negatives": ["n", "m"]} for query in ("q", "r", "q")]
    table = load(tmp_path, rows, allow_no_positives=True)
    assert [table[i] for i in range(len(table))] == [Record("q", (), ("n", "m")), Record("r", (), ("n", "m"))]
    assert (table.max_positives, table.max_negatives, table.summary.rows_without_positives) == (0, 2, 2)
    assert table.known_positives(1).tolist() == []
    assert not table.has_scores


def test_a_source_left_without_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row can be kept(\n.*)+\n  dropped 1: row left without a document"):
        load(tmp_path, [{"query": "q", "positives": ["q"], "negatives": ["q"]}], allow_no_positives=True)


def test_options_are_part_of_the_cache_key(tmp_path: Path) -> None:
    rows = [{"query": "q", "positives": ["q"], "negatives": ["n"]}, {"query": "r", "positives": ["p"]}]
    strict = load(tmp_path, rows)
    path, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    all_rows = load_records(path, cache_dir=cache, allow_no_positives=True)
    again = load_records(path, cache_dir=cache)
    assert strict.path == again.path != all_rows.path
    assert [len(strict), len(all_rows), len(again)] == [1, 2, 1]
    assert strict.fingerprint == again.fingerprint != all_rows.fingerprint


def test_fingerprint_depends_on_the_row_of_a_document(tmp_path: Path) -> None:
    identities = set()
    for first, second in ((["p"], []), ([], ["p"]), (["p"], ["p"])):
        rows = [
            {"query": "q", "positives": first, "negatives": ["n"]},
            {"query": "r", "positives": second, "negatives": ["n"]},
        ]
        (tmp_path / str(len(identities))).mkdir()
        identities.add(load(tmp_path / str(len(identities)), rows, allow_no_positives=True).fingerprint)
    assert len(identities) == 3


def test_graded_pairs_keep_equal_sentences(tmp_path: Path) -> None:
    pairs = [("a", "a", 5.0), ("a", "b", 1.0), ("a", "b", 1.0), ("a", "b", 2.0)]
    table = load(tmp_path, [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in pairs])
    assert table.graded
    assert [table[i].score for i in range(len(table))] == [5.0, 1.0, 2.0]


def test_scores_of_all_rows(tmp_path: Path) -> None:
    row = {"positives": ["p"], "positive_scores": [1]}
    rows = [{"query": "a", "negatives": ["n"], "negative_scores": [0], **row}, {"query": "b", **row}]
    assert load(tmp_path, rows).has_scores
    assert not load(tmp_path, [*rows, {"query": "c", "negatives": ["n"], **row}]).has_scores


def test_index_and_pickle(tmp_path: Path) -> None:
    table = load(tmp_path, [{"query": str(i), "positives": ["p"]} for i in range(5)])
    assert (table[-1], table[np.int64(3)].query) == (table[4], "3")
    for index in (5, -6):
        with pytest.raises(IndexError):
            table[index]
    payload = pickle.dumps(table)
    assert len(payload) < 1000
    assert pickle.loads(payload)[2] == table[2]


texts = st.sampled_from("abcdef")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, st.lists(texts, max_size=4), st.lists(texts, max_size=4)), min_size=1),
    rerank=st.booleans(),
)
def test_against_a_naive_implementation(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], rerank: bool
) -> None:
    """Blocks of three rows, so that lists and drops cross the bounds of batches."""
    rows = [row for row in rows if row[1] or (rerank and row[2])] or [("a", ["b"], [])]
    expected, known = naive(rows, rerank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestling.records.convert.ROWS_PER_BATCH", 3)
        records = [{"query": q, "positives": p, "negatives": n} for q, p, n in rows]
        if not expected:
            with pytest.raises(ValueError, match="no row can be kept"):
                load(tmp_path_factory.mktemp("naive"), records, allow_no_positives=rerank)
            return
        table = load(tmp_path_factory.mktemp("naive"), records, allow_no_positives=rerank)
    assert [table[i] for i in range(len(table))] == expected
    for i, record in enumerate(expected):
        assert table.positive_ids(i).tolist() == ids(*record.positives)
        assert table.negative_ids(i).tolist() == ids(*record.negatives)
        assert table.known_positives(i).tolist() == sorted(ids(*known.get(record.query, ())))
    assert table.max_negatives == max(len(record.negatives) for record in expected)


def naive(rows: list[tuple[str, list[str], list[str]]], rerank: bool) -> tuple[list[Record], dict[str, set[str]]]:
    known: dict[str, set[str]] = {}
    clean: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    for query, positives, negatives in rows:
        own = tuple(dict.fromkeys(text for text in positives if text != query))
        others = tuple(dict.fromkeys(text for text in negatives if text != query and text not in own))
        if own:
            known.setdefault(query, set()).update(own)
        if own or (rerank and others):
            clean.append((query, own, others))
    records = [Record(q, p, tuple(x for x in n if x not in known.get(q, ()))) for q, p, n in dict.fromkeys(clean)]
    return [record for record in records if record.positives or record.negatives], known


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_cache_is_used_and_follows_the_source(tmp_path: Path) -> None:
    row = {"query": "q", "positives": ["p"]}
    first = only_file(load(tmp_path, [row]).path.parent)
    written = first.stat().st_mtime_ns
    load_records(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache")
    assert first.stat().st_mtime_ns == written, "an unchanged source is not converted again"
    assert len(load(tmp_path, [row, {"query": "r", "positives": ["p"]}])) == 2


@pytest.mark.parametrize("largest_hashed", [0, 1 << 20], ids=["by its stamp", "by its content"])
@pytest.mark.parametrize("replaced", [True, False], ids=["rsync or tar", "cp -p"])
def test_a_file_of_the_same_size_and_time_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest_hashed: int, replaced: bool
) -> None:
    """`rsync -t` and `tar x` write a new file and rename it, `cp -p` writes into the old one; all set an old time."""
    monkeypatch.setattr("nestling.records.store.MAX_HASHED", largest_hashed)
    path = tmp_path / "rows.jsonl"
    for query in "ab":
        written = tmp_path / "new.jsonl" if replaced else path
        written.write_text(json.dumps({"query": query, "positives": ["p"]}))
        os.utime(written, ns=(0, 10**18))
        written.rename(path)
        assert load_records(path, cache_dir=tmp_path / "cache")[0] == Record(query, ("p",))


def test_a_corpus_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "query"}')
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    for text in "ab":
        (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": text}))
        os.utime(tmp_path / "corpus.jsonl", (0, 0))
        assert list(load_retrieval_set(tmp_path, "dev", cache_dir=tmp_path / "cache").documents) == [text]
        assert load_records(tmp_path, split="dev", cache_dir=tmp_path / "cache")[0] == Record("query", (text,))


def test_a_file_of_the_same_size_and_time_in_a_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "set").mkdir()
    for query in "ab":
        (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"query": query, "positives": ["p"]}))
        os.utime(tmp_path / "set" / "train.jsonl", (0, 0))
        assert load_records(tmp_path / "set", cache_dir=tmp_path / "cache")[0] == Record(query, ("p",))


def test_a_small_file_with_a_new_date_is_not_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load(tmp_path, [{"query": "q", "positives": ["p"]}])
    content = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").write_bytes(content)
    monkeypatch.setattr("nestling.records.load.convert", None)
    assert load_records(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache")[0] == table[0]


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "text"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    path = load(tmp_path, [{"query": f"q{i}", "positives": ["é" * 50]} for i in range(100)]).path
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "zeros":
        content[-2000:] = bytes(2000)
    else:
        content[content.index("é".encode() * 50)] = 0xFF
    path.write_bytes(content)
    table = load_records(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache")
    assert table[99] == Record("q99", ("é" * 50,))


def test_cache_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "deep" / "er"))
    (tmp_path / "a.jsonl").write_text('{"query": "q", "positives": ["p"]}')
    assert load_records(tmp_path / "a.jsonl").path.parent == tmp_path / "deep" / "er"


def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "positives": ["p"]}')
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write the cache folder .*set NESTLING_CACHE"):
        load_records(tmp_path / "a.jsonl", cache_dir=tmp_path / "cache")


def race(folder: Path) -> list[Record]:
    table = load_records(folder / "rows.jsonl", cache_dir=folder / "cache", progress=False)
    return [table[i] for i in range(len(table))]


def test_processes_may_race(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "positives": [f"p{i}"]} for i in range(2000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(race, [tmp_path, tmp_path])
    assert first == second == [Record(f"q{i}", (f"p{i}",)) for i in range(2000)]
    only_file(tmp_path / "cache")


LIMITED = """
import resource, sys
from pathlib import Path
from nestling.records import load_records
resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))
assert len(load_records(sys.argv[1], cache_dir=Path(sys.argv[2]), progress=False)) == 20_000
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds private memory on Linux only")
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """400 MB of text through a process that may hold 400 MiB of private memory, its libraries included."""
    with (tmp_path / "big.jsonl").open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"query": f"q{i}", "positives": [f"{i} " + "text " * 4000]}) + "\n")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "big.jsonl"), str(tmp_path / "cache")]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
