"""Damaged files of every format: one clean error that names the file, or all rows read or counted as dropped."""

import csv
import gzip
import io
import json
import random
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nestling.data_checks.rows import open_rows
from nestling.records import LoadSummary, load_records, load_retrieval_set
from nestling.records.convert import NO_POSITIVE
from nestling.records.json_files import read_json
from nestling.records.json_sets import is_set
from nestling.records.load import find_source
from nestling.records.qrels import REPEATED
from nestling.records.selection import NO_DOCUMENT, REPEATED_ROW
from nestling.retrieval.candidates import read_candidates
from nestling.retrieval.first_stage import read_run
from nestling.terminal import printable
from records.damage import beir_folder, candidate_file, rows_file, run_file, set_file

INPUTS = 200  # of each seed
LONGEST_MESSAGE = 3500  # characters, without the path
DROPPED_ROWS = (REPEATED_ROW, NO_POSITIVE, NO_DOCUMENT)


def rows_in(path: Path) -> set[int]:
    """How many rows a file may be said to have, counted without the readers; a TSV file has quotes or has none."""
    if path.suffix == ".parquet":
        return {pq.read_metadata(path).num_rows}
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    if path.name.startswith("rows.json"):
        return {json_objects(text)}
    delimiter = "\t" if path.name.startswith("rows.tsv") else ","
    kinds = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter == "\t" else (csv.QUOTE_MINIMAL,)
    return {table_rows(text, delimiter, kind) for kind in kinds}


def table_rows(text: str, delimiter: str, quoting: int) -> int:
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    try:
        return sum(map(bool, cells)) - 1
    except csv.Error:
        return -1


def json_objects(text: str) -> int:
    """The elements of an array, or the objects one after another."""
    decoder, objects, position = json.JSONDecoder(), 0, 0
    if text.lstrip().startswith("["):
        return len(json.loads(text))
    while rest := text[position:].lstrip():
        position = len(text) - len(rest) + decoder.raw_decode(rest)[1]
        objects += 1
    return objects


def dropped(summary: LoadSummary, *reasons: str) -> int:
    return sum(drop.count for drop in summary.drops if drop.reason in reasons)


def load_rows(rng: random.Random, folder: Path) -> str:
    """Load training rows: every row is kept or counted, and so is every document of the rows that are kept."""
    path, columns = rows_file(rng, folder)
    rerank = rng.random() < 0.3
    table = load_records(path, columns=columns, allow_no_positives=rerank, cache_dir=folder, progress=False)
    summary = table.summary
    assert summary.rows_read in rows_in(path)
    assert summary.rows_kept == len(table) == summary.rows_read - dropped(summary, *DROPPED_ROWS)
    records = list(find_source(path, "train", folder, False, rerank, columns)[1]().records())
    documents = sum(len(record.positives) + len(record.negatives) for _, record in records)
    kept = sum(len(table[row].positives) + len(table[row].negatives) for row in range(len(table)))
    assert kept == summary.positives + summary.negatives <= documents
    lost = documents - kept - sum(drop.count for drop in summary.drops if drop.reason not in DROPPED_ROWS)
    assert lost == 0 or dropped(summary, *DROPPED_ROWS), "documents go with their row, or are counted"
    checked = open_rows(path, columns=columns, cache_dir=folder, progress=False)
    assert len(checked) == summary.rows_read
    return "rows, with drops" if summary.drops else "rows"


def load_beir(rng: random.Random, folder: Path) -> str:
    """Load a BEIR folder in both ways: every line with a judgement is one that is kept or counted."""
    path = beir_folder(rng, folder)
    summary = load_retrieval_set(path, "dev", cache_dir=folder).summary
    lines = (path / "qrels" / "dev.tsv").read_bytes().decode("utf-8-sig").split("\n")
    headed = lines[0].split() == ["query-id", "corpus-id", "score"]  # which TREC's files are not
    judged = sum(map(bool, map(str.strip, lines[headed:])))
    assert summary.positives + summary.negatives + dropped(summary, REPEATED) == judged
    table = load_records(path, split="dev", allow_no_positives=True, cache_dir=folder, progress=False)
    assert len(table) + dropped(table.summary, *DROPPED_ROWS) == table.summary.rows_read == summary.rows_read
    return "BEIR folder"


def load_set(rng: random.Random, folder: Path) -> str:
    """Load a JSON retrieval set in both ways."""
    path = set_file(rng, folder)
    summary = load_retrieval_set(path, "dev", cache_dir=folder).summary
    sets = [row for _, row in read_json(path) if is_set(row)]
    assert summary.rows_read == len(sets[0]["relevant_docs"])
    assert summary.positives + summary.negatives == sum(map(len, sets[0]["relevant_docs"].values()))
    table = load_records(path, allow_no_positives=True, cache_dir=folder, progress=False)
    assert len(table) + dropped(table.summary, *DROPPED_ROWS) == summary.rows_read
    return "JSON set"


def load_run(rng: random.Random, folder: Path) -> str:
    path = run_file(rng, folder)
    run = read_run(path)
    assert sum(map(len, run.values())) == sum(bool(line.split()) for line in path.read_bytes().decode().split("\n"))
    return "run"


def load_candidates(rng: random.Random, folder: Path) -> str:
    retrieval_set = load_retrieval_set(beir_folder(random.Random(5), folder), "dev", cache_dir=folder)
    path = candidate_file(rng, folder)
    candidates = read_candidates(path, retrieval_set)
    lists = sum(len(positions) > 0 for positions in candidates.positions)
    assert lists + candidates.skipped_lists == json_objects(path.read_text("utf-8-sig"))
    return "candidates"


LOADERS = (*[load_rows] * 7, load_beir, load_set, load_run, load_candidates)


def outcome(rng: random.Random, folder: Path) -> str:
    """What became of one input: "error", or what was read."""
    loader = rng.choice(LOADERS)
    begin = time.process_time()
    try:
        found = loader(rng, folder)
    except ValueError as error:
        check_error(error, folder)
        found = f"error of {loader.__name__}"
    assert time.process_time() - begin < 5, "seconds of work"
    return found


def check_error(error: ValueError, folder: Path) -> None:
    """It is of no other class, names a file and what is wrong in it, and is short and printable."""
    message = str(error).replace(f"{folder}/", "")
    if type(error) is not ValueError or not str(error).startswith(str(folder)) or len(message) > LONGEST_MESSAGE:
        raise AssertionError(f"{type(error).__name__}, {len(message):,} characters: {message[:500]}") from error
    assert printable(message) == message


def run_fuzz(seed: int, folder: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for number in range(INPUTS):
        place = folder / str(number)
        place.mkdir()
        try:
            outcomes[outcome(random.Random(1000 * seed + number), place)] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}")
            raise
    return outcomes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 50))])
def test_damaged_files(tmp_path: Path, seed: int) -> None:
    outcomes = run_fuzz(seed, tmp_path)
    refused = sum(count for name, count in outcomes.items() if name.startswith("error"))
    assert INPUTS // 5 < refused < INPUTS * 4 // 5, "both ends are met"
