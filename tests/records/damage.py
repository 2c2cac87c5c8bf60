"""Sound data files in every format that is read, and what can happen to them."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

TEXTS = (
    "a query of some words",
    "document",
    'with "quotes", a comma',
    "tab\tand\nline",
    "é 玉山 \U0001f600",
    "[x]",
    "7",
)
NAMES = (
    *("query", "question", "anchor", "positive", "positives", "pos", "neg", "negatives", "negative", "negative_2"),
    *("hard_negs", "answer", "document", "passage", "context", "sentence1", "sentence2", "score", "label", "labels"),
    *(
        "scores",
        "pos_scores",
        "neg_scores",
        "positive_scores",
        "response",
        "rejected_response",
        "system",
        "instruction",
    ),
    *("messages", "positive_messages", "positive_passages", "negative_passages", "title", "text", "_id", "queries"),
    *("corpus", "relevant_docs", "queri", "Query", "", "distractors", "images", "k" * 5000, "k\ud800", "\x1b[31m"),
)
DEEP = "@deep@"  # stands for a nested value, which json.dumps could not write
ODD_VALUES = (
    *(None, True, False, 0, 1, -3, 0.5, 10**400, 2**63, float("nan"), float("inf"), "", "  ", "\0", "\ud800"),
    *("\x1b]0;t\x07\r", "x" * 20_000, [], {}, [[]], [None], {"text": None}, {"text": "t", "score": "high"}, DEEP),
)


def text(rng: random.Random) -> str:
    return f"{rng.choice(TEXTS)} {rng.randrange(10**6)}"


def texts(rng: random.Random, least: int = 0) -> list[str]:
    return [text(rng) for _ in range(rng.randrange(least, 4))]


def scored(rng: random.Random, least: int = 0) -> list[Row]:
    return [{"title": text(rng), "text": text(rng)} for _ in range(rng.randrange(least, 3))]


def message(rng: random.Random) -> list[Row]:
    return [{"role": "user", "content": text(rng)}]


def with_scores(rng: random.Random) -> Row:
    positives, negatives = texts(rng, 1), texts(rng, 1)
    scores = {"pos_scores": [rng.random() for _ in positives], "neg_scores": [rng.random() for _ in negatives]}
    return {"query": text(rng), "pos": positives, "neg": negatives, **scores, "prompt": "task"}


DIALECTS: tuple[Callable[[random.Random], Row], ...] = (
    lambda rng: {"query": text(rng), "positives": texts(rng, 1), "negatives": texts(rng), "instruction": text(rng)},
    lambda rng: {"anchor": text(rng), "positive": text(rng), "negative_1": text(rng), "negative_2": text(rng)},
    lambda rng: {"query": text(rng), "positive": texts(rng, 1), "negative": texts(rng)},
    lambda rng: {"sentence1": text(rng), "sentence2": text(rng), "score": rng.random()},
    lambda rng: {"query": text(rng), "response": text(rng), "rejected_response": texts(rng), "system": text(rng)},
    lambda rng: {"messages": message(rng), "positive_messages": [message(rng)], "negative_messages": [message(rng)]},
    lambda rng: {"query": text(rng), "positive_passages": scored(rng, 1), "negative_passages": scored(rng)},
    lambda rng: {"question": text(rng), "answer": text(rng), "source_id": rng.randrange(9)},
    lambda rng: {"title": text(rng), "body": text(rng), "others": texts(rng)},
    with_scores,
)
COLUMNS = {"query": "title", "positive": "body", "negatives": "others"}  # of the one before the last


def sound_rows(rng: random.Random) -> tuple[list[Row], dict[str, str] | None]:
    """Rows of one dialect, and the names of their columns where they need any."""
    dialect = rng.choice(DIALECTS)
    rows = [dialect(rng) for _ in range(rng.randrange(1, 7))]
    return rows, COLUMNS if "body" in rows[0] else None


def damage_rows(rng: random.Random, rows: list[Row]) -> None:
    """Do one thing to a row, or to the names in all rows."""
    row = rng.choice(rows)
    kind, name = rng.randrange(8), rng.choice(list(row) or [""])
    if kind == 0:
        row.pop(name, None)
    elif kind == 1:
        row[rng.choice(NAMES)] = rng.choice([*ODD_VALUES, text(rng), texts(rng)])
    elif kind == 2:
        renamed = rng.choice(NAMES)
        for each in rows:
            each.update({renamed: each.pop(name)} if name in each else {})
    elif kind == 3:
        rows.append(dict(row))
    elif kind == 4 and isinstance(row.get(name), list):
        row[name] = row[name] * 2 + [rng.choice(ODD_VALUES)]
    elif kind == 5:
        row.update(dict.fromkeys(row, text(rng)))
    else:
        row[name] = rng.choice(ODD_VALUES)


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Do one thing to the bytes of a file."""
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    to = min(to, at + 40)
    lines = content.split(b"\n")
    line = rng.randrange(len(lines))
    flipped = bytearray(content)
    for _ in range(rng.randrange(1, 6) if content else 0):
        flipped[rng.randrange(len(content))] = rng.randrange(256)
    odd = rng.choice(
        [b"\0", b'"', b"\t", b",", b"\r", b"\n", b"\xff", b"\xef\xbb\xbf", b"{", b"]", b"[" * 3000, b"\x1b"]
    )
    return rng.choice(
        [
            lambda: content[:at],
            lambda: content[at:],
            lambda: content[:at] + content[to:],
            lambda: content[:at] + content[at:to] * 2 + content[to:],
            lambda: content[:at] + odd + content[at:],
            lambda: bytes(flipped),
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content.replace(b"\n", b"\n \n\n"),
            lambda: content.decode(errors="replace").encode("utf-16"),
            lambda: content.decode(errors="replace").encode("latin-1", errors="replace"),
            lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
            lambda: b"\n".join([*lines[:line], *lines[line + 1 :]]),
            lambda: b"".join([*(each + b"\n" for each in lines[:line]), *lines[line:]]),
        ]
    )()


def dumped(rng: random.Random, value: Any, indent: int | None = None) -> str:
    depth = rng.choice([30, 500, 5000])
    content = json.dumps(value, ensure_ascii=rng.random() < 0.5 or "\\ud800" in json.dumps(value), indent=indent)
    return content.replace(json.dumps(DEEP), "[" * depth + "]" * depth)


def json_file(rng: random.Random, rows: list[Row]) -> bytes:
    """One array, or objects over one or several lines."""
    if rng.random() < 0.5:
        return dumped(rng, rows, rng.choice([None, 1])).encode()
    indent = rng.choice([None, 1])
    return "".join(dumped(rng, row, indent) + "\n" for row in rows).encode()


def jsonl_file(rng: random.Random, rows: list[Row]) -> bytes:
    return "".join(dumped(rng, row) + "\n" for row in rows).encode()


def table_file(rng: random.Random, rows: list[Row], delimiter: str) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name) for name in names]
        writer.writerow([cell if isinstance(cell, str) and cell != DEEP else dumped(rng, cell) for cell in cells])
    return file.getvalue().encode(errors="replace")


def parquet_file(rng: random.Random, rows: list[Row]) -> bytes:
    """Columns of the types that Arrow finds, or of texts where it finds none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [column(rng, [row.get(name) for row in rows]) for name in names]
    sink = pa.BufferOutputStream()
    options: Row = {"compression": rng.choice(["none", "snappy", "zstd"]), "row_group_size": rng.randrange(1, 4)}
    names = [name.encode(errors="replace").decode() for name in names]
    pq.write_table(pa.Table.from_arrays(columns, names), sink, **options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def column(rng: random.Random, values: list[Any]) -> Any:
    try:
        found = pa.array(values)
        pq.write_table(pa.table({"": found}), pa.BufferOutputStream())  # which refuses objects without fields
        return found
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return pa.array([dumped(rng, value).encode(errors="replace").decode() for value in values])


def rows_file(rng: random.Random, folder: Path) -> tuple[Path, dict[str, str] | None]:
    """A file of training rows in any format, damaged up to three times in its rows and its bytes, and their columns."""
    rows, columns = sound_rows(rng)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        damage_rows(rng, rows)
    suffix = rng.choice([".jsonl", ".json", ".csv", ".tsv", ".parquet"])
    if suffix == ".parquet":
        content = parquet_file(rng, rows)
    elif suffix in (".csv", ".tsv"):
        content = table_file(rng, rows, "," if suffix == ".csv" else "\t")
    else:
        content = (json_file if suffix == ".json" else jsonl_file)(rng, rows)
    content = damaged(rng, content)
    if suffix != ".parquet" and rng.random() < 0.1:
        suffix, content = f"{suffix}.gz", damaged(rng, gzip.compress(content, mtime=0))
    path = folder / f"rows{suffix}"
    path.write_bytes(content)
    return path, rng.choice([*[columns] * 9, None, COLUMNS, {"query": "query", "positive": "positive"}])


def damaged(rng: random.Random, content: bytes, chance: float = 0.3) -> bytes:
    while rng.random() < chance:
        content = damage_bytes(rng, content)
    return content


def grade(rng: random.Random, number: float) -> object:
    """The number, or rarely something odd in its place."""
    return rng.choice(["nan", "high", "", "9" * 400, "\x1b[31m"]) if rng.random() < 0.03 else number


def beir_folder(rng: random.Random, folder: Path) -> Path:
    """A retrieval set, one file of which is damaged."""
    documents = [{"_id": f"d{i}", "title": text(rng), "text": text(rng)} for i in range(4)]
    queries = [{"_id": f"q{i}", "text": text(rng)} for i in range(3)]
    pairs = [(query["_id"], document["_id"]) for query in queries for document in rng.sample(documents, 2)]
    judged = "".join(f"{query}\t{document}\t{grade(rng, rng.randrange(3))}\n" for query, document in pairs)
    rows: list[Row] = rng.choice([documents, queries])
    if rng.random() < 0.5:
        damage_rows(rng, rows)
    parts = {"corpus.jsonl": jsonl_file(rng, documents), "queries.jsonl": jsonl_file(rng, queries)}
    parts["qrels/dev.tsv"] = b"query-id\tcorpus-id\tscore\n" + judged.encode()
    name = rng.choice(list(parts))
    parts[name] = damaged(rng, parts[name], 0.6)
    (folder / "set" / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in parts.items():
        (folder / "set" / name).write_bytes(content)
    return folder / "set"


def set_file(rng: random.Random, folder: Path) -> Path:
    """A retrieval set in one JSON object, damaged in its values and its bytes."""
    corpus: Row = {f"d{i}": rng.choice([text(rng), {"title": text(rng), "text": text(rng)}]) for i in range(4)}
    queries: Row = {f"q{i}": text(rng) for i in range(3)}
    relevant: Row = {query: rng.choice([["d0", "d1"], {"d2": 1, "d3": 0}]) for query in queries}
    parts = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "mode": "text"}
    if rng.random() < 0.5:
        damage_rows(rng, [rng.choice([queries, corpus, relevant, parts])])
    path = folder / f"set.{rng.choice(['json', 'jsonl'])}"
    path.write_bytes(damaged(rng, dumped(rng, parts, rng.choice([None, 1])).encode()))
    return path


def run_file(rng: random.Random, folder: Path) -> Path:
    lines = [f"q{i} Q0 d{j} {j + 1} {grade(rng, rng.random())} tag\n" for i in range(3) for j in range(3)]
    (folder / "first.run").write_bytes(damaged(rng, "".join(lines).encode(), 0.7))
    return folder / "first.run"


def candidate_file(rng: random.Random, folder: Path) -> Path:
    rows: list[Row] = [{"query-id": f"q{i}", "corpus-ids": ["d0", "d1", "d2"]} for i in range(4)]
    if rng.random() < 0.5:
        damage_rows(rng, rows)
    (folder / "candidates.jsonl").write_bytes(damaged(rng, jsonl_file(rng, rows)))
    return folder / "candidates.jsonl"
