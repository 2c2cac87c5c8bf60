"""Comparison of a server of a reranker with the directory that it serves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from nestling.export.embedder_expectation import probe_texts
from nestling.export.reranker_expectation import Pair
from nestling.retrieval.metrics import Floats
from nestling.serving.advice import ADVICE
from nestling.serving.client import Server
from nestling.serving.findings import Finding, ServerReport, nan_findings, simplest_explanation
from nestling.serving.reranker_reference import SCALES, PromptVariant

# What computing in a shorter type may change of a logit, as a fraction of the largest one and of 1 at least.
ROUNDED_LOGIT = 0.1
# Half the relative rounding error of bfloat16, for servers that answer in it.
HALF_ROUNDING = 0.002
DEVIATION_NOISE = 0.001
# A deviation below this fraction of the tolerance for shorter types needs no explanation.
NEGLIGIBLE_DEVIATION = 0.01


class Reference(Protocol):
    """A directory of either kind, scored with correct prompts or with usual errors."""

    @property
    def source(self) -> str: ...

    @property
    def instruction(self) -> str: ...

    @property
    def scale(self) -> str:
        """Of correct answers, a key of `SCALES`."""
        ...

    def variants(self) -> Iterator[PromptVariant]:
        """Yield the ways of making prompts; the first one is correct."""
        ...

    def logits_of(self, variant: PromptVariant, pairs: Sequence[Pair]) -> Floats:
        """[n] float64: logits of n pairs."""
        ...


@dataclass(frozen=True)
class Explanation:
    """A possible explanation of the scores of a server.

    Args:
        variant: How the server makes prompts.
        scale: Scale of its scores, a key of `SCALES`.
        logits: [n] float64: logits of the directory for these prompts.
    """

    variant: PromptVariant
    scale: str
    logits: Floats

    def deviation(self, served: Floats) -> Floats:
        """[n]: distance of the served scores [n] from the expected ones, divided by the tolerance for shorter types."""
        answer, step = SCALES[self.scale][0], ROUNDED_LOGIT * max(1.0, float(np.abs(self.logits).max()))
        expected, width = answer(self.logits), np.abs(answer(self.logits + step) - answer(self.logits - step)) / 2
        deviation: Floats = np.abs(served - expected) / np.maximum(width, HALF_ROUNDING * np.abs(expected))
        return deviation


def check_reranker(server: Server, reference: Reference) -> ServerReport:
    """Send pairs one by one, then all documents of a query in one request.

    Raises:
        ValueError: The server does not answer, or has no endpoint that reranks.
    """
    score_endpoint = server.find_score_endpoint()
    groups = probe_groups()
    pairs = [(query, document) for query, documents in groups.items() for document in documents]
    served = np.concatenate([server.score(score_endpoint, query, [document]) for query, document in pairs])
    batched = np.concatenate([server.score(score_endpoint, query, documents) for query, documents in groups.items()])
    correct, best, findings = diagnose(reference, pairs, served)
    report = ServerReport(
        [
            f"directory: {reference.source}: instruction {reference.instruction!r}",
            f"server: {server.url(score_endpoint.path)}, asked for {score_endpoint.form}, {server.chosen_model}",
        ],
        ["query", "document", "directory", "server", "in one request"],
        findings=findings,
    )
    columns = zip(pairs, SCALES[reference.scale][0](correct.logits), served, batched, strict=True)
    report.rows = [[query[:20], repr(document[:24]), *values] for (query, document), *values in columns]
    report.findings += (
        padding_findings(best, served, batched) if np.isfinite(batched).all() else batch_nan_findings(served, batched)
    )
    return report


def probe_groups() -> dict[str, list[str]]:
    """Query -> documents of different lengths."""
    question, tiny, chinese, code, long = probe_texts(12)
    return {
        question: ["find . -mtime -7", tiny, code, long, chinese],
        "什麼是人工智慧？": [chinese, "ls"],
    }


def diagnose(
    reference: Reference, pairs: Sequence[Pair], served: Floats
) -> tuple[Explanation, Explanation, list[Finding]]:
    """The correct explanation, the one that fits the served scores [n] best, and its findings."""
    correct_variant, *others = reference.variants()
    correct = Explanation(correct_variant, reference.scale, reference.logits_of(correct_variant, pairs))
    if not np.isfinite(served).all() or correct.deviation(served).max() < NEGLIGIBLE_DEVIATION:
        return correct, correct, nan_findings(served[:, None])
    findings = [
        (correct_variant, correct.logits),
        *((variant, reference.logits_of(variant, pairs)) for variant in others),
    ]
    explanations = [Explanation(variant, scale, logits) for (variant, logits), scale in product(findings, SCALES)]
    distances = [float(explanation.deviation(served).mean()) for explanation in explanations]
    best = explanations[
        simplest_explanation([len(describe(each, reference)) for each in explanations], distances, DEVIATION_NOISE)
    ]
    if explains(best, served):
        return correct, best, describe(best, reference)
    nearest = f"prompts with {best.variant.what}" if best.variant.aspect else "the directory's own prompts"
    what = f"no usual way of making prompts gives what is served; {nearest}, answered as {best.scale}, come nearest"
    return correct, best, [Finding("model", what, ADVICE["scores"])]


def explains(explanation: Explanation, served: Floats) -> bool:
    """Whether all served scores [n] are within the tolerance for shorter types."""
    return bool((explanation.deviation(served) <= 1).all())


def describe(explanation: Explanation, reference: Reference) -> list[Finding]:
    """The errors of the server that an explanation assumes."""
    findings, variant = [], explanation.variant
    if variant.aspect:
        findings.append(Finding(variant.aspect, f"the server's prompts have {variant.what}", ADVICE[variant.advice]))
    if explanation.scale != reference.scale:
        advice = ADVICE[SCALES[explanation.scale][1]]
        findings.append(Finding("scores", f"the server answers {explanation.scale}", advice))
    return findings


def batch_nan_findings(served: Floats, batched: Floats) -> list[Finding]:
    """Whether scores are NaN in one request that are finite one by one; NaN one by one was found before."""
    return nan_findings(batched[:, None]) if np.isfinite(served).all() else []


def padding_findings(explanation: Explanation, served: Floats, batched: Floats) -> list[Finding]:
    """Whether documents have different scores in one request and one by one."""
    if not explains(explanation, served) or explains(explanation, batched):
        return []
    changed = int((explanation.deviation(batched) > 1).sum())
    worst = float(np.abs(batched - served).max())
    what = f"{changed} of {len(served)} scores change when documents are sent together, by up to {worst:.4f}"
    return [Finding("padding", what, ADVICE["padding"])]
