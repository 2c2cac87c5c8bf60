"""scripts/split.py as it is run: what stays together, what rows that come later change, and what is written."""

import json
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nestling.data_checks.groups import assign, group_rows
from nestling.data_checks.held_out import write_judged
from nestling.data_checks.near_duplicates import NearDuplicateCriterion
from nestling.data_checks.rows import open_rows
from nestling.records import load_records, load_retrieval_set
from recipes.runs import run_main
from scripts.split import main
from sets import WORDS

CRITERION = NearDuplicateCriterion(0.8, 2)
LONG = "print every line of a file that has more than eighty columns in it"
# Rows 0 to 4 hang together: by the positive ls, the query of row 0, a near duplicate of a query and of a positive.
TOGETHER = [
    ("list files", ["ls"]),
    ("show what is in a folder", ["ls"]),
    ("list files", [LONG]),
    (f"{LONG.upper()}!", [LONG + "."]),
    (LONG, ["awk"]),
]
split = partial(run_main, main)
pytestmark = pytest.mark.usefixtures("workplace")


def write(path: Path, pairs: list[tuple[str, list[str]]]) -> Path:
    rows = [{"query": query, "positives": positives, "negatives": ["never asked for"]} for query, positives in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def others(count: int) -> list[tuple[str, list[str]]]:
    """Pairs that nothing joins."""
    return [(f"{WORDS[i % 12]} {i}", [f"{i} {WORDS[i % 7]}"]) for i in range(count)]


def groups_of(path: Path, *, documents: bool = True) -> list[int]:
    return group_rows(open_rows(path, progress=False), CRITERION, documents=documents).tolist()


def test_groups_share_queries_and_positives_and_near_duplicates(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", [*TOGETHER, *others(2)])
    assert groups_of(data) == [0, 0, 0, 0, 0, 5, 6]  # not by the negative that all have
    assert groups_of(data, documents=False) == [0, 1, 0, 3, 3, 5, 6]


def test_rows_that_come_later_move_no_row(tmp_path: Path) -> None:
    pairs = [*TOGETHER, *others(300)]
    later = [(f"another wording of {i}", pairs[i][1]) for i in range(0, 300, 3)]

    def assigned(name: str, rows: list[tuple[str, list[str]]], seed: int = 0) -> np.ndarray:
        opened = open_rows(write(tmp_path / name, rows), progress=False)
        groups = group_rows(opened, CRITERION)
        return assign(opened, groups, dev_share=0.2, test_share=0.1, seed=seed)

    before, after = assigned("a.jsonl", pairs), assigned("b.jsonl", pairs + later)
    assert (before == after[: len(pairs)]).all()
    assert (after[len(pairs) :] == before[0:300:3]).all()
    assert 40 <= (before == "dev").sum() <= 80
    assert 15 <= (before == "test").sum() <= 50
    assert (assigned("c.jsonl", pairs, seed=1) != before).any()


def test_the_folder_trains_and_measures(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", [*TOGETHER, *others(120)])
    done = split("--data", data, "--output", "my-set", "--test_share", 0.2)
    assert done.returncode == 0, done.stderr
    assert "my-set: train.jsonl to train on" in done.stdout
    train = load_records("my-set/train.jsonl", progress=False)
    sets = {name: load_retrieval_set("my-set", name) for name in ("dev", "test")}
    trained = {train[i].query for i in range(len(train))}
    held_out = [query for each in sets.values() for query in each.queries]
    assert len(held_out) == len(set(held_out))
    assert trained | set(held_out) == {query for query, _ in TOGETHER + others(120)}
    assert trained.isdisjoint(held_out)
    pairs = {(query, positive) for query, positives in TOGETHER + others(120) for positive in positives}
    for each in sets.values():
        assert len(each.documents) == 125  # those of all rows, the negative too
        judged = zip(each.queries, each.relevant, strict=True)
        assert {(query, each.documents[i]) for query, relevant in judged for i in relevant.tolist()} <= pairs
    assert set(train[0].negatives) == {"never asked for"}


def test_held_out_queries_name_their_group(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", [*others(60), *TOGETHER])
    seeds = iter(range(20))
    while True:  # until the group of TOGETHER is held out
        folder = f"set-{next(seeds)}"
        arguments = ["--data", data, "--output", folder, "--test_share", 0.3, "--seed", folder[4:]]
        assert split(*arguments).returncode == 0
        queries = [json.loads(line) for line in Path(folder, "queries.jsonl").read_text("utf-8").splitlines()]
        groups = {each["text"]: each["metadata"]["group"] for each in queries if "metadata" in each}
        if groups:
            break
    first = next(each["_id"] for each in queries if each["text"] == "list files")
    assert groups == {query: first for query, _ in TOGETHER}  # the others are alone, and say nothing
    sets = [load_retrieval_set(folder, name) for name in ("dev", "test") if Path(folder, f"qrels/{name}.tsv").exists()]
    assert first in {group for each in sets for group in each.groups or ()}


def test_what_cannot_be_split(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", TOGETHER)
    done = split("--data", few, "--output", "my-set")
    assert done.returncode == 2
    assert done.stderr.startswith("error: train and test would be empty: the 1 groups are too few for these shares; ")
    assert "warning: one group has 5 of the 5 rows" in done.stdout
    assert not Path("my-set").exists()
    Path("my-set").mkdir()
    assert "my-set exists already" in split("--data", few, "--output", "my-set").stderr
    graded = tmp_path / "graded.jsonl"
    graded.write_text(
        '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "c", "sentence2": "d", "score": 2}\n'
    )
    assert "graded pairs; expected queries with their positives" in split("--data", graded, "--output", "new").stderr
    refused = split("--data", few, "--output", "new", "--split", "test").stderr
    assert f"{few}: split is test, and this has no splits, so that all of it would be read" in refused
    assert "expected together above 0" in split("--data", few, "--output", "new", "--dev_share", 0.95).stderr


def test_memory_does_not_hold_the_texts(tmp_path: Path) -> None:
    pairs = [(query, [f"{text} {'x' * 2000}"]) for query, (text,) in others(8000)]
    rows = open_rows(write(tmp_path / "pairs.jsonl", pairs), progress=False)
    groups = np.arange(len(rows))
    (tmp_path / "set").mkdir()
    tracemalloc.start()
    split_of = assign(rows, groups, dev_share=0.1, test_share=0.1, seed=1)
    write_judged(rows, groups, split_of, np.ones(len(rows.documents), dtype=bool), tmp_path / "set")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "set" / "corpus.jsonl").stat().st_size
    assert size > 16e6
    assert peak < size / 2
