"""Training records and retrieval sets: readers for every dialect, cached in memory-mapped Arrow files."""

from nestling.records.beir import load_retrieval_set
from nestling.records.load import default_name, load_records
from nestling.records.record import Record, text_id, without_none
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.summary import LoadSummary
from nestling.records.table import RecordTable

__all__ = [
    "LoadSummary",
    "Record",
    "RecordTable",
    "RetrievalSet",
    "default_name",
    "load_records",
    "load_retrieval_set",
    "text_id",
    "without_none",
]
