"""Findings about a server of embeddings: how its embeddings differ from those of the directory.

Shapes: n texts, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nestling.models.embedder import pooled_width
from nestling.retrieval.metrics import Floats
from nestling.serving.advice import ADVICE, dimension_advice, pooling_advice
from nestling.serving.client import RefusedError, Server
from nestling.serving.embedder_reference import CORRECT_END, EmbedderReference, EncodingVariant, cosine_similarities
from nestling.serving.findings import Finding, simplest_explanation

# Below this cosine two ways of encoding a text differ by more than precision.
SAME_ENCODING_COSINE = 0.95
COSINE_NOISE = 1e-6
WITHOUT_HEAD = "as they are before the modules behind the pooling (Dense, say), which the server leaves out"
NORM_TOLERANCE = 0.01
COMMON_LIMITS = (128, 256, 384, 512, 1024, 2048, 4096)


def width_findings(reference: EmbedderReference, served: Floats) -> list[Finding]:
    """Whether the embeddings have the dimensions of the directory's."""
    embedder = reference.embedder
    served_dim, expected_dim = served.shape[1], embedder.dim
    if served_dim == expected_dim:
        return []
    if len(embedder.head) and served_dim == pooled_width(embedder.config, embedder.pooling):
        what = f"embeddings have {served_dim} numbers, {WITHOUT_HEAD}; behind them they have {expected_dim}"
        return [Finding("dimension", what, ADVICE["modules"])]
    what = f"embeddings have {served_dim} numbers, the directory's have {expected_dim}"
    return [Finding("dimension", what, ADVICE["width"])]


def norm_findings(served: Floats, expected: Floats) -> list[Finding]:
    """Whether the embeddings have the norm of the directory's, which is 1 if they are normalised."""
    served_norms, expected_norms = np.linalg.norm(served, axis=1), np.linalg.norm(expected, axis=1)
    deviations = np.abs(served_norms / np.maximum(expected_norms, 1e-12) - 1)
    worst = deviations.argmax()
    if deviations[worst] <= NORM_TOLERANCE:
        return []
    what = f"an embedding has length {served_norms[worst]:.4f}, the directory's has {expected_norms[worst]:.4f}"
    return [Finding("normalisation", what, ADVICE["normalisation"])]


def encoding_findings(
    reference: EmbedderReference, texts: Sequence[str], served: Floats, min_cosine: float
) -> list[Finding]:
    """Which way of encoding the texts explains the served embeddings."""
    similarities = {
        variant: cosine_similarities(vectors[:, : served.shape[1]], served)
        for variant, vectors in reference.variants(texts)
    }
    errors = [len(describe(reference, variant)) for variant in similarities]
    distances = [float(1 - values.mean()) for values in similarities.values()]
    correct, best = reference.correct, list(similarities)[simplest_explanation(errors, distances, COSINE_NOISE)]
    best_cosine, correct_cosine = similarities[best].min(), similarities[correct].min()
    if correct_cosine < min_cosine:
        limit = find_limit(reference, texts, served, similarities[correct] >= min_cosine, min_cosine)
        if limit is not None:
            return [Finding("truncation", f"texts are truncated to {limit} tokens", ADVICE["truncation"])]
    if best_cosine < SAME_ENCODING_COSINE:
        what = f"no usual way of encoding the texts explains the embeddings; the nearest has cosine {best_cosine:.4f}"
        return [Finding("model", what, ADVICE["model"])]
    cosines = f"cosine {best_cosine:.4f} with that, {correct_cosine:.4f} with the directory's numbers"
    findings = [Finding(aspect, f"{what}: {cosines}", advice) for aspect, what, advice in describe(reference, best)]
    if best_cosine < min_cosine:
        what = f"the minimum cosine is {best_cosine:.6f}, expected {min_cosine:g}; nothing else explains it better"
        findings.append(Finding("precision", what, ADVICE["precision"]))
    return findings


def find_limit(
    reference: EmbedderReference, texts: Sequence[str], served: Floats, fitting: NDArray[np.bool_], min_cosine: float
) -> int | None:
    """The number of tokens to which the server truncates texts; None if that does not explain the embeddings.

    Args:
        reference: The directory.
        texts: n texts.
        served: [n, D] their served embeddings.
        fitting: [n] bool, whether the served embedding is that of the directory.
        min_cosine: Minimum cosine of equal embeddings.
    """
    lengths = np.array([len(reference.tokens(text)) for text in texts])
    if not fitting.any() or lengths[fitting].max() >= lengths[~fitting].min():
        return None
    shortest = int(np.where(fitting, lengths.max() + 1, lengths).argmin())
    for limit in range(int(lengths[shortest]) - 1, int(lengths[fitting].max()) - 1, -1):
        ids = reference.embedder.text_tokenizer([texts[shortest]], limit).ids
        if cosine_similarities(reference.embed(ids)[:, : served.shape[1]], served[[shortest]])[0] >= min_cosine:
            return limit
    return None


def describe(reference: EmbedderReference, variant: EncodingVariant) -> list[tuple[str, str, str]]:
    """(aspect, description, advice) for each difference between a variant and the correct one."""
    differences, correct = [], reference.correct
    if variant.end != CORRECT_END:
        aspect = "special tokens" if reference.embedder.text_tokenizer.end_id is None else "EOS"
        differences.append((aspect, f"texts are read {variant.end}", ADVICE["EOS"]))
    if variant.prompt:
        what = f"the server puts {variant.prompt!r} before every text, whether it has a prompt or not"
        differences.append(("prompt", what, ADVICE["prompt"]))
    if variant.pooling != correct.pooling:
        what = f"the server pools by {variant.pooling}, the directory by {correct.pooling}"
        differences.append(("pooling", what, pooling_advice(correct.pooling)))
    if variant.stripped:
        what = "the server strips white space at the ends of texts"
        differences.append(("white space", what, ADVICE["white space"]))
    if not variant.head:
        differences.append(("modules", f"embeddings are {WITHOUT_HEAD}", ADVICE["modules"]))
    return differences


def truncations(reference: EmbedderReference, text: str) -> dict[str, list[int]]:
    """Usual ways to truncate a long text wrongly -> the token ids that remain."""
    limit, tokenizer = reference.max_length, reference.embedder.text_tokenizer
    whole = tokenizer([text], 2 * len(text)).ids[0]
    ways = {
        "without its end, whose special tokens are cut off": whole[:limit],
        "without its beginning": whole[-limit:],
    }
    if len(whole) <= reference.embedder.max_positions:
        ways[f"whole, all its {len(whole):,} tokens"] = whole
    others = [other for other in COMMON_LIMITS if other != limit and other < len(whole)]
    return ways | {f"as far as {other:,} tokens": tokenizer([text], other).ids[0] for other in others}


def dimension_findings(
    server: Server, reference: EmbedderReference, texts: Sequence[str], served: Floats, dim: int, min_cosine: float
) -> list[Finding]:
    """Whether requesting `dim` dimensions gives the first `dim`, normalised again if the directory normalises."""
    try:
        truncated = server.embed(texts[:1], dimensions=dim)
    except RefusedError as refused:
        what = f"dimensions: {dim} is refused: {refused.reason}"
        return [Finding("dimension", what, dimension_advice(dim, reference.trained_dims))]
    if truncated.shape[1] != dim:
        what = f"dimensions: {dim} gives {truncated.shape[1]} numbers"
        return [Finding("dimension", what, ADVICE["ignored"])]
    if dim > served.shape[1]:  # the server truncates by default, which has been found already
        return []
    cosine = cosine_similarities(truncated, served[:1, :dim])[0]
    if cosine < min_cosine:
        what = f"dimensions: {dim} gives other numbers than the first {dim}: cosine {cosine:.4f}"
        return [Finding("dimension", what, ADVICE["ignored"])]
    norm = np.linalg.norm(truncated[0])
    if reference.embedder.normalize and abs(norm - 1) > NORM_TOLERANCE:
        what = f"dimensions: {dim} truncates and does not normalise again: length {norm:.4f}"
        return [Finding("dimension", what, ADVICE["uncut"])]
    return []
