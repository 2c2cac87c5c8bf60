"""An evaluation set for retrieval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.records.summary import LoadSummary


@dataclass(frozen=True)
class RetrievalSet:
    """A corpus, the judged queries of one split, and their relevant documents.

    Args:
        name: Folder and split, as FOLDER/SPLIT.
        split: Split of the relevance judgements.
        document_ids: Ids of the N documents.
        documents: Texts of the N documents, title + ' ' + text, stripped; loaded from disk on access.
        query_ids: Ids of the Q queries that have a judgement in the split, in the order of queries.jsonl.
        queries: Texts of the Q queries.
        relevant: Q arrays of int64: positions in `documents` of the documents with a grade above 0.
        gains: Q arrays of float64: the grades of these documents.
        own_documents: [Q] int64: position of the document that has the id of the query and so, as in BEIR, is no result
            of it; -1 for none, and where the judgements hold it relevant.
        summary: Counts of what was read and dropped.
        groups: Of each of the Q queries the group of queries that are like it; None where no query has one.
    """

    name: str
    split: str
    document_ids: Sequence[str]
    documents: Sequence[str]
    query_ids: Sequence[str]
    queries: Sequence[str]
    relevant: list[np.ndarray]
    gains: list[np.ndarray]
    own_documents: np.ndarray
    summary: LoadSummary
    groups: Sequence[str] | None = None
