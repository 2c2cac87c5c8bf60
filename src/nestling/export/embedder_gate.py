"""The parity gate: an exported directory, loaded as its users will, gives the embeddings of the model in memory."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from nestling.export.gate import compare_with_base, require_passed, run_checks, run_gate
from nestling.models.pooling import Pooling

MERGED_COSINE = 0.99999
ROUNDED_COSINE = 0.999


@dataclass(frozen=True)
class Expectation:
    """What a directory must reproduce.

    Args:
        pooling: How its card pools.
        query_prompt: The prompt called "query".
        document_prompt: The prompt called "document".
        max_length: Tokens that its sentence_bert_config.json allows.
        probe_length: Tokens to which the probes are cut, at most max_length.
        end_token: Id of every text's last token, None where pooling does not read it.
        merged: [2 n, D] float32, embeddings of the n probes as queries, then as documents: float32 computation on the
            merged weights in memory, rounded as they are written.
        trainer: The same from the model as it was trained, in its own precision.
        trainer_cosine: The least cosine with those.
        base: Directory or hub id of the model before training.
        base_subfolder: Where its transformer lies.
        prefix: Of weight names, in either model, with or without.
    """

    pooling: Pooling
    query_prompt: str
    document_prompt: str
    max_length: int
    probe_length: int
    end_token: int | None
    merged: Tensor
    trainer: Tensor
    trainer_cosine: float
    base: str
    base_subfolder: str = ""
    prefix: str = "model."

    def save(self, folder: Path) -> None:
        values = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}
        (folder / "expectation.json").write_text(json.dumps(values), encoding="utf-8")
        save_file({"merged": self.merged, "trainer": self.trainer}, folder / "expectation.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Expectation":
        values: dict[str, Any] = json.loads((folder / "expectation.json").read_text(encoding="utf-8"))
        values.update(load_file(folder / "expectation.safetensors"))
        return cls(**values)


@dataclass
class GateReport:
    """What the gate measured; None for what it could not measure.

    Args:
        transformers: Least cosine over the probes between merged weights in memory and a reload by transformers.
        sentence_transformers: The same for a reload by sentence-transformers.
        trainer: Least cosine between the trainer's own embeddings and a reload by transformers.
        tensors: Weights that the base has as well.
        changed: How many of them differ from the base.
        largest_change: Largest absolute difference of one weight.
        failures: What is wrong, empty when the directory passed.
    """

    transformers: float | None = None
    sentence_transformers: float | None = None
    trainer: float | None = None
    tensors: int = 0
    changed: int = 0
    largest_change: float = 0.0
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line a comparison."""

        def show(cosine: float | None) -> str:
            return "not measured" if cosine is None else f"cosine >= {cosine:.7f}"

        return [
            f"transformers reload against merged weights in memory: {show(self.transformers)}",
            f"sentence-transformers reload against merged weights in memory: {show(self.sentence_transformers)}",
            f"transformers reload against the trainer's own embeddings: {show(self.trainer)}",
            f"against the base: {self.changed} of {self.tensors} tensors changed, by up to {self.largest_change:.3g}",
        ]


def probe_texts(max_length: int) -> list[str]:
    """Short, tiny, Chinese, code, and one text that is longer than `max_length` tokens.

    None begins or ends in white space, which sentence-transformers before 6 strips.
    """
    return [
        "How do I list the files that changed during the last week?",
        "a",
        "人工智慧是研究如何使電腦模擬人類智慧的科學。",
        "def first(rows):\n    return next(iter(rows), None)",
        "The boundary layer over a flat plate becomes turbulent. " * max(1, max_length // 4),
    ]


def verify_export(directory: Path, expectation: Expectation) -> GateReport:
    """Run the gate on `directory` in a fresh process, on the CPU.

    Raises:
        ExportError: A comparison failed; the message holds all figures.
    """
    report = GateReport(**run_gate("nestling.export.embedder_gate", directory, expectation.save))
    require_passed(report, directory)
    return report


def gate_process() -> None:
    """Body of the gate's process: directory and work folder come as arguments, the report goes into the folder."""
    directory, folder = (Path(argument) for argument in sys.argv[1:])
    report = check_directory(directory, Expectation.load(folder))
    (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")


def check_directory(directory: Path, expectation: Expectation) -> GateReport:
    """Compare `directory` with `expectation`; nothing is raised, failures are listed in the report."""
    report = GateReport()
    checks = {
        "transformers": check_transformers,
        "sentence-transformers": check_sentence_transformers,
        "base": check_base,
    }
    run_checks({name: partial(check, directory, expectation, report) for name, check in checks.items()}, report)
    return report


def check_transformers(directory: Path, expectation: Expectation, report: GateReport) -> None:
    """Reload through AutoModel and AutoTokenizer, pool as the model card shows."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model, loading = AutoModel.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    missing = sorted(loading["missing_keys"])
    if missing:
        report.failures.append(f"transformers: weights are missing: {', '.join(missing[:5])}")
    texts = probe_texts(expectation.probe_length)
    prompts = (expectation.query_prompt, expectation.document_prompt)
    rows = [prompt + text for prompt in prompts for text in texts]
    embeddings = [
        embed(model, tokenizer, rows[i : i + 4], expectation.pooling, expectation.probe_length)
        for i in range(0, len(rows), 4)
    ]
    _check_last_tokens("transformers", _token_ids(tokenizer, rows, expectation.probe_length), expectation, report)
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


def check_sentence_transformers(directory: Path, expectation: Expectation, report: GateReport) -> None:
    """Reload through SentenceTransformer, prompts by their names."""
    from sentence_transformers import SentenceTransformer  # slow to import, and only the gate's process needs it

    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
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
        model.encode(texts, prompt_name=name, batch_size=4, convert_to_tensor=True, show_progress_bar=False)
        for name in ("query", "document")
    ]
    rows = [prompt + text for prompt in (expectation.query_prompt, expectation.document_prompt) for text in texts]
    ids = _token_ids(model.tokenizer, rows, expectation.probe_length)
    _check_last_tokens("sentence-transformers", ids, expectation, report)
    found = torch.cat(embeddings)
    report.sentence_transformers = _compare("sentence-transformers", found, expectation.merged, MERGED_COSINE, report)


def check_base(directory: Path, expectation: Expectation, report: GateReport) -> None:
    """The weights are not those of the base."""
    compare_with_base(directory, expectation.base, expectation.base_subfolder, expectation.prefix, report)


def _token_ids(tokenizer: Any, rows: Sequence[str], max_length: int) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(rows), truncation=True, max_length=max_length)["input_ids"]
    return ids


def _check_last_tokens(source: str, ids: list[list[int]], expectation: Expectation, report: GateReport) -> None:
    if expectation.end_token is None:
        return
    wrong = [row[-1] for row in ids if row[-1] != expectation.end_token]
    if wrong:
        report.failures.append(
            f"{source}: {len(wrong)} of {len(ids)} probes end in token {wrong[0]}, not in {expectation.end_token}, "
            "which last-token pooling reads"
        )


def _compare(source: str, found: Tensor, expected: Tensor, least: float, report: GateReport) -> float | None:
    if found.shape != expected.shape:
        report.failures.append(f"{source}: embeddings are {list(found.shape)}, expected {list(expected.shape)}")
        return None
    cosines = cosine_similarity(found.double(), expected.double(), dim=-1)
    worst = cosines.min().item()
    if not worst >= least:  # also when it is NaN
        below = int((~(cosines >= least)).sum())
        report.failures.append(f"{source}: cosine {worst:.7f}, expected >= {least}; {below} of {len(cosines)} probes")
    return worst


def pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.argmax(1)]


# The card prints these functions: what users copy is what the gate ran.
POOL_BY_MASK: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "last": pool_last,
    "mean": pool_mean,
    "cls": pool_cls,
}
