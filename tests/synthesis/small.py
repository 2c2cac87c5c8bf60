"""A small synthesis task, for tests."""

from pathlib import Path
from typing import Any

from mining.small import write_rows
from nestling.synthesis.passage_sets import PassageSets
from nestling.synthesis.passages import Passages
from nestling.synthesis.query_spec import QueryOptions
from nestling.synthesis.task import SynthesisTask

OPTIONS = QueryOptions({"keywords": "terms"}, {"easy": "e"}, {"2-6": 1, "15-40": 1}, {"document": 1})


def small_task(folder: Path, texts: dict[str, str], **settings: Any) -> SynthesisTask:
    """A task about texts by id."""
    corpus = write_rows(folder / "corpus.jsonl", [{"_id": each, "text": text} for each, text in texts.items()])
    limit = settings.pop("limit", None)
    passages = Passages.open(corpus, limit=limit, min_characters=1, max_characters=1000, seed=1)
    sets = settings.pop("passage_sets", PassageSets({}))
    defaults = {
        "num_queries": 1,
        "options": OPTIONS,
        "personas": ["a nurse", "a cook"],
        "candidates": 2,
        "persona_rows": None,
        "attempts": 1,
        "min_grade": None,
        "seed": 1,
    }
    return SynthesisTask(passages, sets, **{**defaults, **settings})
