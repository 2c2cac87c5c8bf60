"""Training lists for a reranker of BM25's results: a query's positives, BM25's first others, and some at random.

python scripts/bench/bm25_lists.py --data nl2bash --output lists.jsonl

Random documents are part of it because a reranker that has only seen BM25's ranks others, which are unlike the query,
above them.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import parse_config, require_new, run

if TYPE_CHECKING:
    from nestling.records import RetrievalSet


@dataclass(frozen=True)
class ListsConfig:
    """Settings of scripts/bench/bm25_lists.py.

    Args:
        data: Folder in the BEIR layout.
        output: JSONL file of records; must not exist.
        split: Which qrels file to use.
        depth: Documents of BM25 to look at.
        num_negatives: How many of these to take, the first that are not relevant.
        others: Random documents of a query.
        seed: Of these.
    """

    data: str
    output: str
    split: str = "train"
    depth: int = 60
    num_negatives: int = 40
    others: int = 16
    seed: int = 0


def main() -> None:
    config = parse_config(ListsConfig, __doc__)
    output = Path(config.output)
    require_new("--output", config.output)
    from nestling.records import load_retrieval_set

    retrieval_set = load_retrieval_set(config.data, config.split)
    with output.open("x", encoding="utf-8") as stream:
        for row in rows(retrieval_set, config):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{output}: {len(retrieval_set.queries):,} queries")


def rows(retrieval_set: "RetrievalSet", config: ListsConfig) -> Iterator[dict[str, object]]:
    from nestling.retrieval import Candidates, bm25_run

    found = Candidates.from_run(bm25_run(retrieval_set, depth=config.depth), retrieval_set, config.depth)
    source, documents = random.Random(config.seed), retrieval_set.documents
    for query, relevant, listed in zip(retrieval_set.queries, retrieval_set.relevant, found.positions, strict=True):
        positives = {documents[int(row)] for row in relevant}
        first = [text for text in map(documents.__getitem__, listed.tolist()) if text not in positives]
        negatives = first[: config.num_negatives]
        while len(negatives) < min(len(first), config.num_negatives) + config.others:
            text = documents[source.randrange(len(documents))]
            if text not in positives and text not in negatives:
                negatives.append(text)
        yield {"query": query, "positives": sorted(positives), "negatives": negatives}


if __name__ == "__main__":
    run(main)
