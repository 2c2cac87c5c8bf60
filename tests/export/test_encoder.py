"""Rerankers from encoders are exported as CrossEncoders that every reader scores with alike, and gates find faults."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nestling.export.gate import ExportError
from nestling.export.reranker import export_reranker
from nestling.export.reranker_expectation import RerankerExpectation
from nestling.export.reranker_gate import RerankerReport, check_reranker
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import EncoderSettings
from tiny import SENTENCES, tiny_bert, tiny_cross_encoder, write_json
from trained import with_lora, with_noise

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

PAIRS = [("find files by size", "find . -size +1M"), ("read lines", "a"), ("ls", ""), ("向量检索", SENTENCES[8])]
PLAIN = EncoderSettings(query_max_length=24, document_max_length=40)
INSTRUCTED = replace(PLAIN, instruction="Find the command:", activation="none")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def trained(base: Path, settings: EncoderSettings, **arguments: Any) -> Reranker:
    return with_noise(Reranker.from_pretrained(base, settings=settings, **arguments))


def as_release_5(folder: Path) -> Tensor:
    """Scores as sentence-transformers 5 computes them: of config.json and the tokenizer's own length alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer([query for query, _ in PAIRS], [text for _, text in PAIRS], padding=True, truncation=True)
    with torch.no_grad():
        logits = model(**batch.convert_to_tensors("pt")).logits[:, 0]
    activation = model.config.sentence_transformers["activation_fn"]
    return {"Sigmoid": torch.sigmoid, "Identity": torch.clone}[activation.rpartition(".")[2]](logits)


@pytest.mark.parametrize(("kind", "settings"), [("bert", PLAIN), ("xlm-roberta", INSTRUCTED), ("modernbert", PLAIN)])
def test_all_readers_give_the_same_scores(tmp_path: Path, kind: str, settings: EncoderSettings) -> None:
    reranker = trained(tiny_cross_encoder(tmp_path / "base", kind), settings)
    report = export_reranker(reranker, tmp_path / "final")
    assert report.failures == [] and report.changes.changed == report.changes.tensors
    for difference in (report.nestling, report.transformers, report.sentence_transformers):
        assert difference is not None and difference < 1e-5
    again = Reranker.from_pretrained(tmp_path / "final")
    assert again.settings == settings
    expected = reranker.score(PAIRS)
    torch.testing.assert_close(again.score(PAIRS), expected, atol=1e-5, rtol=0)
    own = CrossEncoder(str(tmp_path / "final"), device="cpu").predict(PAIRS, show_progress_bar=False)
    torch.testing.assert_close(torch.tensor(own), expected, atol=1e-5, rtol=0)
    if not settings.instruction:
        torch.testing.assert_close(as_release_5(tmp_path / "final"), expected, atol=1e-5, rtol=0)


def test_a_new_head_under_lora_is_exported_with_what_it_was_trained_to(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    reranker = with_lora(Reranker.from_pretrained(base, new_head=3, settings=PLAIN))
    reranker.train_head()
    with torch.no_grad():
        reranker.classifier.classifier.weight += 0.5
    export_reranker(reranker, tmp_path / "final")
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path / "final").score(PAIRS), reranker.score(PAIRS))
    config = read(tmp_path / "final", "config.json")
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert not (tmp_path / "final" / "adapter").exists()  # which would be without the head


@pytest.mark.parametrize("settings", [PLAIN, INSTRUCTED])
def test_the_usage_of_the_card_runs(tmp_path: Path, settings: EncoderSettings) -> None:
    reranker = trained(tiny_cross_encoder(tmp_path / "base"), settings)
    export_reranker(reranker, tmp_path / "final")
    text = (tmp_path / "final" / "README.md").read_text(encoding="utf-8").replace("MODEL", str(tmp_path / "final"))
    usages = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(usages) == 3
    assert "text-embeddings-router --model-id" in text and "vllm serve" in text
    assert ("raw_scores" in text) == (settings.activation == "none")
    assert ('"query": "Find the command: how do I list files?"' in text) == bool(settings.instruction)
    expected = reranker.score([("how do I list files?", "ls prints the names of files.")]).item()
    for usage in usages:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(usage, {})
        printed = re.search(r"-?[0-9]\.[0-9]+", output.getvalue())
        assert printed is not None
        assert abs(float(printed[0]) - expected) < 1e-4


def answer_otherwise(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    write_json(path, read(folder, path.name) | {"activation_fn": "torch.nn.modules.linear.Identity"})


def read_more(folder: Path) -> None:
    path = folder / "sentence_bert_config.json"
    write_json(path, read(folder, path.name) | {"max_seq_length": 100})


def change_the_instruction(folder: Path) -> None:
    (folder / "reranker.json").write_text(replace(PLAIN, instruction="Find").to_json())


def restore_the_base(folder: Path) -> None:
    shutil.copyfile(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_the_pooler(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("bert.pooler.dense.weight"))


def flip_the_head(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"classifier.weight": -weights["classifier.weight"]}))


def lose_the_types(folder: Path) -> None:
    content = read(folder, "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", content | {"model_input_names": ["input_ids", "attention_mask"]})


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (answer_otherwise, "sentence-transformers: predict gives .*, not probabilities"),
        (read_more, "sentence-transformers: max_seq_length is 100, expected 67"),
        (change_the_instruction, "Nestling: settings are .*Nestling: the logit of"),
        (restore_the_base, "Nestling: the logit of .*transformers: the logit of .*nothing was learnt"),
        (lose_the_pooler, "transformers: weights are missing: bert.pooler.dense.weight"),
        (flip_the_head, "Nestling: the logit of .*transformers: the logit of .*sentence-transformers: the logit of"),
        (lose_the_types, "Nestling: the logit of .*transformers: the logit of .*sentence-transformers: the logit of"),
    ],
)
def test_gate_finds_a_planted_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None], found: str
) -> None:
    reranker = trained(tiny_cross_encoder(tmp_path / "base"), PLAIN)

    def check(directory: Path, expectation: RerankerExpectation) -> RerankerReport:
        fault(directory)
        return check_reranker(directory, expectation)

    monkeypatch.setattr("nestling.export.reranker.check_reranker", check)
    with pytest.raises(ExportError, match=f"(?s){found}"):
        export_reranker(reranker, tmp_path / "final")
    assert not [path.name for path in tmp_path.iterdir() if "final" in path.name]


@pytest.mark.parametrize("lora", [False, True])
def test_weights_in_bfloat16_are_loaded_trained_and_exported(tmp_path: Path, lora: bool) -> None:
    base = tiny_cross_encoder(tmp_path / "base")
    export_reranker(
        Reranker.from_pretrained(base, settings=PLAIN), tmp_path / "half", dtype=torch.bfloat16, trained=False
    )
    arguments = {"dtype": "auto", "precision": torch.bfloat16}
    reranker = Reranker.from_pretrained(tmp_path / "half", **arguments)
    assert {each.dtype for each in reranker.parameters()} == {torch.bfloat16}
    if lora:
        reranker = with_lora(reranker)
        reranker.train_head()
    expected = reranker.score(PAIRS)
    export_reranker(reranker, tmp_path / "final", trained=False)
    torch.testing.assert_close(Reranker.from_pretrained(tmp_path / "final").score(PAIRS), expected, atol=0.01, rtol=0)


def test_an_encoder_has_one_shape(tmp_path: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_cross_encoder(tmp_path / "base"))
    with pytest.raises(ValueError, match="is an encoder, which has no shape classifier; leave shape away"):
        export_reranker(reranker, tmp_path / "final", shape="classifier")
    export_reranker(reranker, tmp_path / "final", trained=False)
    assert read(tmp_path / "final", "tokenizer_config.json")["model_max_length"] == 128
