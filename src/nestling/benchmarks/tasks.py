"""Tasks for mteb: its own, by name, and BEIR folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from nestling.records.beir import load_retrieval_set
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates
from nestling.retrieval.first_stage import qrels_of

SUBSET = "default"


class BeirTask(AbsTaskRetrieval):
    """A BEIR folder as a retrieval task of mteb; it has no instruction, so that models use their own.

    Args:
        data: The retrieval set.
    """

    def __init__(self, data: RetrievalSet) -> None:
        self.data = data
        self.ignore_identical_ids = bool((data.own_documents >= 0).any())
        self.metadata = TaskMetadata(
            name=data.name.removesuffix(f"/{data.split}"),
            description="A BEIR folder.",
            type="Retrieval",
            category="t2t",
            dataset={"path": data.name, "revision": "local"},
            eval_splits=[data.split],
            eval_langs=["und"],
            main_score="ndcg_at_10",
        )
        super().__init__()

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Load texts and judgements into the format of mteb; the text of a document includes its title."""
        if self.data_loaded:
            return
        data = self.data
        self.dataset = {
            SUBSET: {
                data.split: {
                    "corpus": texts(data.document_ids, data.documents),
                    "queries": texts(data.query_ids, data.queries),
                    "relevant_docs": mteb_judgements(data),
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True

    def unload_data(self) -> None:
        """Drop texts and judgements; the method of the base class would also drop `data` and the metadata."""
        self.dataset = {}
        self.data_loaded = False

    def rerank(self, candidates: Candidates) -> None:
        """Turn the loaded task into a reranking task with these candidates."""
        ids = self.data.document_ids
        ranked = zip(self.data.query_ids, candidates.positions, strict=True)
        candidate_ids = {query: [ids[row] for row in rows.tolist()] for query, rows in ranked}
        self.dataset[SUBSET][self.data.split]["top_ranked"] = candidate_ids


def texts(ids: Sequence[str], values: Sequence[str]) -> Dataset:
    return Dataset.from_dict({"id": list(ids), "text": list(values)})


def mteb_judgements(data: RetrievalSet) -> dict[str, dict[str, int]]:
    """{query id: {document id: grade}}.

    A query without a relevant document gets a judgement of 0, since mteb leaves out queries without any judgement.
    """
    grades = {
        query: {document: int(gain) for document, gain in judged.items()} for query, judged in qrels_of(data).items()
    }
    return {query: judged or {data.document_ids[0]: 0} for query, judged in grades.items()}


def open_task(name: str, split: str) -> AbsTask:
    """Open a BEIR folder, or a task of mteb by its name, without loading the data of the latter.

    Raises:
        ValueError: There is neither such a folder nor such a task.
    """
    if Path(name).is_dir():
        return BeirTask(load_retrieval_set(name, split))
    try:
        return mteb.get_task(name)
    except KeyError as error:
        reason = str(error.args[0]).removeprefix("KeyError: ")
        raise ValueError(f"--mteb {name}: neither a BEIR folder nor a task of mteb: {reason}") from None


def require_rerankable(task: AbsTask) -> None:
    """Raise ValueError for a task that is not a retrieval task."""
    if not isinstance(task, AbsTaskRetrieval):
        raise ValueError(f"--mteb {task.metadata.name}: it is no retrieval task, so there is nothing to rerank")


def require_names(tasks: Sequence[AbsTask]) -> None:
    """Raise ValueError for two tasks with the same name, whose results would be written to the same file."""
    names = [task.metadata.name for task in tasks]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"--mteb: two tasks are called {twice[0]}; rename a folder, or measure each by itself")


def load_task(task: AbsTask) -> None:
    """Load the data of a task. Raises ValueError if they are neither on the hub nor in its cache."""
    try:
        task.load_data()
    except OSError as error:
        raise ValueError(
            f"--mteb {task.metadata.name}: its data is on the hub and was not found there or in the cache: "
            f"{str(error).splitlines()[0]}; it needs a network once, and a BEIR folder needs none"
        ) from None
