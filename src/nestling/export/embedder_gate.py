"""The parity gate: an exported directory, loaded as its users will, gives the embeddings of the model in memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestling.export.embedder_expectation import EmbedderExpectation, probe_texts
from nestling.export.embedder_usage import POOL_BY_MASK
from nestling.export.gate import (
    Dtype,
    WeightChanges,
    compare_with_base,
    in_stored_type,
    largest_change,
    load_model,
    rounding_warning,
    run_checks,
)
from nestling.export.probe_outputs import ProbeOutputs
from nestling.models.auto_classes import text_model_class
from nestling.models.modules import has_weights, load_head
from nestling.models.pooling import modes_of, pool_padded
from nestling.models.remote_code import is_trusted
from nestling.models.replaced_weights import weights_replaced
from nestling.models.rounded_weights import Rounding
from nestling.models.token_model import read_config

BATCH = 10  # all probes

# Least cosine where two computations in float32 are to give the same.
EXACT_COSINE = 0.99999
# Rounding is warned about below this cosine, or when it changes more than this fraction of what training changed.
ROUNDED_COSINE = 0.999
OF_TRAINING = 0.05


@dataclass
class EmbedderReport:
    """What the gate measured: least cosines over the probes, None for what was not measured.

    Args:
        dtype: Of the written weights.
        merged: Between the model as it was trained and its merged weights, both in float32.
        transformers: Between the written weights in memory and a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers.
        rounding: Between merged weights before and after they were rounded.
        method: How they were rounded.
        other_rounding: As `rounding`, for the way of rounding that was not taken.
        of_training: Mean 1 - cos of rounding, as a fraction of the mean 1 - cos of training.
        bfloat16: Between the trained model computing in bfloat16 and in float32.
        base_bfloat16: The same of the base.
        changes: Against the base.
        failures: What is wrong, empty when the directory passed.
        warnings: What the user should know.
    """

    dtype: str = "float32"
    merged: float | None = None
    transformers: float | None = None
    sentence_transformers: float | None = None
    rounding: float | None = None
    method: Rounding = "nearest"
    other_rounding: float | None = None
    of_training: float | None = None
    bfloat16: float | None = None
    base_bfloat16: float | None = None
    changes: WeightChanges = field(default_factory=WeightChanges)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison."""

        def show(cosine: float | None) -> str:
            return "not measured" if cosine is None else f"cosine >= {cosine:.7f}"

        of_training = (
            "" if self.of_training is None else f"{self.of_training:.2%} of what training changed (mean 1 - cosine); "
        )
        other = f", {of_training}the other way: {show(self.other_rounding)}"
        base = "" if self.base_bfloat16 is None else f"; the base: {show(self.base_bfloat16)}"
        return [
            f"merged weights against the model as it was trained: {show(self.merged)}",
            f"transformers reload against the written weights in memory: {show(self.transformers)}",
            f"sentence-transformers reload against the written weights in memory: {show(self.sentence_transformers)}",
            *(
                []
                if self.rounding is None
                else [f"{self.method} rounding to {self.dtype}: {show(self.rounding)}{other}"]
            ),
            *([] if self.bfloat16 is None else [f"computing in bfloat16: {show(self.bfloat16)}{base}"]),
            *([str(self.changes)] if self.changes.tensors else []),
            *(f"warning: {line}" for line in self.warnings),
        ]


def check_embedder(directory: Path, expectation: EmbedderExpectation) -> EmbedderReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = EmbedderReport(str(expectation.outputs.weights.dtype).removeprefix("torch."))
    checks = {
        "merged weights": partial(check_merged, expectation, report),
        "transformers": partial(check_transformers, directory, expectation, report),
        "sentence-transformers": partial(check_sentence_transformers, directory, expectation, report),
        **({"base": partial(check_base, directory, expectation, report)} if expectation.base else {}),
    }
    run_checks(checks, report)
    return report


def check_base(directory: Path, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Count what differs from the base, in the modules behind the pooling as well; something must."""
    for name, tensor in load_head(str(directory), expectation.head).state_dict().items():
        report.changes.count(largest_change(tensor, expectation.base_head[name]))
    assert expectation.base is not None
    compare_with_base(directory, expectation.base, expectation.prefix, expectation.outputs, report)


def check_merged(expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Merging changes nothing; what rounding and bfloat16 change is measured."""
    outputs = expectation.outputs
    report.merged = _compare("merged weights", outputs.merged, outputs.trained, EXACT_COSINE, report)
    if outputs.in_bfloat16 is not None:
        report.bfloat16 = _least_cosine("computing in bfloat16", outputs.in_bfloat16, outputs.trained, report)
    if outputs.base_in_bfloat16 is not None and outputs.base is not None:
        report.base_bfloat16 = cosines(outputs.base_in_bfloat16, outputs.base).min().item()
    if outputs.other_rounding is not None:
        report.other_rounding = cosines(outputs.other_rounding, outputs.merged).min().item()
        _measure_rounding(outputs, report)


def _measure_rounding(outputs: ProbeOutputs, report: EmbedderReport) -> None:
    report.method = outputs.weights.rounding
    report.rounding = _least_cosine("rounding", outputs.written, outputs.merged, report)
    if outputs.base is not None and not outputs.unlearnt:
        lost, learnt = (1 - cosines(each, outputs.merged) for each in (outputs.written, outputs.base))
        report.of_training = (lost.mean() / learnt.mean()).item()
    if report.rounding < ROUNDED_COSINE or (report.of_training or 0) > OF_TRAINING:
        cost = f"changes embeddings to a cosine of {report.rounding:.6f} at the least"
        of_training = "" if report.of_training is None else f", {report.of_training:.1%} of what training changed"
        report.warnings.append(rounding_warning(report.dtype, cost + of_training))


def cosines(found: Tensor, expected: Tensor) -> Tensor:
    """[n] float64."""
    return cosine_similarity(found.double(), expected.double(), dim=-1)


def _least_cosine(source: str, found: Tensor, expected: Tensor, report: EmbedderReport) -> float:
    """A cosine that no limit is set to, but NaN is a failure."""
    least = cosines(found, expected).min().item()
    if math.isnan(least):
        report.failures.append(f"{source}: embeddings are NaN")
    return least


def check_transformers(directory: Path, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Reload through the Auto class and AutoTokenizer, pool as the model card shows, compute the written head."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=is_trusted(directory))
    model = in_stored_type(partial(load_model, text_model_class(read_config(directory)), directory, report))
    head = load_head(str(directory), expectation.head)
    rows, starts = probe_rows(expectation), expectation.pooled_from
    with weights_replaced(model):
        embeddings = [
            embed(model, tokenizer, rows[i : i + BATCH], expectation, None if starts is None else starts[i : i + BATCH])
            for i in range(0, len(rows), BATCH)
        ]
    _check_last_tokens("transformers", tokenizer, expectation, report)
    with torch.no_grad():
        found = normalize(head.eval()(torch.cat(embeddings)), dim=-1)
    report.transformers = _compare("transformers", found, expectation.outputs.written, EXACT_COSINE, report)


@torch.no_grad()
def embed(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    expectation: EmbedderExpectation,
    starts: Sequence[int] | None,
) -> Tensor:
    """Pooled hidden states by transformers, [n, M D]: as the card pools, or where it does not, as training does."""
    length, pooling = expectation.probe_length, expectation.pooling
    if starts is not None:
        tokenizer.padding_side = "right"
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"]
    if starts is not None:
        return pool_padded(hidden, mask.sum(1), pooling, torch.tensor(starts))
    return torch.cat([POOL_BY_MASK[mode](hidden, mask).float() for mode in modes_of(pooling)], dim=-1)


def check_sentence_transformers(directory: Path, expectation: EmbedderExpectation, report: EmbedderReport) -> None:
    """Reload through SentenceTransformer, prompts by their names."""
    from sentence_transformers import SentenceTransformer  # slow to import, and only gates need it

    def load(dtype: Dtype) -> SentenceTransformer:
        return SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            model_kwargs={"dtype": dtype},
            trust_remote_code=is_trusted(directory),
        )

    # It casts the modules behind the pooling to the type of the transformer, which would round their weights.
    model = load(torch.float32) if any(map(has_weights, expectation.head)) else in_stored_type(load)
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
    with weights_replaced(model):
        embeddings = [
            model.encode(texts, prompt_name=name, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
            for name in ("query", "document")
        ]
    _check_last_tokens("sentence-transformers", model.tokenizer, expectation, report)
    found = torch.cat(embeddings)
    report.sentence_transformers = _compare(
        "sentence-transformers", found, expectation.outputs.written, EXACT_COSINE, report
    )


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
    own = cosines(found, expected)
    worst = own.min().item()
    if not worst >= least:  # also when it is NaN
        below = int((~(own >= least)).sum())
        report.failures.append(f"{source}: cosine {worst:.7f}, expected >= {least}; {below} of {len(own)} probes")
    return worst
