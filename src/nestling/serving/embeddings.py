"""Compare a server of embeddings with the directory that it serves, and name what it does otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.export.embedder_expectation import MERGED_COSINE, probe_texts
from nestling.retrieval.metrics import Floats
from nestling.serving.client import RefusedError, Server
from nestling.serving.findings import Check, Finding, find_nan, simplest
from nestling.serving.fixes import FIXES
from nestling.serving.padding import padded_variants
from nestling.serving.variants import AS_IT_IS, Reference, Variant, cosines, normalised

# Below it two readings of the texts are not the same one, whatever the precision.
NEAR = 0.95
COSINE_NOISE = 1e-6
NORM_TOLERANCE = 0.01
# Longer texts would cost minutes on a CPU.
LONGEST_LIMIT = 2048
# What is wrong with these says nothing about how one text is read.
HARMLESS = ("normalisation", "padding", "dimension", "NaN")
COMMON_LIMITS = (128, 256, 384, 512, 1024, 2048, 4096)
SENTENCE = "The boundary layer over a flat plate becomes turbulent. "


@dataclass(frozen=True)
class Probe:
    """A text as it is sent, its prompt included."""

    name: str
    text: str


def check_embeddings(server: Server, reference: Reference, *, dims: Sequence[int], least_cosine: float) -> Check:
    """Send probes one by one, in one batch, beyond the limit, in base64 and cut to `dims`.

    Args:
        server: What answers.
        reference: The directory.
        dims: Dimensions to ask for.
        least_cosine: With the directory's numbers, of a server that fits.

    Raises:
        ValueError: The server does not answer, or refuses an ordinary text.
    """
    embedder = reference.embedder
    check = Check(
        [
            f"directory: {embedder.source}: {embedder.dim} dimensions, {embedder.pooling} pooling, at most "
            f"{reference.max_length:,} tokens",
            f"server: {server.url(server.endpoint or '/v1/embeddings')}, model {server.model or 'not named'}",
        ],
        ["probe", "tokens", "cosine", "largest difference", "length"],
    )
    probes, served = ask_one_by_one(server, make_probes(reference), check)
    texts = [probe.text for probe in probes]
    expected = reference.expected_embeddings(texts)
    check.findings += [*find_nan(served), *find_width(served, expected)]
    if not np.isfinite(served).all() or served.shape[1] > expected.shape[1]:
        return check
    cut = expected[:, : served.shape[1]]
    own = cut if served.shape == expected.shape or not embedder.normalize else normalised(cut)
    for probe, mine, theirs in zip(probes, own, served, strict=True):
        check.rows.append([probe.name, len(reference.tokens(probe.text)), *compare(theirs[None], mine[None])])
    if cosines(served, own).min() < max(least_cosine, MERGED_COSINE):
        check.findings += find_reading(reference, texts, served, least_cosine)
    check.findings += find_norms(served, own)
    check_batch(server, reference, texts, served, least_cosine, check)
    check_limit(server, reference, least_cosine, check)
    check_base64(server, texts, served, check)
    for dim in dims:
        check.findings += find_dimension(server, texts, served, dim, least_cosine, normalize=embedder.normalize)
    return check


def make_probes(reference: Reference) -> list[Probe]:
    """A query and documents, short to medium long, each behind its prompt."""
    question, tiny, chinese, code, _ = probe_texts(0)
    prompts = reference.embedder.prompts
    half = reference.max_length // 2
    medium = next((n for n in (16, 8, 4, 2) if len(reference.bare_tokens(SENTENCE * n)) <= half), 1) * SENTENCE
    documents = {
        "document": "find . -mtime -7",
        "tiny": tiny,
        "Chinese": chinese,
        "code": code,
        "white space at the ends": " turbulence \n",
        "blank": " ",
        "medium": medium,
    }
    return [
        Probe("query", prompts.default_query + question),
        *(Probe(name, prompts.document + text) for name, text in documents.items()),
    ]


def ask_one_by_one(server: Server, probes: Sequence[Probe], check: Check) -> tuple[list[Probe], Floats]:
    """The probes that the server takes, and [n, D] float64 of them; only a blank one may be refused."""
    taken, rows = [], []
    for probe in probes:
        try:
            rows.append(server.embed([probe.text])[0])
            taken.append(probe)
        except RefusedError as refused:
            if probe.name != "blank":
                raise
            check.notes.append(f"a blank text is refused: {refused.reason}")
    return taken, np.stack(rows)


def compare(theirs: Floats, mine: Floats) -> list[float]:
    """Least cosine, largest difference of a number, and least length of `theirs`, of [n, D] and [n, D]."""
    length = np.linalg.norm(theirs, axis=1).min()
    return [float(cosines(theirs, mine).min()), float(np.abs(theirs - mine).max()), float(length)]


def find_width(served: Floats, expected: Floats) -> list[Finding]:
    """Whether embeddings have as many numbers as the directory's."""
    theirs, mine = served.shape[1], expected.shape[1]
    if theirs == mine:
        return []
    what = f"embeddings have {theirs} numbers, the directory's have {mine}"
    return [Finding("dimension", what, FIXES["width"])]


def find_reading(reference: Reference, texts: Sequence[str], served: Floats, least: float) -> list[Finding]:
    """Which way of reading the texts gives what is served."""
    found = {variant: cosines(vectors[:, : served.shape[1]], served) for variant, vectors in reference.variants(texts)}
    faults = [len(describe(reference, variant)) for variant in found]
    distances = [float(1 - values.mean()) for values in found.values()]
    right, best = reference.right, list(found)[simplest(faults, distances, COSINE_NOISE)]
    nearest, own = found[best].min(), found[right].min()
    cut = None if own >= least else find_limit(reference, texts, served, found[right] >= least, least)
    if cut is not None:
        return [Finding("truncation", f"texts are cut to {cut} tokens", FIXES["truncation"])]
    if nearest < NEAR:
        what = f"no usual way of reading the texts gives what is served; the nearest has cosine {nearest:.4f}"
        return [Finding("model", what, FIXES["model"])]
    findings = [
        Finding(aspect, f"{what}: cosine {nearest:.4f} with that, {own:.4f} with the directory's numbers", fix)
        for aspect, what, fix in describe(reference, best)
    ]
    if nearest < least:
        what = f"the least cosine is {nearest:.6f}, expected {least:g}; nothing else explains it better"
        findings.append(Finding("precision", what, FIXES["precision"]))
    return findings


def find_limit(
    reference: Reference, texts: Sequence[str], served: Floats, fitting: NDArray[np.bool_], least: float
) -> int | None:
    """Tokens to which texts are cut, if what fits are the texts up to that many; None if that is not what happens.

    Args:
        fitting: [n] bool, the texts whose served embedding is the directory's.
    """
    lengths = np.array([len(reference.tokens(text)) for text in texts])
    if not fitting.any() or lengths[fitting].max() >= lengths[~fitting].min():
        return None
    shortest = int(np.where(fitting, lengths.max() + 1, lengths).argmin())
    for limit in range(int(lengths[shortest]) - 1, int(lengths[fitting].max()) - 1, -1):
        ids = reference.embedder.text_tokenizer([texts[shortest]], limit).ids
        if cosines(reference.embed(ids)[:, : served.shape[1]], served[[shortest]])[0] >= least:
            return limit
    return None


def describe(reference: Reference, variant: Variant) -> list[tuple[str, str, str]]:
    """Aspect, what it is and what to do about it, for each way in which a variant is not the right one."""
    found, right = [], reference.right
    if variant.end != AS_IT_IS:
        aspect = "special tokens" if reference.embedder.text_tokenizer.end_id is None else "EOS"
        found.append((aspect, f"texts are read {variant.end}", FIXES["EOS"]))
    if variant.prompt:
        what = f"the server puts {variant.prompt!r} before every text, whether it has a prompt or not"
        found.append(("prompt", what, FIXES["prompt"]))
    if variant.pooling != right.pooling:
        what = f"the server pools by {variant.pooling}, the directory by {right.pooling}"
        found.append(("pooling", what, FIXES["pooling"]))
    return found


def find_norms(served: Floats, own: Floats) -> list[Finding]:
    """Whether embeddings are as long as the directory's, which are normalised if it says so."""
    theirs, mine = np.linalg.norm(served, axis=1), np.linalg.norm(own, axis=1)
    worst = np.abs(theirs / np.maximum(mine, 1e-12) - 1).argmax()
    if abs(theirs[worst] / max(mine[worst], 1e-12) - 1) <= NORM_TOLERANCE:
        return []
    what = f"an embedding has length {theirs[worst]:.4f}, the directory's has {mine[worst]:.4f}"
    return [Finding("normalisation", what, FIXES["normalisation"])]


def check_batch(
    server: Server, reference: Reference, texts: Sequence[str], served: Floats, least: float, check: Check
) -> None:
    """The same texts in one request, where a server may pad them."""
    try:
        together = server.embed(texts)
    except RefusedError as refused:
        check.notes.append(f"{len(texts)} texts in one request are refused: {refused.reason}")
        return
    if together.shape != served.shape:
        what = f"sent together, embeddings have {together.shape[1]} numbers, one by one {served.shape[1]}"
        check.findings.append(Finding("dimension", what, FIXES["width"]))
        return
    check.rows.append(["all in one request, against one by one", None, *compare(together, served)])
    values = cosines(together, served)
    if not np.isfinite(together).all():
        check.findings += find_nan(together)
        return
    if values.min() >= least or any(finding.aspect == "precision" for finding in check.findings):
        return
    ways = {name: cosines(vectors, together).min() for name, vectors in padded_variants(reference, texts).items()}
    name = max(ways, key=lambda each: ways[each])
    cause = f"the server {name}" if ways[name] >= least else "how the server pads is not known"
    wrong = int((values < least).sum())
    change = f"{wrong} of {len(texts)} texts change when they are sent together, down to cosine {values.min():.4f}"
    what = f"{change}: {cause}"
    check.findings.append(Finding("padding", what, FIXES["padding"]))


def check_limit(server: Server, reference: Reference, least: float, check: Check) -> None:
    """A text beyond the limit: cut there with its end token kept, refused, or cut otherwise."""
    limit = reference.max_length
    if limit > LONGEST_LIMIT:
        check.notes.append(f"texts beyond {limit:,} tokens were not sent: they take too long here")
        return
    repeats = 3 * limit // (2 * len(reference.bare_tokens(SENTENCE))) + 1
    text = reference.embedder.prompts.document + SENTENCE * repeats
    try:
        served = server.embed([text])
    except RefusedError as refused:
        check.notes.append(f"texts beyond the limit are refused, so cut them before: {refused.reason}")
        return
    own = reference.expected_embeddings([text])[:, : served.shape[1]]
    check.rows.append(["longer than the limit", limit, *compare(served, own)])
    if cosines(served, own)[0] >= least or any(each.aspect not in HARMLESS for each in check.findings):
        return
    ways = cuts(reference, text)
    found = {name: cosines(reference.embed([ids])[:, : served.shape[1]], served)[0] for name, ids in ways.items()}
    name = max(found, key=lambda each: found[each])
    told = f"is read {name}" if found[name] >= least else "is cut in a way that is not known"
    what = f"a text longer than {limit:,} tokens {told}; cosine {cosines(served, own)[0]:.4f} with the directory's"
    check.findings.append(Finding("truncation", what, FIXES["truncation"]))


def cuts(reference: Reference, text: str) -> dict[str, list[int]]:
    """Ways to cut a long text, and the token ids that each keeps."""
    limit, tokenizer = reference.max_length, reference.embedder.text_tokenizer
    whole = tokenizer([text], 2 * len(text)).ids[0]
    ways = {
        "without its end, whose special tokens are cut off": whole[:limit],
        "without its beginning": whole[-limit:],
    }
    if len(whole) <= reference.embedder.max_positions:
        ways[f"whole, all its {len(whole):,} tokens"] = whole
    others = [each for each in COMMON_LIMITS if each != limit and each < len(whole)]
    return ways | {f"as far as {each:,} tokens": tokenizer([text], each).ids[0] for each in others}


def check_base64(server: Server, texts: Sequence[str], served: Floats, check: Check) -> None:
    """The encoding that OpenAI's own client asks for."""
    try:
        found = server.embed(texts[:1], encoding="base64")
    except RefusedError as refused:
        check.notes.append(f"base64 is refused; OpenAI's client asks for it unless told float: {refused.reason}")
        return
    if found.shape != served[:1].shape or not np.allclose(found, served[:1], atol=1e-3):
        what = "base64 gives other numbers than float; expected little-endian float32"
        check.findings.append(Finding("encoding", what, FIXES["encoding"]))


def find_dimension(
    server: Server, texts: Sequence[str], served: Floats, dim: int, least: float, *, normalize: bool
) -> list[Finding]:
    """Whether asking for `dim` numbers gives the first of them, normalised again if the directory normalises."""
    try:
        found = server.embed(texts[:1], dimensions=dim)
    except RefusedError as refused:
        what = f"dimensions: {dim} is refused: {refused.reason}"
        return [Finding("dimension", what, FIXES["refused"])]
    if found.shape[1] != dim:
        what = f"dimensions: {dim} gives {found.shape[1]} numbers"
        return [Finding("dimension", what, FIXES["ignored"])]
    if dim > served.shape[1]:  # by a default of the server, which was found already
        return []
    worst = cosines(found, served[:1, :dim])[0]
    if worst < least:
        what = f"dimensions: {dim} gives other numbers than the first {dim}: cosine {worst:.4f}"
        return [Finding("dimension", what, FIXES["ignored"])]
    length = np.linalg.norm(found[0])
    if normalize and abs(length - 1) > NORM_TOLERANCE:
        what = f"dimensions: {dim} cuts and does not normalise again: length {length:.4f}"
        return [Finding("dimension", what, FIXES["uncut"])]
    return []
