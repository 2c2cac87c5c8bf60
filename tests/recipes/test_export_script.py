"""scripts/export.py: from checkpoints, adapters and directories to directories."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig as PeftConfig
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules.pooling import Pooling
from transformers import AutoTokenizer, BertModel, PreTrainedModel

from nestling.checkpoint import TrainingState, trainable_tensors, write_training
from nestling.checkpoint.atomic import write_folder
from nestling.config import EmbedConfig, LoraConfig, RerankConfig, TrainData
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.token_model import TokenModel
from nestling.models.trainable import load_trainable
from scripts.export import main
from tiny import tiny_qwen3

# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def export(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *flags])
    main()


def trained(config: EmbedConfig) -> Embedder:
    embedder = Embedder.from_pretrained(config.model, instruction="Find the command")
    if config.tuning == "lora":
        assert isinstance(embedder.backbone, PreTrainedModel)
        embedder.backbone = attach_lora(embedder.backbone, r=4, alpha=8, dropout=0.0)
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad and (config.tuning == "full" or ".lora_" in name):
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return embedder


def write_run(folder: Path, config: EmbedConfig | RerankConfig, model: TokenModel, cut: int) -> Path:
    """A run folder as a recipe leaves it, with one checkpoint."""
    checkpoint = folder / "checkpoints" / "step-7"
    checkpoint.parent.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    lines = [{"step": step, "eval": {"dev": {str(cut): {"nDCG@10": 0.5 + step / 100}}}} for step in (0, 7)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tensors = trainable_tensors(model)
    write_folder(checkpoint, lambda path: write_training(path, tensors, TrainingState(step=7)))
    return checkpoint


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_checkpoint_and_its_adapter(
    tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tuning: str
) -> None:
    config = EmbedConfig(
        model=str(qwen3),
        output_dir=str(tmp_path / "run"),
        train=[TrainData("a.jsonl", name="shell", instruction="Find the command")],
        query_max_length=32,
        document_max_length=48,
        tuning=tuning,
        lora=LoraConfig(r=4, alpha=8) if tuning == "lora" else LoraConfig(),
        precision="fp32",
        matryoshka_dims=[32, 16],
    )
    embedder = trained(config)
    checkpoint = write_run(tmp_path / "run", config, embedder, 64)
    export(monkeypatch, "--checkpoint", str(checkpoint), "--output", str(tmp_path / "served"))
    assert "served passed the parity gate" in capsys.readouterr().out
    expected = embedder.encode(["list files"], kind="query", max_length=32)
    served = Embedder.from_pretrained(tmp_path / "served")
    torch.testing.assert_close(served.encode(["list files"], kind="query", max_length=32), expected)
    assert served.config.matryoshka_dimensions == [64, 32, 16]
    assert served.max_seq_length == 512, "the base's own limit, though training cut texts at 32 and 48"
    card = (tmp_path / "served" / "README.md").read_text(encoding="utf-8")
    assert "`max_seq_length` is 512: " in card
    assert "training cut queries to 32 and documents to 48 tokens" in card
    assert "| dev | 64 | 0.5000 → 0.5700 |" in (tmp_path / "served" / "README.md").read_text(encoding="utf-8")

    if tuning == "lora":
        flags = ["--adapter", str(tmp_path / "served" / "adapter"), "--base", str(qwen3)]
        instruction = ["--instruction", "Find the command", "--max_seq_length", "48", "--dtype", "bfloat16"]
        export(monkeypatch, *flags, *instruction, "--output", str(tmp_path / "again"))
        again = Embedder.from_pretrained(tmp_path / "again")
        found = again.encode(["list files"], kind="query", max_length=32)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
        assert again.prompts == served.prompts
        assert again.max_seq_length == 48


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_checkpoint_of_a_reranker_and_its_other_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    base = tiny_qwen3(tmp_path / "base", sentence_transformers=False)
    config = RerankConfig(
        model=str(base),
        output_dir=str(tmp_path / "run"),
        train=[TrainData("a.jsonl", name="shell", instruction="Find the command")],
        query_max_length=32,
        document_max_length=48,
        tuning=tuning,
        lora=LoraConfig(r=4, alpha=8) if tuning == "lora" else LoraConfig(),
        precision="fp32",
        suffix="<|im_end|>\n",
    )
    settings = replace(RerankerSettings(), **config.reading)
    assert settings == RerankerSettings(
        suffix="<|im_end|>\n", instruction="Find the command", query_max_length=32, document_max_length=48
    )
    reranker = load_trainable(
        Reranker,
        str(base),
        settings=settings,
        lora=asdict(config.lora) if tuning == "lora" else None,
        precision=torch.float32,
    )
    for parameter in reranker.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    checkpoint = write_run(tmp_path / "run", config, reranker, 100)
    moved = base.rename(tmp_path / "moved")
    export(monkeypatch, "--checkpoint", str(checkpoint), "--base", str(moved), "--output", str(tmp_path / "served"))
    pairs = [("list files", "ls"), ("向量", "向量检索")]
    expected = reranker.score(pairs)
    served = Reranker.from_pretrained(tmp_path / "served")
    assert served.settings == settings
    torch.testing.assert_close(served.score(pairs), expected, rtol=0, atol=1e-6)
    assert "| dev | 100 | 0.5000 → 0.5700 |" in (tmp_path / "served" / "README.md").read_text(encoding="utf-8")

    classifier = ["--shape", "classifier", "--output", str(tmp_path / "classifier")]
    export(monkeypatch, "--model", str(tmp_path / "served"), *classifier)
    model = CrossEncoder(str(tmp_path / "classifier"), device="cpu")
    torch.testing.assert_close(model.predict(pairs, convert_to_tensor=True), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_an_adapter_of_sentence_transformers_keeps_its_pooling_and_prompts(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    """Its folder has the files of a model beside those of peft; the base is a bare transformer."""
    base = tmp_path / "base"
    BertModel.from_pretrained(bert).save_pretrained(base)
    AutoTokenizer.from_pretrained(bert).save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=48)
    model = SentenceTransformer(
        modules=[transformer, Pooling(48, pooling_mode=pooling)],
        prompts={"query": "query: ", "document": "passage: "},
        device="cpu",
    )
    model.add_adapter(PeftConfig(r=4, target_modules=["query", "value"]))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.save(str(tmp_path / "adapter"))
    flags = ("--adapter", str(tmp_path / "adapter"), "--base", str(base))
    export(monkeypatch, *flags, "--output", str(tmp_path / "served"))
    served = SentenceTransformer(str(tmp_path / "served"), device="cpu")
    assert served.max_seq_length == 48
    for name in ("query", "document"):
        found, expected = (each.encode(["list files " * 30, "a"], prompt_name=name) for each in (served, model))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    export(monkeypatch, *flags, "--query_prompt", "", "--output", str(tmp_path / "without"))
    assert SentenceTransformer(str(tmp_path / "without"), device="cpu").prompts == {
        "query": "",
        "document": "passage: ",
    }


def test_an_embedder_has_no_shape(tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EmbedConfig(model=str(qwen3), output_dir=str(tmp_path / "run"), train=[TrainData("a.jsonl")])
    checkpoint = write_run(tmp_path / "run", config, trained(config), 64)
    with pytest.raises(ValueError, match="is of an embedder"):
        export(
            monkeypatch, "--checkpoint", str(checkpoint), "--shape", "classifier", "--output", str(tmp_path / "served")
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "new"], "either --checkpoint, or --adapter"),
        (["--output", "new", "--adapter", "a"], "--adapter needs --base"),
        (
            ["--output", "new", "--checkpoint", "a", "--matryoshka_dims", "8"],
            "those of a checkpoint are in the run's config.yaml",
        ),
        (["--output", "new", "--model", "a", "--base", "b"], "--model is whole, and takes no --base"),
        (["--output", "new", "--model", "a", "--shape", "classifier", "--checkpoint", "b"], "give either --checkpoint"),
        (["--output", "new", "--adapter", "a", "--base", "b", "--shape", "causal"], "adapters are embedders'"),
    ],
)
def test_contradictions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        export(monkeypatch, *flags)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


def test_folders_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="exists; choose another name"):
        export(monkeypatch, "--checkpoint", "nowhere", "--output", str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        export(monkeypatch, "--checkpoint", str(tmp_path / "nowhere"), "--output", str(tmp_path / "new"))
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        export(monkeypatch, "--checkpoint", str(tmp_path / "checkpoints" / "step-1"), "--output", str(tmp_path / "new"))
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        export(monkeypatch, "--adapter", str(tmp_path), "--base", "x", "--output", str(tmp_path / "new"))
