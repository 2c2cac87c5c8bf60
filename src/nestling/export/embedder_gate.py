"""The parity gate: an exported directory, loaded as its users will, gives the embeddings of the model in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from nestling.export.embedder_expectation import MERGED_COSINE, EmbedderExpectation, probe_texts
from nestling.export.embedder_usage import POOL_BY_MASK
from nestling.export.gate import WeightChanges, compare_with_base, load_model, run_checks
from nestling.models.pooling import Pooling

BATCH = 10  # all of them


@dataclass
class EmbedderReport:
    """What the gate measured; None for what it could not measure.

    Args:
        transformers: Least cosine over the probes between merged weights in memory and a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers.
        trainer: Least cosine between the trainer's own embeddings and a reload by transformers.
        changes: Against the base.
        failures: What is wrong, empty when the directory passed.
    """

    transformers: float | None = None
    sentence_transformers: float | None = None
    trainer: float | None = None
    changes: WeightChanges = field(default_factory=WeightChanges)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison."""

        def show(cosine: float | None) -> str:
            return "not measured" if cosine is None else f"cosine >= {cosine:.7f}"

        return [
            f"transformers reload against merged weights in memory: {show(self.transformers)}",
            f"sentence-transformers reload against merged weights in memory: {show(self.sentence_transformers)}",
            f"transformers reload against the trainer's own embeddings: {show(self.trainer)}",
            str(self.changes),
        ]


def check_embedder(directory: Path, expectation: EmbedderExpectation) -> EmbedderReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = EmbedderReport()
    checks = {
        "transformers": partial(check_transformers, directory, expectation, report),
        "sentence-transformers": partial(check_sentence_transformers, directory, expectation, report),
        "base": partial(compare_with_base, directory, expectation.base, expectation.prefix, report),
    }
    run_checks(checks, report)
    return report


def check_transformers(directory: Path, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Reload through AutoModel and AutoTokenizer, pool as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = load_model(AutoModel, directory, report)
    rows = probe_rows(expectation)
    embeddings = [
        embed(model, tokenizer, rows[i : i + BATCH], expectation.pooling, expectation.probe_length)
        for i in range(0, len(rows), BATCH)
    ]
    _check_last_tokens("transformers", tokenizer, expectation, report)
    found = torch.cat(embeddings)
    report.transformers = _compare("transformers", found, expectation.merged, MERGED_COSINE, report)
    report.trainer = _compare("trainer", found, expectation.trainer, expectation.trainer_cosine, report)


@torch.no_grad()
def embed(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pooling: Pooling, max_length: int
) -> Tensor:
    """Normalised embeddings by transformers alone, [n, D] float32."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    return normalize(POOL_BY_MASK[pooling](hidden, batch["attention_mask"]).float(), dim=-1)


def check_sentence_transformers(directory: Path, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Reload through SentenceTransformer, prompts by their names."""
    from sentence_transformers import SentenceTransformer  # slow to import, and only gates need it

    model = SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    for name, prompt in (("query", expectation.query_prompt), ("document", expectation.document_prompt)):
        stored = model.prompts.get(name)
        if stored != prompt:
            report.failures.append(f"sentence-transformers: prompt {name!r} is {stored!r}, expected {prompt!r}")
    if model.max_seq_length != expectation.max_length:
        report.failures.append(
            f"sentence-transformers: max_seq_length is {model.max_seq_length}, expected {expectation.max_length}"
        )
    model.max_seq_length = expectation.probe_length
    texts = probe_texts(expectation.probe_length)
    embeddings = [
        model.encode(texts, prompt_name=name, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        for name in ("query", "document")
    ]
    _check_last_tokens("sentence-transformers", model.tokenizer, expectation, report)
    found = torch.cat(embeddings)
    report.sentence_transformers = _compare("sentence-transformers", found, expectation.merged, MERGED_COSINE, report)


def probe_rows(expectation: EmbedderExpectation) -> list[str]:
    """The probes behind their prompts: all as queries, then all as documents."""
    texts = probe_texts(expectation.probe_length)
    return [prompt + text for prompt in (expectation.query_prompt, expectation.document_prompt) for text in texts]


def _check_last_tokens(source: str, tokenizer: Any, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    if expectation.end_token is None:
        return
    rows = probe_rows(expectation)
    ids = tokenizer(rows, truncation=True, max_length=expectation.probe_length)["input_ids"]
    wrong = [row[-1] for row in ids if row[-1] != expectation.end_token]
    if wrong:
        report.failures.append(
            f"{source}: {len(wrong)} of {len(ids)} probes end in token {wrong[0]}, not in {expectation.end_token}, "
            "which last-token pooling reads"
        )


def _compare(source: str, found: Tensor, expected: Tensor, least: float, report: EmbedderReport) -> float | None:
    if found.shape != expected.shape:
        report.failures.append(f"{source}: embeddings are {list(found.shape)}, expected {list(expected.shape)}")
        return None
    cosines = cosine_similarity(found.double(), expected.double(), dim=-1)
    worst = cosines.min().item()
    if not worst >= least:  # also when it is NaN
        below = int((~(cosines >= least)).sum())
        report.failures.append(f"{source}: cosine {worst:.7f}, expected >= {least}; {below} of {len(cosines)} probes")
    return worst
