"""The parity gate of a reranker: an exported directory, loaded as its users will, gives the scores of the model.

What is compared are logits of yes against no, z, since probabilities near 0 and 1 hide differences.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from nestling.export.gate import compare_with_base, require_passed, run_checks, run_gate
from nestling.models.reranker import Reranker, RerankerSettings
from nestling.models.scoring import Group

Shape = Literal["causal", "classifier"]
Pair = tuple[str, str]

# Largest difference of a logit, as a share of the largest logit and of 1 at least. Random models of two layers differed
# by 2e-6 in float32, and by up to 0.05 in bfloat16.
MERGED_LOGIT = 1e-4
ROUNDED_LOGIT = 0.1

# Rows of a batch on the CPU: their logits are over the whole vocabulary.
BATCH = 2


@dataclass(frozen=True)
class ScoreExpectation:
    """What a directory must reproduce.

    Args:
        shape: What it holds.
        settings: What its reranker.json says.
        probe_settings: The same with the limits that the probes are cut to.
        max_length: Tokens of a prompt that its CrossEncoder allows; None for a directory without one.
        probe_length: Tokens of a prompt that the probes are cut to.
        own: [n] float32, logits of the probes within the limits of query and document: float32 computation on the
            merged weights in memory, rounded as they are written.
        public: [n] float32, the same with the ends of prompts beyond `probe_length` cut, as other libraries do.
        trainer: [n] float32, as `own` by the model as it was trained, in its own precision.
        trainer_tolerance: The largest difference from those.
        base: Directory or hub id of the model before training; None when it was not trained.
        prefix: Of weight names, in either model, with or without.
    """

    shape: Shape
    settings: RerankerSettings
    probe_settings: RerankerSettings
    max_length: int | None
    probe_length: int
    own: Tensor
    public: Tensor
    trainer: Tensor
    trainer_tolerance: float
    base: str | None
    prefix: str = "model."

    def save(self, folder: Path) -> None:
        values = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}
        values |= {"settings": asdict(self.settings), "probe_settings": asdict(self.probe_settings)}
        (folder / "expectation.json").write_text(json.dumps(values), encoding="utf-8")
        tensors = {"own": self.own, "public": self.public, "trainer": self.trainer}
        save_file(tensors, folder / "expectation.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "ScoreExpectation":
        values: dict[str, Any] = json.loads((folder / "expectation.json").read_text(encoding="utf-8"))
        values |= {name: RerankerSettings(**values[name]) for name in ("settings", "probe_settings")}
        values |= load_file(folder / "expectation.safetensors")
        return cls(**values)

    @property
    def pairs(self) -> list[Pair]:
        """The probes."""
        return probe_pairs(self.probe_settings.query_max_length, self.probe_settings.document_max_length)


@dataclass
class ScoreReport:
    """What the gate measured: largest differences of a logit over the probes, None where it could not measure.

    Args:
        nestling: Between merged weights in memory and a reload by `Reranker.from_pretrained`.
        transformers: The same for a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers' CrossEncoder.
        trainer: Between the trainer's own logits and merged weights in memory.
        largest: The largest logit.
        tensors: Weights that the base has as well.
        changed: How many of them differ from the base.
        largest_change: Largest absolute difference of one weight.
        failures: What is wrong, empty when the directory passed.
    """

    nestling: float | None = None
    transformers: float | None = None
    sentence_transformers: float | None = None
    trainer: float | None = None
    largest: float = 0.0
    tensors: int = 0
    changed: int = 0
    largest_change: float = 0.0
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison that was made."""
        differences = {
            "Nestling reload": self.nestling,
            "transformers reload": self.transformers,
            "sentence-transformers reload": self.sentence_transformers,
            "the trainer's own logits": self.trainer,
        }
        changes = f"{self.changed} of {self.tensors} tensors changed, by up to {self.largest_change:.3g}"
        return [
            f"the largest logit of yes against no: {self.largest:.3g}",
            *(
                f"{name} against merged weights in memory: logits differ by {difference:.3g} at most"
                for name, difference in differences.items()
                if difference is not None
            ),
            *([f"against the base: {changes}"] if self.tensors else []),
        ]


def probe_pairs(query_length: int, document_length: int) -> list[Pair]:
    """Short, tiny, Chinese and composed characters, code, white space at the ends; then one pair whose document and
    one whose query is longer than its limit."""
    return [
        ("How do I list the files that changed during the last week?", "find . -mtime -7"),
        ("a", "b"),
        ("什麼是人工智慧？", "人工智慧是研究如何使電腦模擬人類智慧的科學。 🙂 e\u0301"),
        ("first row of an iterator", "def first(rows):\n    return next(iter(rows), None)\n"),
        ("Does a boundary layer become turbulent? ", " The boundary layer over a flat plate does.  "),
        ("turbulence", "The boundary layer over a flat plate becomes turbulent. " * max(1, document_length // 4)),
        ("Which flat plate has a turbulent layer? " * max(1, query_length // 4), "The one in the wind tunnel."),
    ]


def verify_reranker(directory: Path, expectation: ScoreExpectation) -> ScoreReport:
    """Run the gate on `directory` in a fresh process, on the CPU.

    Raises:
        ExportError: A comparison failed; the message holds all figures.
    """
    report = ScoreReport(**run_gate("nestling.export.reranker_gate", directory, expectation.save))
    require_passed(report, directory)
    return report


def gate_process() -> None:
    """Body of the gate's process: directory and work folder come as arguments, the report goes into the folder."""
    directory, folder = (Path(argument) for argument in sys.argv[1:])
    report = check_reranker(directory, ScoreExpectation.load(folder))
    (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")


def check_reranker(directory: Path, expectation: ScoreExpectation) -> ScoreReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = ScoreReport(largest=expectation.own.abs().max().item())
    checks = {"trainer": check_trainer}
    if expectation.shape == "causal":
        checks |= {"Nestling": check_nestling, "transformers": check_causal}
    else:
        checks |= {"transformers": check_classifier}
    if expectation.max_length is not None:
        checks["sentence-transformers"] = check_cross_encoder
    if expectation.base is not None:
        checks["base"] = check_base
    run_checks({name: partial(check, directory, expectation, report) for name, check in checks.items()}, report)
    return report


def check_trainer(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
    """Merging and rounding the weights moved the trainer's logits by no more than its precision does."""
    tolerance = expectation.trainer_tolerance
    report.trainer = _compare("trainer", expectation.own, expectation.trainer, tolerance, expectation, report)


def check_nestling(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
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


def check_causal(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
    """Reload through AutoModelForCausalLM, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = _load(AutoModelForCausalLM, directory, report)
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


def check_classifier(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
    """Reload through AutoModelForSequenceClassification, as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = _load(AutoModelForSequenceClassification, directory, report)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        report.failures.append("transformers: the tokenizer adds special tokens, which prompts do not have")
    prompts = probe_prompts(tokenizer, expectation)
    logits = [score_classifier(model, tokenizer, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    found = torch.cat(logits)
    report.transformers = _compare("transformers", found, expectation.public, MERGED_LOGIT, expectation, report)


def check_cross_encoder(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
    """Reload through CrossEncoder, whose chat template makes the prompts."""
    from sentence_transformers import CrossEncoder  # slow to import, and only the gate's process needs it

    model = CrossEncoder(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
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


def check_base(directory: Path, expectation: ScoreExpectation, report: ScoreReport) -> None:
    """The weights are not those of the base."""
    assert expectation.base is not None
    compare_with_base(directory, expectation.base, "", expectation.prefix, report)


def probe_prompts(tokenizer: PreTrainedTokenizerBase, expectation: ScoreExpectation) -> list[list[int]]:
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


def _load(kind: Any, directory: Path, report: ScoreReport) -> Any:
    model, loading = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    missing = sorted(loading["missing_keys"])
    if missing:
        report.failures.append(f"transformers: weights are missing: {', '.join(missing[:5])}")
    return model


def _compare(
    source: str,
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    expectation: ScoreExpectation,
    report: ScoreReport,
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


# The card prints these functions: what users copy is what the gate ran.


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    prefix: str,
    suffix: str,
    instruction: str,
    max_length: int,
) -> list[list[int]]:
    start, end = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prefix, suffix))
    bodies = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    room = max_length - len(start) - len(end)  # only the body is cut
    cut = tokenizer(bodies, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
    return [start + body + end for body in cut]


@torch.no_grad()
def score_causal(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], no: int, yes: int) -> Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    logits: Tensor = model(**batch).logits[:, -1, [no, yes]]
    return logits.float().log_softmax(dim=1)


@torch.no_grad()
def score_classifier(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    logits: Tensor = model(**batch).logits[:, 0]
    return logits.float()
