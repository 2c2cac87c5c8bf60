"""The tables of the study: means over seeds, and whether they differ from the baseline's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nestling.console import table
from nestling.retrieval.significance import holm, randomisation_p, sums_of_groups

BASE = "base"
# By the label of a setting the results of its seeds, as scripts/bench/study.py writes them.
Results = dict[str, list[Any]]


def print_tables(results: Results, sets: Sequence[str], dims: Sequence[int], baseline: str) -> None:
    """For each of the sets one line for each setting."""
    for measured in sets:
        found = {name: p_value(results, name, baseline, measured, dims) for name in results}
        tried = {name: p for name, p in found.items() if p is not None and name != BASE}
        corrected = dict(zip(tried, holm(list(tried.values())), strict=True))
        rows: list[list[object]] = []
        for name, runs in results.items():
            means = [mean([mean(run["scores"][measured][str(dim)]) for run in runs]) for dim in dims]
            seconds = mean([run["seconds"] for run in runs])
            rows.append([name, len(runs), *means, mean(means), found[name], corrected.get(name), seconds])
        heads = ["setting", "seeds", *map(str, dims), "mean", f"p, {baseline}", "p, Holm", "seconds"]
        print(f"\nnDCG@10 on {measured}")
        print(table(heads, rows, digits=4, markdown=True), flush=True)


def p_value(results: Results, name: str, baseline: str, measured: str, dims: Sequence[int]) -> float | None:
    """Of the randomisation test of the mean over dimensions and seeds, against the baseline.

    Over queries; over groups of queries where the set names them, since those of one group are alike.
    """
    if name == baseline or baseline not in results:
        return None
    seeds = min(len(results[name]), len(results[baseline]))

    def per_query(runs: list[Any]) -> Any:
        return np.mean([[run["scores"][measured][str(dim)] for dim in dims] for run in runs[:seeds]], axis=(0, 1))

    difference = per_query(results[name]) - per_query(results[baseline])
    groups = results[name][0]["groups"][measured]
    return float(randomisation_p(sums_of_groups(difference[:, None], groups))[0])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
