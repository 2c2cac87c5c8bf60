"""Measure an embedding model, BM25 or a TREC run on retrieval sets in the BEIR layout.

    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --split test --dims 384,128,64
    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --precision float32,int8,binary
    python scripts/evaluate.py --first_stage bm25 --data data/my-set

Equal scores are averaged over every order, gain is linear, a document is its title and text.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nestling import __version__
from nestling.config import parse_config, require, require_dims, run

if TYPE_CHECKING:
    from nestling.metrics import Placements
    from nestling.records import RetrievalSet


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of scripts/evaluate.py.

    Args:
        data: Folder with corpus.jsonl, queries.jsonl and qrels/; several with commas between.
        model: Directory or hub id of the embedding model.
        first_stage: In place of a model: bm25, or a TREC run file (query Q0 document rank score tag).
        split: Which qrels file to use.
        dims: Dimensions to cut embeddings to; the full one and the model's matryoshka_dimensions by default.
        precision: How a vector store keeps the vectors. int8 keeps documents in 256 steps a dimension, binary keeps the
            signs of documents and queries.
        query_max_length: Tokens of a query, its prompt and end token included.
        document_max_length: Tokens of a document, likewise.
        instruction: Task of the queries; the model's own query prompt by default.
        compute: Precision of the model itself; bf16 is quicker where the hardware has it and changes the third digit.
        output: JSON file for the results; must not exist.
    """

    data: list[str]
    model: str | None = None
    first_stage: str | None = None
    split: str = "test"
    dims: list[int] = field(default_factory=list)
    precision: list[Literal["float32", "int8", "binary"]] = field(default_factory=lambda: ["float32"])
    query_max_length: int = 512
    document_max_length: int = 512
    instruction: str | None = None
    compute: Literal["fp32", "bf16"] = "fp32"
    output: str | None = None

    def __post_init__(self) -> None:
        require(
            (self.model is None) != (self.first_stage is None), "give either --model or --first_stage bm25|RUN_FILE"
        )
        require(bool(self.data), "data is empty; give a folder in the BEIR layout")
        require(len(set(self.data)) == len(self.data), "data: a folder is given twice")
        require_dims(self.dims)
        require(bool(self.precision), "precision is empty; expected float32, int8 or binary")
        require(len(set(self.precision)) == len(self.precision), "precision: one is given twice")
        for name in ("query_max_length", "document_max_length"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        of_models = self.dims or self.precision != ["float32"] or self.instruction is not None
        require(self.model is not None or not of_models, "dims, precision and instruction need a --model")


@dataclass(frozen=True)
class Row:
    """One line of the table: a set measured in one way."""

    data: str
    queries: int
    documents: int
    dim: int | None
    precision: str | None
    metrics: dict[str, float]
    truncated_queries: int = 0
    truncated_documents: int = 0


def main() -> None:
    config = parse_config(EvaluateConfig, __doc__)
    check_output(config.output)
    dims = choose_dims(config)
    first_stage = read_first_stage(config)

    from nestling.records import load_retrieval_set

    sets = [load_retrieval_set(folder, config.split) for folder in config.data]
    for drop in (drop for each in sets for drop in each.summary.drops):
        print(f"dropped {drop.count:,}: {drop.reason} (first at {drop.example})")
    rows = list(measure_model(config, sets, dims) if config.model else measure_first_stage(first_stage, sets))
    print_table(rows)
    if config.output:
        write_json(Path(config.output), config, rows)


def check_output(output: str | None) -> None:
    """Refuse a file that exists, and one that could not be written, before anything is computed."""
    if output is None:
        return
    require(not Path(output).exists(), f"--output {output} exists; choose another name or remove it")
    require(Path(output).parent.is_dir(), f"--output {output}: the folder {Path(output).parent} does not exist")


def check_model(model: str) -> None:
    """Refuse a mistyped path at once; to ask the hub for it would take half a minute of retries."""
    parts = Path(model).parts
    hub_id = len(parts) == 1 or (len(parts) == 2 and not Path(parts[0]).exists())
    require(Path(model).is_dir() or hub_id, f"--model {model}: no such directory")


def choose_dims(config: EvaluateConfig) -> list[int]:
    """The dimensions to measure, after a look at the model's configuration; no weights are read."""
    if config.model is None:
        return []
    check_model(config.model)
    from transformers import AutoConfig

    from nestling.embedder import read_model_files

    try:
        model = AutoConfig.from_pretrained(config.model, subfolder=read_model_files(config.model).subfolder)
    except OSError:
        raise ValueError(
            f"--model {config.model}: neither a directory with a config.json nor a model of the hub"
        ) from None
    keys = model.to_dict()
    limit = keys.get("max_position_embeddings") or sys.maxsize
    for name in ("query_max_length", "document_max_length"):
        length = getattr(config, name)
        require(length <= limit, f"--{name} {length}: {config.model} reads at most {limit} tokens; give a lower one")
    dims = config.dims or sorted({model.hidden_size, *(keys.get("matryoshka_dimensions") or [])}, reverse=True)
    require_dims(dims, limit=model.hidden_size)
    return dims


def read_first_stage(config: EvaluateConfig) -> dict[str, dict[str, float]] | None:
    """The lists of a run file; None for BM25 and models."""
    if config.first_stage is None or config.first_stage == "bm25":
        return None
    path = Path(config.first_stage)
    require(path.is_file(), f"--first_stage {path}: no such file; expected bm25 or a TREC run file")
    from nestling.retrieval import read_run

    return read_run(path)


def measure_model(config: EvaluateConfig, sets: "list[RetrievalSet]", dims: list[int]) -> Iterator[Row]:
    """Encode each set once, then measure every dimension and precision."""
    import torch

    from nestling.embedder import Embedder
    from nestling.retrieval import encode_set, place

    assert config.model is not None
    compute = torch.bfloat16 if config.compute == "bf16" else torch.float32
    embedder = Embedder.from_pretrained(config.model, precision=compute)
    embedder.to("cuda" if torch.cuda.is_available() else "cpu")
    for each in sets:
        encoded = encode_set(
            embedder,
            each,
            query_max_length=config.query_max_length,
            document_max_length=config.document_max_length,
            instruction=config.instruction,
            progress=sys.stderr.isatty(),
        )
        print(f"{each.name}: queries: {encoded.query_tally}", file=sys.stderr)
        print(f"{each.name}: documents: {encoded.document_tally}", file=sys.stderr)
        truncated = (encoded.query_tally.truncated, encoded.document_tally.truncated)
        print(f"{each.name}:")
        print(f"  {len(each.queries):,} queries, {truncated[0]:,} cut to {config.query_max_length} tokens")
        print(f"  {len(each.documents):,} documents, {truncated[1]:,} cut to {config.document_max_length} tokens")
        for dim in dims:
            for precision in config.precision:
                yield make_row(each, place(encoded, dim, precision), dim, precision, truncated)


def measure_first_stage(lists: dict[str, dict[str, float]] | None, sets: "list[RetrievalSet]") -> Iterator[Row]:
    """Measure BM25, or the lists of a run file."""
    from nestling.metrics import place_run
    from nestling.retrieval import bm25_run, judgements

    for each in sets:
        print(f"{each.name}:\n  {len(each.queries):,} queries\n  {len(each.documents):,} documents")
        if lists is not None:
            report_fit(lists, each)
        yield make_row(each, place_run(lists or bm25_run(each), judgements(each)))


def report_fit(lists: dict[str, dict[str, float]], data: "RetrievalSet") -> None:
    """Refuse a run of other queries; say what a run lacks or lists beyond the collection."""
    found = [query for query in data.query_ids if query in lists]
    require(bool(found), f"--first_stage: the run lists none of the {len(data.queries):,} queries of {data.name}")
    known = set(data.document_ids)
    foreign = {document for query in found for document in lists[query] if document not in known}
    if len(found) < len(data.queries):
        print(f"  {len(data.queries) - len(found):,} queries are not in the run and count 0")
    if foreign:
        print(f"  {len(foreign):,} documents of the run are not in the collection and count as not relevant")


def make_row(
    data: "RetrievalSet",
    placements: "Placements",
    dim: int | None = None,
    precision: str | None = None,
    truncated: tuple[int, int] = (0, 0),
) -> Row:
    from nestling.metrics import means

    return Row(data.name, len(data.queries), len(data.documents), dim, precision, means(placements), *truncated)


def print_table(rows: list[Row]) -> None:
    """One row a set, dimension and precision."""
    metrics = list(rows[0].metrics)
    width = max(len(row.data) for row in rows)
    print(f"\n{'':{width}}  {'dim':>5}  {'precision':9}  " + "  ".join(f"{name:>10}" for name in metrics))
    for row in rows:
        values = "  ".join(f"{row.metrics[name]:10.4f}" for name in metrics)
        print(f"{row.data:{width}}  {row.dim or '-':>5}  {row.precision or '-':9}  {values}")


def write_json(path: Path, config: EvaluateConfig, rows: list[Row]) -> None:
    """Write settings and results; never over an existing file."""
    content: dict[str, Any] = {
        "nestling": __version__,
        "config": asdict(config),
        "results": [asdict(row) for row in rows],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(text + "\n")


if __name__ == "__main__":
    run(main)
