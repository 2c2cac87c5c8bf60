"""Documents with the id of a query, as where queries are documents too (ArguAna): no candidates of that query."""

from pathlib import Path

import numpy as np

from nestling.mining.lists import Lists
from nestling.mining.pool import Pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Retrieved
from nestling.mining.retrievers import Retriever, query_ids
from nestling.mining.rules import positives_in_pool
from nestling.records.beir import is_beir


def own_documents(data: Path, query_set: QuerySet, pool: Pool) -> Lists:
    """For each query of a BEIR folder the documents with its id, as positions in the pool; none of other data.

    As in evaluation, a document that is a positive of the query is not among them.
    """
    if not is_beir(data) or pool.position_of is None:
        return Lists.of([np.zeros(0, np.int64)] * len(query_set))
    ids, positives = query_ids(data, query_set), positives_in_pool(query_set, pool)
    position_of = pool.positions_of_ids(each for own in ids for each in own)
    found = [{position_of[each] for each in own if each in position_of} for own in ids]
    return Lists.of([np.array(sorted(own.difference(positives[i])), np.int64) for i, own in enumerate(found)])


def own_documents_line(own: Lists) -> str:
    """How many queries have the id of a document, as text."""
    return f"{int((own.counts > 0).sum()):,} queries have the id of a document, which is no candidate of theirs"


def search_others(retriever: Retriever, depth: int, own: Lists) -> Retrieved:
    """The first `depth` documents of every query but for those that `own` lists for it; all ranks must call it."""
    return retriever.search(depth + int(own.counts.max(initial=0))).without(own, depth)
