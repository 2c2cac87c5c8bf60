"""The parity gate of a reranker: an exported directory, loaded as its users will, gives the scores of the model."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from nestling.export.gate import WeightChanges, compare_with_base, load_model, run_checks
from nestling.export.reranker_expectation import MERGED_LOGIT, RerankerExpectation
from nestling.export.reranker_usage import score_causal, score_classifier, tokenize_pairs
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group

# Rows of a batch on the CPU: their logits are over the whole vocabulary.
BATCH = 2


@dataclass
class RerankerReport:
    """What the gate measured: largest differences of a logit over the probes, None where it could not measure.

    Args:
        nestling: Between merged weights in memory and a reload by `Reranker.from_pretrained`.
        transformers: The same for a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers' CrossEncoder.
        trainer: Between the trainer's own logits and merged weights in memory.
        largest: The largest logit.
        changes: Against the base, of a model that was trained.
        failures: What is wrong, empty when the directory passed.
    """

    nestling: float | None = None
    transformers: float | None = None
    sentence_transformers: float | None = None
    trainer: float | None = None
    largest: float = 0.0
    changes: WeightChanges = field(default_factory=WeightChanges)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison that was made."""
        differences = {
            "Nestling reload": self.nestling,
            "transformers reload": self.transformers,
            "sentence-transformers reload": self.sentence_transformers,
            "the trainer's own logits": self.trainer,
        }
        return [
            f"the largest logit of yes against no: {self.largest:.3g}",
            *(
                f"{name} against merged weights in memory: logits differ by {difference:.3g} at most"
                for name, difference in differences.items()
                if difference is not None
            ),
            *([str(self.changes)] if self.changes.tensors else []),
        ]


def check_reranker(directory: Path, expectation: RerankerExpectation) -> RerankerReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = RerankerReport(largest=expectation.own.abs().max().item())
    compared = {"trainer": check_trainer}
    if expectation.shape == "causal":
        compared |= {"Nestling": check_nestling, "transformers": check_causal}
    else:
        compared |= {"transformers": check_classifier}
    if expectation.max_length is not None:
        compared["sentence-transformers"] = check_cross_encoder
    checks = {name: partial(check, directory, expectation, report) for name, check in compared.items()}
    if expectation.base is not None:
        checks["base"] = partial(compare_with_base, directory, expectation.base, expectation.prefix, report)
    run_checks(checks, report)
    return report


def check_trainer(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Merging and rounding the weights moved the trainer's logits by no more than its precision does."""
    tolerance = expectation.trainer_tolerance
    report.trainer = _compare("trainer", expectation.own, expectation.trainer, tolerance, expectation, report)


def check_nestling(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload by ourselves, queries and documents cut each to its limit."""
    reranker = Reranker.from_pretrained(directory, cpu=True)
    if reranker.settings != expectation.settings:
        report.failures.append(f"Nestling: settings are {reranker.settings}, expected {expectation.settings}")
    reranker.settings = replace(
        reranker.settings,
        query_max_length=expectation.probe_settings.query_max_length,
        document_max_length=expectation.probe_settings.document_max_length,
    )
    found = torch.cat(reranker.logits([Group(query, [document]) for query, document in expectation.pairs]))
    report.nestling = _compare("Nestling", found, expectation.own, MERGED_LOGIT, expectation, report)


def check_causal(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through AutoModelForCausalLM, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = load_model(AutoModelForCausalLM, directory, report)
    prompts = probe_prompts(tokenizer, expectation)
    no, yes = (
        tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in (expectation.settings.no, expectation.settings.yes)
    )
    scores = torch.cat(
        [score_causal(model, tokenizer, prompts[i : i + BATCH], no, yes) for i in range(0, len(prompts), BATCH)]
    )
    report.transformers = _compare(
        "transformers", scores[:, 1] - scores[:, 0], expectation.public, MERGED_LOGIT, expectation, report
    )


def check_classifier(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through AutoModelForSequenceClassification, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = load_model(AutoModelForSequenceClassification, directory, report)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        report.failures.append("transformers: the tokenizer adds special tokens, which prompts do not have")
    prompts = probe_prompts(tokenizer, expectation)
    logits = [score_classifier(model, tokenizer, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    found = torch.cat(logits)
    report.transformers = _compare("transformers", found, expectation.public, MERGED_LOGIT, expectation, report)


def check_cross_encoder(directory: Path, expectation: RerankerExpectation, report: RerankerReport) -> None:
    """Reload through CrossEncoder, whose chat template makes the prompts."""
    from sentence_transformers import CrossEncoder  # slow to import, and only gates need it

    model = CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    if model.max_seq_length != expectation.max_length:
        report.failures.append(
            f"sentence-transformers: max_seq_length is {model.max_seq_length}, expected {expectation.max_length}"
        )
    model.max_seq_length = expectation.probe_length
    predict = partial(model.predict, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
    found = predict(expectation.pairs, activation_fn=nn.Identity())
    report.sentence_transformers = _compare(
        "sentence-transformers", found, expectation.public, MERGED_LOGIT, expectation, report
    )
    first = expectation.pairs[:BATCH]
    if not torch.allclose(predict(first), found[:BATCH].sigmoid(), rtol=0, atol=1e-6):
        report.failures.append(f"sentence-transformers: predict gives {predict(first).tolist()}, not probabilities")


def probe_prompts(tokenizer: PreTrainedTokenizerBase, expectation: RerankerExpectation) -> list[list[int]]:
    """Token ids of the probes' prompts, as `public` has them."""
    settings = expectation.settings
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
