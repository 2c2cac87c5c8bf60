"""Comparison of a server of embeddings with the directory that it serves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.export.embedder_expectation import probe_texts
from nestling.export.embedder_gate import EXACT_COSINE
from nestling.retrieval.metrics import Floats
from nestling.serving.advice import ADVICE
from nestling.serving.client import RefusedError, Server
from nestling.serving.embedder_findings import (
    dimension_findings,
    encoding_findings,
    norm_findings,
    truncations,
    width_findings,
)
from nestling.serving.embedder_reference import EmbedderReference, cosine_similarities, normalise
from nestling.serving.findings import Finding, ServerReport, nan_findings
from nestling.serving.padding import padded_variants

# Longer texts would take minutes on a CPU.
LONGEST_LIMIT = 2048
# Findings with these aspects say nothing about how a single text is encoded.
INDEPENDENT_ASPECTS = ("normalisation", "padding", "dimension", "white space", "NaN")
SENTENCE = "The boundary layer over a flat plate becomes turbulent. "


@dataclass(frozen=True)
class Probe:
    """A text as it is sent, including its prompt."""

    name: str
    text: str


def check_embeddings(
    server: Server, reference: EmbedderReference, *, dims: Sequence[int], min_cosine: float
) -> ServerReport:
    """Send probes one by one, in one batch, longer than the limit, in base64, and with each of `dims`.

    Args:
        server: The server.
        reference: The directory that it serves.
        dims: Dimensions to request.
        min_cosine: Minimum cosine similarity with the embeddings of the directory.

    Raises:
        ValueError: The server does not answer, or refuses an ordinary text.
    """
    report = new_report(server, reference)
    probes, served = embed_one_by_one(server, make_probes(reference), report)
    texts = [probe.text for probe in probes]
    expected = reference.expected_embeddings(texts)
    report.findings += [*nan_findings(served), *width_findings(reference, served)]
    if not np.isfinite(served).all() or served.shape[1] > expected.shape[1]:
        return report
    expected = at_width_of(served, expected, normalized=reference.embedder.normalize)
    for probe, embedding, served_embedding in zip(probes, expected, served, strict=True):
        cells = comparison_cells(served_embedding[None], embedding[None])
        report.rows.append([probe.name, len(reference.tokens(probe.text)), *cells])
    if cosine_similarities(served, expected).min() < max(min_cosine, EXACT_COSINE):
        report.findings += encoding_findings(reference, texts, served, min_cosine)
    report.findings += norm_findings(served, expected)
    compare_batch(server, reference, texts, served, min_cosine, report)
    compare_long_text(server, reference, min_cosine, report)
    compare_base64(server, texts, served, report)
    for dim in dims:
        report.findings += dimension_findings(server, reference, texts, served, dim, min_cosine)
    return report


def new_report(server: Server, reference: EmbedderReference) -> ServerReport:
    """A report with the properties of both sides and an empty table."""
    embedder = reference.embedder
    subject = [
        f"directory: {embedder.source}: {embedder.dim} dimensions, {embedder.pooling} pooling, at most "
        f"{reference.max_length:,} tokens",
        f"server: {server.url(server.endpoint or '/v1/embeddings')}, {server.chosen_model}",
    ]
    return ServerReport(subject, ["probe", "tokens", "cosine", "largest difference", "length"])


def make_probes(reference: EmbedderReference) -> list[Probe]:
    """A query and documents of different lengths and kinds, each with its prompt."""
    question, tiny, chinese, code, _ = probe_texts(0)
    prompts = reference.embedder.prompts
    half = reference.max_length // 2
    repeats = (n for n in (16, 8, 4, 2) if len(reference.tokens_without_special(SENTENCE * n)) <= half)
    documents = {
        "document": "find . -mtime -7",
        "tiny": tiny,
        "Chinese": chinese,
        "code": code,
        "white space at the ends": " turbulence \n",
        "blank": " ",
        "medium": next(repeats, 1) * SENTENCE,
    }
    return [
        Probe("query", prompts.default_query + question),
        *(Probe(name, prompts.document + text) for name, text in documents.items()),
    ]


def embed_one_by_one(server: Server, probes: Sequence[Probe], report: ServerReport) -> tuple[list[Probe], Floats]:
    """The accepted probes and their embeddings [n, D] float64; only the blank probe may be refused."""
    accepted, rows = [], []
    for probe in probes:
        try:
            rows.append(server.embed([probe.text])[0])
            accepted.append(probe)
        except RefusedError as refused:
            if probe.name != "blank":
                raise
            report.notes.append(f"a blank text is refused: {refused.reason}")
    return accepted, np.stack(rows)


def at_width_of(served: Floats, expected: Floats, *, normalized: bool) -> Floats:
    """The expected embeddings truncated to the dimensions of the served ones, normalised again if they were."""
    if served.shape == expected.shape:
        return expected
    truncated = expected[:, : served.shape[1]]
    return normalise(truncated) if normalized else truncated


def comparison_cells(served: Floats, expected: Floats) -> list[float]:
    """Minimum cosine, maximum absolute difference and minimum norm of `served`; both are [n, D]."""
    norm = np.linalg.norm(served, axis=1).min()
    return [float(cosine_similarities(served, expected).min()), float(np.abs(served - expected).max()), float(norm)]


def compare_batch(
    server: Server,
    reference: EmbedderReference,
    texts: Sequence[str],
    served: Floats,
    min_cosine: float,
    report: ServerReport,
) -> None:
    """Compare the embeddings of all texts in one request, which the server may pad, with those of single requests."""
    try:
        batched = server.embed(texts)
    except RefusedError as refused:
        report.notes.append(f"{len(texts)} texts in one request are refused: {refused.reason}")
        return
    if batched.shape != served.shape:
        what = f"sent together, embeddings have {batched.shape[1]} numbers, one by one {served.shape[1]}"
        report.findings.append(Finding("dimension", what, ADVICE["width"]))
        return
    report.rows.append(["all in one request, against one by one", None, *comparison_cells(batched, served)])
    if not np.isfinite(batched).all():
        report.findings += nan_findings(batched)
        return
    imprecise = any(finding.aspect == "precision" for finding in report.findings)
    if cosine_similarities(batched, served).min() < min_cosine and not imprecise:
        report.findings.append(padding_finding(reference, texts, served, batched, min_cosine))


def padding_finding(
    reference: EmbedderReference, texts: Sequence[str], served: Floats, batched: Floats, min_cosine: float
) -> Finding:
    """The finding that explains the change by one of the usual errors of padding."""
    variants = padded_variants(reference, texts)
    similarities = {name: cosine_similarities(vectors, batched).min() for name, vectors in variants.items()}
    name = max(similarities, key=lambda variant: similarities[variant])
    cause = f"the server {name}" if similarities[name] >= min_cosine else "how the server pads is not known"
    values = cosine_similarities(batched, served)
    changed = int((values < min_cosine).sum())
    change = f"{changed} of {len(texts)} texts change when they are sent together, down to cosine {values.min():.4f}"
    return Finding("padding", f"{change}: {cause}", ADVICE["padding"])


def compare_long_text(server: Server, reference: EmbedderReference, min_cosine: float, report: ServerReport) -> None:
    """Send a text beyond the limit, which is to be truncated with its end token kept, or refused."""
    limit = reference.max_length
    if limit > LONGEST_LIMIT:
        report.notes.append(f"texts beyond {limit:,} tokens were not sent: they take too long here")
        return
    repeats = 3 * limit // (2 * len(reference.tokens_without_special(SENTENCE))) + 1
    text = reference.embedder.prompts.document + SENTENCE * repeats
    try:
        served = server.embed([text])
    except RefusedError as refused:
        report.notes.append(f"texts beyond the limit are refused, so truncate them in the client: {refused.reason}")
        return
    expected = reference.expected_embeddings([text])[:, : served.shape[1]]
    report.rows.append(["longer than the limit", limit, *comparison_cells(served, expected)])
    cosine = cosine_similarities(served, expected)[0]
    if cosine < min_cosine and all(finding.aspect in INDEPENDENT_ASPECTS for finding in report.findings):
        report.findings.append(truncation_finding(reference, text, served, cosine, min_cosine))


def truncation_finding(
    reference: EmbedderReference, text: str, served: Floats, cosine: float, min_cosine: float
) -> Finding:
    """The finding that explains the embedding of a long text by one of the usual ways to truncate."""
    similarities = {
        name: cosine_similarities(reference.embed([ids])[:, : served.shape[1]], served)[0]
        for name, ids in truncations(reference, text).items()
    }
    name = max(similarities, key=lambda truncation: similarities[truncation])
    explained = similarities[name] >= min_cosine
    cause = f"is read {name}" if explained else "is truncated in a way that is not known"
    what = f"a text longer than {reference.max_length:,} tokens {cause}; cosine {cosine:.4f} with the directory's"
    return Finding("truncation", what, ADVICE["truncation"], beyond_limit=True)


def compare_base64(server: Server, texts: Sequence[str], served: Floats, report: ServerReport) -> None:
    """Compare the base64 encoding, which OpenAI's own client asks for, with the list of numbers."""
    try:
        decoded = server.embed(texts[:1], encoding="base64")
    except RefusedError as refused:
        report.notes.append(f"base64 is refused; OpenAI's client asks for it unless told float: {refused.reason}")
        return
    if decoded.shape != served[:1].shape or not np.allclose(decoded, served[:1], atol=1e-3):
        what = "base64 gives other numbers than float; expected little-endian float32"
        report.findings.append(Finding("encoding", what, ADVICE["encoding"]))
