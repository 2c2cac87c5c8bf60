"""Compare a server of a reranker with the directory that it serves, and name what it does otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from nestling.export.embedder_expectation import probe_texts
from nestling.export.reranker_expectation import ROUNDED_LOGIT, Pair
from nestling.retrieval.metrics import Floats
from nestling.serving.client import Server
from nestling.serving.findings import Check, Finding, find_nan, simplest
from nestling.serving.fixes import FIXES
from nestling.serving.prompts import SCALES, Judge, Reading

# Half of what bfloat16 leaves out of a number, for servers that answer in it.
HALF_ROUNDING = 0.002
MISFIT_NOISE = 0.001
# What differs by less than this share of what a shorter type may change needs no explanation.
SAME_MISFIT = 0.01


@dataclass(frozen=True)
class Hypothesis:
    """What a server may do: make prompts in one way, and answer on one scale.

    Args:
        reading: How it makes prompts.
        scale: What it answers, a name of `SCALES`.
        logits: [n] float64 that the directory gives for prompts made so.
    """

    reading: Reading
    scale: str
    logits: Floats

    def misfit(self, served: Floats) -> Floats:
        """[n]: how far `served` is from it, in units of what a shorter type may change."""
        answer, step = SCALES[self.scale][0], ROUNDED_LOGIT * max(1.0, float(np.abs(self.logits).max()))
        expected, width = answer(self.logits), np.abs(answer(self.logits + step) - answer(self.logits - step)) / 2
        misfit: Floats = np.abs(served - expected) / np.maximum(width, HALF_ROUNDING * np.abs(expected))
        return misfit


def check_reranker(server: Server, judge: Judge) -> Check:
    """Send pairs one by one, then all documents of a query at once.

    Raises:
        ValueError: The server does not answer, or reranks nowhere.
    """
    scorer = server.find_scorer()
    groups = probe_groups()
    pairs = [(query, document) for query, documents in groups.items() for document in documents]
    served = np.concatenate([server.score(scorer, query, [document]) for query, document in pairs])
    together = np.concatenate([server.score(scorer, query, documents) for query, documents in groups.items()])
    right, best, found = diagnose(judge, pairs, served)
    check = Check(
        [
            f"directory: {judge.source}: instruction {judge.settings.instruction!r}",
            f"server: {server.url(scorer.path)}, asked for {scorer.form}, model {server.model or 'not named'}",
        ],
        ["query", "document", "directory", "server", "in one request"],
        findings=found,
    )
    columns = zip(pairs, SCALES["probabilities"][0](right.logits), served, together, strict=True)
    check.rows = [[query[:20], repr(document[:24]), *values] for (query, document), *values in columns]
    check.findings += (
        find_padding(best, served, together) if np.isfinite(together).all() else find_lost(served, together)
    )
    return check


def probe_groups() -> dict[str, list[str]]:
    """Queries with documents of different lengths."""
    question, tiny, chinese, code, long = probe_texts(12)
    return {
        question: ["find . -mtime -7", tiny, code, long, chinese],
        "什麼是人工智慧？": [chinese, "ls"],
    }


def diagnose(judge: Judge, pairs: Sequence[Pair], served: Floats) -> tuple[Hypothesis, Hypothesis, list[Finding]]:
    """What the directory gives, what the server seems to do, and what of that is wrong."""
    first, *others = judge.readings()
    right = Hypothesis(first, next(iter(SCALES)), judge.read(first, pairs))
    if not np.isfinite(served).all() or right.misfit(served).max() < SAME_MISFIT:
        return right, right, find_nan(served[:, None])
    found = [(first, right.logits), *((reading, judge.read(reading, pairs)) for reading in others)]
    ways = [Hypothesis(reading, scale, logits) for (reading, logits), scale in product(found, SCALES)]
    distances = [float(way.misfit(served).mean()) for way in ways]
    best = ways[simplest([len(describe(way)) for way in ways], distances, MISFIT_NOISE)]
    if fits(best, served):
        return right, best, describe(best)
    nearest = f"prompts with {best.reading.what}" if best.reading.aspect else "the directory's own prompts"
    what = f"no usual way of making prompts gives what is served; {nearest}, answered as {best.scale}, come nearest"
    return right, best, [Finding("model", what, FIXES["scores"])]


def fits(way: Hypothesis, served: Floats) -> bool:
    return bool((way.misfit(served) <= 1).all())


def describe(way: Hypothesis) -> list[Finding]:
    """What is wrong with what a server does."""
    findings, reading = [], way.reading
    if reading.aspect:
        findings.append(Finding(reading.aspect, f"the server's prompts have {reading.what}", FIXES[reading.fix]))
    fix = SCALES[way.scale][1]
    if fix:
        findings.append(Finding("scores", f"the server answers {way.scale}", FIXES[fix]))
    return findings


def find_lost(served: Floats, together: Floats) -> list[Finding]:
    """Whether scores are lost in one request that are there one by one; what is lost one by one was found already."""
    return find_nan(together[:, None]) if np.isfinite(served).all() else []


def find_padding(way: Hypothesis, served: Floats, together: Floats) -> list[Finding]:
    """Whether documents have other scores in one request than one by one."""
    if not fits(way, served) or fits(way, together):
        return []
    wrong = int((way.misfit(together) > 1).sum())
    worst = float(np.abs(together - served).max())
    what = f"{wrong} of {len(served)} scores change when documents are sent together, by up to {worst:.4f}"
    return [Finding("padding", what, FIXES["padding"])]
