"""Models with modules behind the pooling: trained, exported through the gate, and loaded by sentence-transformers."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from documents import ROOT
from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import pack
from nestling.checkpoint.state import TrainingState, restore_tensors, trainable_tensors, write_training
from nestling.config import ExportConfig
from nestling.export.embedder import export_embedder
from nestling.export.gate import ExportError
from nestling.models.adapters import load_lora
from nestling.models.embedder import Embedder
from nestling.models.trainable import load_trainable
from nestling.training.cached import ActivationBudget, cached_backward
from tiny_modules import (
    IDENTITY,
    dense,
    flags,
    tiny_embedding_gemma,
    tiny_headed_bert,
    tiny_sentence_t5,
    tiny_stella,
)

TEXTS = ["find all files", "short", "人工智慧", "def f(x):\n    return x", "word " * 60]
LENGTHS: dict[str, Any] = {"max_seq_length": 48}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


def everything(folder: Path) -> Path:
    """Each kind of module, behind two poolings that leave out the prompt."""
    modules = [
        ("Normalize", {}),
        dense(96, 64),
        ("LayerNorm", {"dimension": 64}),
        ("Dropout", {"dropout": 0.2}),
        dense(64, 40, IDENTITY, use_residual=True),
    ]
    return tiny_headed_bert(folder, modules, flags("max_tokens", "weightedmean_tokens", include_prompt=False))


def similarity(embeddings: Tensor) -> Tensor:
    """A loss: how similar the texts are."""
    unit = normalize(embeddings, dim=-1)
    return (unit @ unit.T).sum()


def trained(folder: Path, tuning: str) -> Embedder:
    """Two steps, as a recipe takes them."""
    embedder = load_trainable(
        Embedder,
        str(folder),
        lora=LORA if tuning == "lora" else None,
        precision=torch.float32,
        attn_implementation="eager",
    ).train()
    tokenizer = embedder.text_tokenizer
    starts = tokenizer.pooled_from([embedder.prefix("query")] * len(TEXTS))
    ids = tokenizer([embedder.prefix("query") + text for text in TEXTS], 48).ids
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-2, weight_decay=0.0))
    for kept in (0.0, 1e9):
        batch = pack(ids, 64, tokenizer.pad_id, pooled_from=starts)
        cached_backward(backend, batch, similarity, ActivationBudget(kept, 1.0))
        assert all(each.grad is not None for each in embedder.head.parameters())
        assert backend.update(1e-2, 0.0, lambda norm: norm > 0) > 0
    return embedder


def assert_same(folder: Path, embedder: Embedder) -> None:
    """sentence-transformers and Nestling give the embeddings of a model in memory from its directory."""
    reference = SentenceTransformer(str(folder), device="cpu")
    again = Embedder.from_pretrained(folder, attn_implementation="eager")
    assert reference.get_embedding_dimension() == embedder.dim == again.dim
    for kind in ("query", "document"):
        ours = embedder.encode(TEXTS, kind=kind, max_length=48)  # type: ignore[arg-type]
        theirs = torch.tensor(reference.encode(TEXTS, prompt_name=kind, normalize_embeddings=True))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            ours,
            again.encode(TEXTS, kind=kind, max_length=48),  # type: ignore[arg-type]
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("build", [everything, tiny_embedding_gemma, tiny_stella, tiny_sentence_t5])
def test_trained_exported_and_loaded_by_sentence_transformers(
    tmp_path: Path, build: Callable[[Path], Path], tuning: str
) -> None:
    base = build(tmp_path / "base")
    embedder = trained(base, tuning)
    before = Embedder.from_pretrained(base, attn_implementation="eager").head.state_dict()
    changed = [not torch.equal(tensor, before[name]) for name, tensor in embedder.head.state_dict().items()]
    assert all(changed)
    report = export_embedder(embedder, tmp_path / "final", **LENGTHS, dims=[16])
    assert report.failures == []
    assert report.changes.changed >= len(changed) + 2
    assert_same(tmp_path / "final", embedder)
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["matryoshka_dimensions"] == [embedder.dim, 16]


def test_files_of_the_modules(tmp_path: Path) -> None:
    export_embedder(trained(everything(tmp_path / "base"), "lora"), tmp_path / "final", **LENGTHS)
    listed = json.loads((tmp_path / "final" / "modules.json").read_text())
    assert [each["path"] for each in listed] == [
        "",
        "1_Pooling",
        "2_Normalize",
        "3_Dense",
        "4_LayerNorm",
        "5_Dropout",
        "6_Dense",
    ]
    assert {each["type"].rpartition(".")[0] for each in listed} == {"sentence_transformers.models"}
    assert json.loads((tmp_path / "final" / "5_Dropout" / "config.json").read_text()) == {"dropout": 0.2}
    pooling = json.loads((tmp_path / "final" / "1_Pooling" / "config.json").read_text())
    assert pooling == flags("max_tokens", "weightedmean_tokens", include_prompt=False)
    for folder in ("final", "final/adapter"):
        assert load_file(tmp_path / folder / "6_Dense" / "model.safetensors").keys() == {
            "linear.weight",
            "linear.bias",
            "residual.weight",
        }
    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert "max and weighted mean pooling (without the prompt's tokens), then Normalize, Dense, LayerNorm" in card
    assert "is known to compute\nmax+weightedmean pooling, pooling without the prompt, Normalize and LayerNorm" in card
    assert "The modules behind the pooling were trained as a whole" in card
    assert "vllm serve" not in card


def test_a_card_names_the_versions_of_servers_that_read_dense_modules(tmp_path: Path) -> None:
    export_embedder(trained(tiny_stella(tmp_path / "base"), "full"), tmp_path / "final", **LENGTHS)
    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert "vLLM 0.11 or later (at" in card
    assert "Text Embeddings Inference 1.8 or later (prompts" in card
    assert "llama" not in card


def test_a_card_serves_no_adapter_alone_that_needs_trained_modules(tmp_path: Path) -> None:
    export_embedder(trained(tiny_stella(tmp_path / "base"), "lora"), tmp_path / "final", **LENGTHS)
    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert "vllm serve MODEL" in card
    assert "--enable-lora" not in card


def test_an_adapter_is_exported_again_with_the_modules_beside_it(tmp_path: Path) -> None:
    base = tiny_stella(tmp_path / "base")
    embedder = trained(base, "lora")
    export_embedder(embedder, tmp_path / "final", **LENGTHS)
    config = ExportConfig(adapter=str(tmp_path / "final" / "adapter"), base=str(base), output="unused")
    again = runpy.run_path(str(ROOT / "scripts" / "export.py"))["from_adapter"](
        Path(config.adapter or ""), config
    ).embedder
    assert isinstance(again.backbone, PeftModel)
    expected = embedder.encode(TEXTS, kind="query", max_length=48)
    torch.testing.assert_close(again.encode(TEXTS, kind="query", max_length=48), expected, atol=1e-6, rtol=0)
    without = Embedder.from_pretrained(base)
    without.backbone = load_lora(without.backbone, str(tmp_path / "final" / "adapter"))
    assert (without.encode(TEXTS, kind="query", max_length=48) - expected).abs().max() > 1e-3


def test_checkpoints_hold_the_modules(tmp_path: Path) -> None:
    base = tiny_stella(tmp_path / "base")
    embedder = trained(base, "lora")
    write_training(tmp_path, trainable_tensors(embedder), TrainingState())
    fresh = load_trainable(Embedder, str(base), lora=LORA, precision=torch.float32)
    restore_tensors(tmp_path, fresh)
    assert {name for name in trainable_tensors(fresh) if name.startswith("head.")} == {
        "head.0.linear.weight",
        "head.0.linear.bias",
    }
    ours, expected = (each.encode(TEXTS, kind="query", max_length=48) for each in (fresh, embedder))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_gate_finds_modules_that_were_not_written_as_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = trained(tiny_stella(tmp_path / "base"), "full")
    from nestling.export import embedder as exporting

    def write_wrongly(head: torch.nn.Module, folder: Path) -> list[tuple[str, str]]:
        weight = head[0].linear.weight  # type: ignore[index]
        own = weight.data.clone()
        weight.data = own.flip(0)
        try:
            return write(head, folder)  # type: ignore[arg-type]
        finally:
            weight.data = own

    write = exporting.write_head
    monkeypatch.setattr(exporting, "write_head", write_wrongly)
    with pytest.raises(ExportError, match=r"transformers: cosine [\s\S]*sentence-transformers: cosine"):
        export_embedder(embedder, tmp_path / "final", **LENGTHS)


def test_modules_stay_in_float32_beside_weights_in_bfloat16(tmp_path: Path) -> None:
    embedder = trained(tiny_stella(tmp_path / "base"), "full")
    report = export_embedder(embedder, tmp_path / "final", dtype=torch.bfloat16, **LENGTHS)
    (dense,) = (tmp_path / "final").glob("*_Dense/model.safetensors")
    assert {each.dtype for each in load_file(dense).values()} == {torch.float32}
    assert report.sentence_transformers is not None
    assert report.sentence_transformers > 0.9999999  # 0.999998 if sentence-transformers rounds them
