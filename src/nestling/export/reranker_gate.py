"""The parity gate of a reranker: an exported directory, loaded as its users will, gives the scores of the model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nestling.export.gate import (
    Dtype,
    WeightChanges,
    compare_with_base,
    in_stored_type,
    load_model,
    rounding_warning,
    run_checks,
)
from nestling.export.probe_outputs import ProbeOutputs
from nestling.export.reranker_expectation import RerankerExpectation
from nestling.export.reranker_usage import pair_batch, score_causal, score_classifier, score_pairs, tokenize_pairs
from nestling.models.merged_weights import computing_with
from nestling.models.remote_code import is_trusted
from nestling.models.replaced_weights import weights_replaced
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import EncoderSettings, RerankerSettings
from nestling.models.rounded_weights import Rounding
from nestling.models.scoring import Group

# Rows of a batch on the CPU: their logits are over the whole vocabulary.
BATCH = 2

# Largest difference of a logit where two computations in float32 are to give the same, as a fraction of the largest
# logit and of 1 at least. Random models of two layers differed by 2e-6.
EXACT_LOGIT = 1e-4
# Rounding is warned about when it changes a logit by more than this fraction of the largest one, and of 1 at least, or
# more than this fraction of what training changed.
ROUNDED_LOGIT = 0.1
OF_TRAINING = 0.05


@dataclass
class RerankerReport:
    """What the gate measured: largest differences of a logit over the probes, None where it could not measure.

    Args:
        dtype: Of the written weights.
        merged: Between the model as it was trained and its merged weights, both in float32.
        nestling: Between the written weights in memory and a reload by `Reranker.from_pretrained`.
        transformers: The same for a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers' CrossEncoder.
        rounding: Between merged weights before and after they were rounded.
        method: How they were rounded.
        other_rounding: As `rounding`, for the way of rounding that was not taken.
        of_training: Mean difference made by rounding, as a fraction of that made by training.
        bfloat16: Between the trained model computing in bfloat16 and in float32.
        base_bfloat16: The same of the base.
        largest: The largest logit.
        changes: Against the base, of a model that was trained.
        failures: What is wrong, empty when the directory passed.
        warnings: What the user should know.
    """

    dtype: str = "float32"
    merged: float | None = None
    nestling: float | None = None
    transformers: float | None = None
    sentence_transformers: float | None = None
    rounding: float | None = None
    method: Rounding = "nearest"
    other_rounding: float | None = None
    of_training: float | None = None
    bfloat16: float | None = None
    base_bfloat16: float | None = None
    largest: float = 0.0
    changes: WeightChanges = field(default_factory=WeightChanges)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison that was made."""
        of_training = (
            "" if self.of_training is None else f", in the mean {self.of_training:.2%} of what training changed"
        )
        other = "" if self.other_rounding is None else f"{of_training}; the other way by {self.other_rounding:.3g}"
        base = "" if self.base_bfloat16 is None else f"; the base's by {self.base_bfloat16:.3g}"
        differences = [
            ("merged weights against the model as it was trained", self.merged, ""),
            ("Nestling reload against the written weights in memory", self.nestling, ""),
            ("transformers reload against the written weights in memory", self.transformers, ""),
            ("sentence-transformers reload against the written weights in memory", self.sentence_transformers, ""),
            (f"{self.method} rounding to {self.dtype}", self.rounding, other),
            ("computing in bfloat16", self.bfloat16, base),
        ]
        return [
            f"the largest logit of yes against no: {self.largest:.3g}",
            *(
                f"{name}: logits differ by {difference:.3g} at most{more}"
                for name, difference, more in differences
                if difference is not None
            ),
            *([str(self.changes)] if self.changes.tensors else []),
            *(f"warning: {line}" for line in self.warnings),
        ]


def check_reranker(directory: Path, expectation: RerankerExpectation) -> RerankerReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = RerankerReport(
        dtype=str(expectation.outputs.weights.dtype).removeprefix("torch."),
        largest=expectation.outputs.written.abs().max().item(),
    )
    by_transformers = {"causal": check_causal, "classifier": check_classifier, "encoder": check_encoder}
    compared = {"merged weights": check_merged}
    if expectation.shape != "classifier":
        compared["Nestling"] = check_nestling
    compared["transformers"] = by_transformers[expectation.shape]
    if expectation.max_length is not None:
        compared["sentence-transformers"] = check_cross_encoder
    checks = {name: partial(check, directory, expectation, report) for name, check in compared.items()}
    if expectation.base is not None:
        checks["base"] = partial(
            compare_with_base, directory, expectation.base, expectation.prefix, expectation.outputs, report
        )
    run_checks(checks, report)
    return report


def check_merged(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Merging changes nothing; what rounding and bfloat16 change is measured."""
    outputs = expectation.outputs
    report.merged = _compare("merged weights", outputs.merged, outputs.trained, EXACT_LOGIT, expectation, report)
    if outputs.in_bfloat16 is not None:
        report.bfloat16 = _largest("computing in bfloat16", outputs.in_bfloat16, outputs.trained, report)
    if outputs.base_in_bfloat16 is not None and outputs.base is not None:
        report.base_bfloat16 = (outputs.base_in_bfloat16 - outputs.base).abs().max().item()
    if outputs.other_rounding is not None:
        report.other_rounding = (outputs.other_rounding - outputs.merged).abs().max().item()
        _measure_rounding(outputs, report)


def _measure_rounding(outputs: ProbeOutputs, report: RerankerReport) -> None:
    report.method = outputs.weights.rounding
    report.rounding = _largest("rounding", outputs.written, outputs.merged, report)
    if outputs.base is not None and not outputs.unlearnt:
        lost, learnt = ((each - outputs.merged).abs() for each in (outputs.written, outputs.base))
        report.of_training = (lost.mean() / learnt.mean()).item()
    if report.rounding > ROUNDED_LOGIT * max(1.0, report.largest) or (report.of_training or 0) > OF_TRAINING:
        cost = f"changes logits by up to {report.rounding:.2g}"
        of_training = "" if report.of_training is None else f", {report.of_training:.1%} of what training changed"
        report.warnings.append(rounding_warning(report.dtype, cost + of_training))


def _largest(source: str, found: Tensor, expected: Tensor, report: RerankerReport) -> float:
    """A difference that no limit is set to, but NaN is a failure."""
    largest = (found.double() - expected.double()).abs().max().item()
    if math.isnan(largest):
        report.failures.append(f"{source}: logits are NaN")
    return largest


def check_nestling(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload by ourselves, queries and documents cut each to its limit."""
    reranker = in_stored_type(lambda dtype: Reranker.from_pretrained(directory, dtype=dtype, cpu=True))
    if reranker.settings != expectation.settings:
        report.failures.append(f"Nestling: settings are {reranker.settings}, expected {expectation.settings}")
    reranker.settings = replace(
        reranker.settings,
        query_max_length=expectation.probe_settings.query_max_length,
        document_max_length=expectation.probe_settings.document_max_length,
    )
    with computing_with(reranker):
        found = torch.cat(reranker.logits([Group(query, [document]) for query, document in expectation.pairs]))
    report.nestling = _compare("Nestling", found, expectation.outputs.written, EXACT_LOGIT, expectation, report)


def check_causal(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through AutoModelForCausalLM, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=is_trusted(directory))
    model = in_stored_type(partial(load_model, AutoModelForCausalLM, directory, report))
    prompts, settings = probe_prompts(tokenizer, expectation), expectation.settings
    assert isinstance(settings, RerankerSettings)
    no, yes = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (settings.no, settings.yes))
    score = partial(score_causal, of_last_positions(model), tokenizer, no=no, yes=yes)
    with weights_replaced(model):
        scores = torch.cat([score(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)])
    report.transformers = _compare(
        "transformers", scores[:, 1] - scores[:, 0], expectation.public, EXACT_LOGIT, expectation, report
    )


def of_last_positions(model: PreTrainedModel) -> Callable[..., Any]:
    """A causal language model that computes the logits over its vocabulary of few positions, if it can.

    They begin at the last token of the shortest prompt.
    """
    if "logits_to_keep" not in signature(model.forward).parameters:
        return model

    def run(*, attention_mask: Tensor, **batch: Any) -> Any:
        kept = attention_mask.shape[1] - int(attention_mask.sum(dim=1).min()) + 1
        return model(attention_mask=attention_mask, **batch, logits_to_keep=kept)

    return run


def check_classifier(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through AutoModelForSequenceClassification, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=is_trusted(directory))
    model = load_model(AutoModelForSequenceClassification, directory, report, torch.float32)  # its score is float32
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        report.failures.append("transformers: the tokenizer adds special tokens, which prompts do not have")
    prompts = probe_prompts(tokenizer, expectation)
    logits = [score_classifier(model, tokenizer, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    found = torch.cat(logits)
    report.transformers = _compare("transformers", found, expectation.public, EXACT_LOGIT, expectation, report)


def check_encoder(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through AutoModelForSequenceClassification with pairs of texts, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=is_trusted(directory))
    model = in_stored_type(partial(load_model, AutoModelForSequenceClassification, directory, report))
    settings = expectation.settings
    assert isinstance(settings, EncoderSettings)
    batch = pair_batch(
        tokenizer,
        expectation.pairs,
        instruction=settings.before_query,
        max_length=expectation.probe_length,
        padding=True,
        return_tensors="pt",
    )
    with weights_replaced(model):
        found = score_pairs(model, batch)
    report.transformers = _compare("transformers", found, expectation.public, EXACT_LOGIT, expectation, report)


def check_cross_encoder(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through CrossEncoder, which makes the prompts by a chat template, or by the tokenizer of an encoder."""
    from sentence_transformers import CrossEncoder  # slow to import, and only gates need it

    def load(dtype: Dtype) -> Any:
        return CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})

    model: Any = load(torch.float32) if expectation.shape == "classifier" else in_stored_type(load)
    if model.max_seq_length != expectation.max_length:
        report.failures.append(
            f"sentence-transformers: max_seq_length is {model.max_seq_length}, expected {expectation.max_length}"
        )
    model.max_seq_length = expectation.probe_length
    predict = partial(model.predict, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
    first = expectation.pairs[:BATCH]
    with weights_replaced(model):
        found, scores = predict(expectation.pairs, activation_fn=nn.Identity()), predict(first)
    report.sentence_transformers = _compare(
        "sentence-transformers", found, expectation.public, EXACT_LOGIT, expectation, report
    )
    settings = expectation.settings
    plain = isinstance(settings, EncoderSettings) and settings.activation == "none"
    if not torch.allclose(scores, found[:BATCH] if plain else found[:BATCH].sigmoid(), rtol=0, atol=1e-6):
        what = "logits" if plain else "probabilities"
        report.failures.append(f"sentence-transformers: predict gives {scores.tolist()}, not {what}")


def probe_prompts(tokenizer: PreTrainedTokenizerBase, expectation: RerankerExpectation) -> list[list[int]]:
    """Token ids of the probes' prompts, as `public` has them."""
    settings = expectation.settings
    assert isinstance(settings, RerankerSettings)
    return tokenize_pairs(
        tokenizer,
        expectation.pairs,
        prefix=settings.prefix,
        suffix=settings.suffix,
        instruction=settings.instruction,
        max_length=expectation.probe_length,
    )


def _compare(
    source: str,
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    expectation: RerankerExpectation,
    report: RerankerReport,
) -> float:
    differences = (found.double() - expected.double()).abs()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    if not bool((differences <= allowed).all()):  # also when one is NaN
        wrong = (~(differences <= allowed)).nonzero()[:, 0].tolist()
        query, document = expectation.pairs[wrong[0]]
        report.failures.append(
            f"{source}: the logit of {query[:40]!r} and {document[:40]!r} is {found[wrong[0]]:.7g}, "
            f"expected {expected[wrong[0]]:.7g} +- {allowed:.1g}; {len(wrong)} of {len(found)} probes"
        )
    return differences.max().item()
