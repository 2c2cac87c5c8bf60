import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from peft import PeftModel
from ranks import environment
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils.logging import is_progress_bar_enabled

import warm
from nestling.disk_errors import WriteError
from nestling.export.card import Card, Score
from nestling.export.embedder import export_embedder
from nestling.export.embedder_expectation import (
    EmbedderExpectation,
    expect_embeddings,
    probe_texts,
)
from nestling.export.embedder_gate import EXACT_COSINE, check_embedder
from nestling.export.gate import ExportError, require_passed, verdict
from nestling.export.serving_files import BaseFiles, copy_tokenizer_files, rope_keys
from nestling.models.adapter_merging import lora_delta
from nestling.models.adapters import attach_lora, load_lora
from nestling.models.attention import FLOAT32, register
from nestling.models.embedder import Embedder
from nestling.models.merged_weights import MergedWeights, computing_with
from nestling.models.weights import StoredWeights, write_weights
from nestling.run_files import DataLine
from tiny import tiny_bert, tiny_qwen3
from trained import with_lora, with_noise

# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TEXTS = ["find files by size", "向量检索", "def f(x):\n    return x"]


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def test_export_of_a_lora_decoder_passes_the_gate_within_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16)
    embedder = with_lora(Embedder.from_pretrained(base, precision=torch.bfloat16, instruction="Find the command"))
    before = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    trainable = [name for name, parameter in embedder.named_parameters() if parameter.requires_grad]
    card = Card(
        data=[DataLine("nl2bash", 8000, "pairs")],
        config={"learning_rate": 1e-4},
        scores=[Score("nl2bash", 64, "nDCG@10", 0.25, 0.75)],
    )
    final = tmp_path / "final"
    report = export_embedder(
        embedder,
        final,
        max_seq_length=64,
        dims=[16, 32],
        instructions={"sql": "Find SQL"},
        card=card,
    )
    assert report.failures == []
    assert re.findall(r"^checking the exported files: (.+)$", capsys.readouterr().err, re.MULTILINE) == [
        "merged weights",
        "transformers",
        "sentence-transformers",
        "base",
    ]
    assert is_progress_bar_enabled()
    assert logging.root.manager.disable == 0
    assert report.transformers is not None
    assert report.transformers >= 0.99999
    assert report.sentence_transformers is not None
    assert report.sentence_transformers >= 0.99999
    assert report.merged is not None
    assert report.merged >= 0.99999
    assert report.rounding is not None
    assert report.bfloat16 is not None
    assert report.base_bfloat16 is not None
    assert 0.999 <= min(report.rounding, report.bfloat16, report.base_bfloat16) < 1
    assert report.changes.changed == 14
    assert report.changes.tensors == 24
    assert report.changes.largest > 0.001

    for name, tensor in embedder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [name for name, parameter in embedder.named_parameters() if parameter.requires_grad] == trainable

    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "final"]
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (final / name).read_bytes() == (base / name).read_bytes()
    config = read(final, "config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["rope_theta"] == 1000000
    assert config["rope_scaling"] is None
    assert config["rope_parameters"] == {"rope_theta": 1000000, "rope_type": "default"}
    assert config["is_matryoshka"] is True
    assert config["matryoshka_dimensions"] == [64, 32, 16]
    assert read(final, "config_sentence_transformers.json") == {
        "prompts": {
            "query": "Instruct: Find the command\nQuery:",
            "document": "",
            "sql": "Instruct: Find SQL\nQuery:",
        },
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    assert read(final, "1_Pooling/config.json") == {
        "word_embedding_dimension": 64,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    assert read(final, "sentence_bert_config.json") == {"max_seq_length": 64, "do_lower_case": False}
    tokens = read(final, "tokenizer_config.json")
    assert "add_bos_token" not in tokens
    assert "<|im_start|>" in tokens["additional_special_tokens"]
    written = load_file(final / "model.safetensors")
    assert written.keys() == load_file(base / "model.safetensors").keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}

    metadata = metadata_load(final / "README.md")
    assert metadata is not None
    assert (metadata["base_model"], metadata["library_name"]) == ("base", "sentence-transformers")
    text = (final / "README.md").read_text(encoding="utf-8")
    assert "| nl2bash | 64 | 0.2500 → 0.7500 |" in text
    assert "learning_rate: 0.0001" in text
    assert "def pool_last(hidden" in text
    assert (
        "vllm serve base --runner pooling --enable-lora --max-lora-rank RANK --lora-modules mine=MODEL/adapter" in text
    )
    assert "--hf-overrides '{\"matryoshka_dimensions\": [64, 32, 16]}'" in text  # the base names no dimensions
    assert "llama-server -m model.gguf --embedding --pooling last" in text
    assert str(tmp_path) not in text

    restored = Embedder.from_pretrained(base, precision=torch.bfloat16, instruction="Find the command")
    restored.backbone = load_lora(restored.backbone, str(final / "adapter"))
    expected = embedder.encode(TEXTS, kind="query", max_length=32)
    torch.testing.assert_close(restored.encode(TEXTS, kind="query", max_length=32), expected)
    reloaded = Embedder.from_pretrained(final).encode(TEXTS, kind="query", max_length=32)
    assert cosine_similarity(reloaded, expected).min() > 0.999


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("lora", [True, False])
def test_export_of_an_encoder(tmp_path: Path, pooling: str, lora: bool) -> None:
    prompts = {"query": "query: ", "passage": "passage: ", "clustering": "cluster: "}
    base = tiny_bert(tmp_path / "base", pooling, prompts=prompts, normalize=lora)
    embedder = (with_lora if lora else with_noise)(Embedder.from_pretrained(base))
    report = export_embedder(embedder, tmp_path / "final", max_seq_length=48, dims=[embedder.dim])
    assert report.merged is not None
    assert report.merged >= 0.99999
    assert (report.rounding, report.bfloat16) == (None, None)  # float32 all the way
    assert read(tmp_path / "final", "config_sentence_transformers.json")["prompts"] == {
        "query": "query: ",
        "document": "passage: ",
        "passage": "passage: ",
        "clustering": "cluster: ",
    }
    assert len(read(tmp_path / "final", "modules.json")) == (3 if lora else 2)
    config = read(tmp_path / "final", "config.json")
    assert config["architectures"] == ["BertModel"]
    assert "rope_theta" not in config
    assert "is_matryoshka" not in config
    assert config.get("hidden_dropout_prob", 0.1) == 0.1
    assert (tmp_path / "final" / "adapter").exists() == lora
    text = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m model.gguf --embedding -c" in text  # without --pooling, which is wrong for encoders
    assert ("--enable-lora" in text) == lora  # which vLLM takes of BERT
    again = Embedder.from_pretrained(tmp_path / "final")
    assert (again.pooling, again.normalize, again.prompts) == (pooling, lora, embedder.prompts)


def test_export_of_a_bare_decoder_keeps_its_names_and_teaches_its_tokenizer_the_end(tmp_path: Path) -> None:
    base = tiny_qwen3(tmp_path / "base", sentence_transformers=False)
    embedder = with_noise(Embedder.from_pretrained(base))
    killed = tmp_path / ".final.0123abcd.partial"  # of an export that was killed
    (killed / "adapter").mkdir(parents=True)
    export_embedder(embedder, tmp_path / "final", max_seq_length=16, dtype=torch.bfloat16)
    assert not killed.exists()
    assert not (tmp_path / "final" / "adapter").exists()
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert read(tmp_path / "final", "config.json")["torch_dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    ids = tokenizer(["a", "word " * 90], truncation=True, max_length=16)["input_ids"]
    assert [len(row) for row in ids] == [2, 16]
    assert [row[-1] for row in ids] == [tokenizer.convert_tokens_to_ids("<|endoftext|>")] * 2


def drop_end_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def pool_the_mean(folder: Path) -> None:
    pooling = read(folder, "1_Pooling/config.json") | {
        "pooling_mode_lasttoken": False,
        "pooling_mode_mean_tokens": True,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def lose_the_prompts(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text("{}")


def restore_the_base(folder: Path) -> None:
    shutil.copyfile(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")


def cut_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def leave_a_tensor_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_theta(folder: Path) -> None:
    config = read(folder, "config.json")
    del config["rope_theta"], config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))


def name_an_attention_of_ours(folder: Path) -> None:
    register(FLOAT32)  # as a trainer does
    config = read(folder, "config.json") | {"attn_implementation": FLOAT32}
    (folder / "config.json").write_text(json.dumps(config))


def permute_rows(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"] = weights["layers.1.mlp.up_proj.weight"].flip(0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def take_the_weights_of_another_model(folder: Path) -> None:
    layers = read(folder, "config.json")["num_hidden_layers"]
    other = tiny_qwen3(folder.parent / "other", seed=1, layers=layers)
    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")


@pytest.fixture(scope="module", params=["full", "deep lora"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EmbedderExpectation]:
    """A directory that passed its gate: all weights of 2 layers in float32, or LoRA over 28 layers in bfloat16."""
    root = tmp_path_factory.mktemp("exported")
    deep = request.param == "deep lora"
    dtype = torch.bfloat16 if deep else torch.float32
    base = Embedder.from_pretrained(tiny_qwen3(root / "base", dtype=dtype, layers=28 if deep else 2))
    embedder = with_lora(base, scale=0.02) if deep else with_noise(base)
    export_embedder(embedder, root / "final", max_seq_length=32)
    return root, expect_embeddings(embedder, MergedWeights(embedder.backbone), dtype, 32, trained=True)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (drop_end_token, "probes end in token"),
        (pool_the_mean, "sentence-transformers: cosine"),
        (lose_the_prompts, "prompt 'query' is"),
        (restore_the_base, "transformers: cosine"),
        (permute_rows, "transformers: cosine"),
        (take_the_weights_of_another_model, "transformers: cosine"),
        (cut_the_weights, "transformers: SafetensorError"),
        (leave_a_tensor_out, "weights are missing: layers.1.mlp.up_proj.weight"),
        (forget_theta, "transformers: cosine"),
        (name_an_attention_of_ours, "it has no attention 'sdpa_float32'"),
    ],
)
def test_gate_finds_a_planted_fault(
    tmp_path: Path, exported: tuple[Path, EmbedderExpectation], fault: Callable[[Path], None], found: str
) -> None:
    root, expectation = exported
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    fault(tmp_path / "final")
    report = check_embedder(tmp_path / "final", expectation)
    with pytest.raises(ExportError, match=found):
        require_passed(report, tmp_path / "final")


@pytest.mark.parametrize("layers", [2, 28])
@pytest.mark.parametrize("scale", [0.0, 0.9, 2.0])  # not merged, merged with a wrong scale, merged twice
def test_gate_finds_a_wrong_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, scale: float) -> None:
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16, layers=layers)
    embedder = with_lora(Embedder.from_pretrained(base), scale=0.02)
    monkeypatch.setattr("nestling.models.merged_weights.lora_delta", lambda layer: scale * lora_delta(layer))
    with pytest.raises(ExportError, match=r"/final failed the parity gate:\n- merged weights: cosine"):
        export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_failed_directory_is_written_where_that_is_allowed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path / "base")))
    monkeypatch.setattr("nestling.models.merged_weights.lora_delta", lambda layer: 2 * lora_delta(layer))
    lengths = {"max_seq_length": 32}
    with pytest.raises(ExportError, match="--allow_failed_gate true"):
        export_embedder(embedder, tmp_path / "final", **lengths)
    report = export_embedder(embedder, tmp_path / "final", **lengths, allow_failed_gate=True)
    assert verdict(report) == "failed the parity gate, and was written all the same"
    assert "failed the parity gate" in caplog.text
    text = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert text.index("This directory failed its parity gate") < text.index("A text embedding model")
    assert "- **failed**: merged weights: cosine" in text


def test_what_rounding_costs_is_measured_and_the_better_way_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16)
    lengths = {"max_seq_length": 32}
    for scale in (0.05, 0.003):
        final = tmp_path / str(scale)
        report = export_embedder(with_lora(Embedder.from_pretrained(base), scale=scale), final, **lengths)
        assert report.rounding is not None
        assert report.other_rounding is not None
        assert report.of_training is not None
        assert report.failures == []
        outputs = Embedder.from_pretrained(final).encode(TEXTS, kind="query", max_length=32)
        exact = with_lora(Embedder.from_pretrained(base), scale=scale).encode(TEXTS, kind="query", max_length=32)
        assert report.rounding - 1e-4 < cosine_similarity(outputs, exact).min() < 1 - 1e-8
    assert report.of_training > 0.5  # nearly all changes are less than half of the distance between two numbers
    assert report.method == "nearest"  # layers that were not trained have no structure that noise would not hurt
    assert "% of what training changed; write the weights in float32" in caplog.text
    assert f"warning: {report.warnings[0]}" in (final / "README.md").read_text(encoding="utf-8")
    whole = tmp_path / "whole"
    report = export_embedder(
        with_lora(Embedder.from_pretrained(base), scale=0.003), whole, **lengths, dtype=torch.float32
    )
    assert (report.rounding, report.of_training, report.warnings) == (None, None, [])
    assert {tensor.dtype for tensor in load_file(whole / "model.safetensors").values()} == {torch.float32}


def test_changes_that_rounding_swallows_whole_are_a_warning(tmp_path: Path) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16)), scale=1e-5)
    report = export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    assert report.changes.changed == 0
    assert any("rounding has made all 24 tensors those of" in line for line in report.warnings)


# What a user runs, where nothing of a trainer can help.
USER = """
import sys
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": torch.float32})
found = {name: model.encode(sys.argv[3:], prompt_name=name) for name in ("query", "document")}
assert "nestling" not in sys.modules
save_file(found, sys.argv[2])
"""


def test_a_process_of_its_own_finds_what_the_gate_found(
    tmp_path: Path, exported: tuple[Path, EmbedderExpectation]
) -> None:
    root, expectation = exported
    texts = probe_texts(expectation.probe_length)
    command = [sys.executable, "-c", USER, str(root / "final"), str(tmp_path / "found"), *texts]
    done = warm.run(command, env=environment())
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found")
    cosines = cosine_similarity(torch.cat([found["query"], found["document"]]), expectation.outputs.written)
    assert cosines.min() >= EXACT_COSINE


def test_gate_refuses_an_adapter_that_has_learnt_nothing(tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_qwen3(tmp_path / "base"))
    assert isinstance(embedder.backbone, PreTrainedModel)
    embedder.backbone = attach_lora(embedder.backbone, r=4, alpha=8, dropout=0.0)  # B is zero
    with pytest.raises(ExportError, match="nothing was learnt"):
        export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_gate_compares_with_the_trained_model(exported: tuple[Path, EmbedderExpectation]) -> None:
    root, expectation = exported
    outputs = replace(expectation.outputs, trained=expectation.outputs.trained.flip(0))
    report = check_embedder(root / "final", replace(expectation, outputs=outputs))
    assert len(report.failures) == 1
    assert report.failures[0].startswith("merged weights: cosine")
    assert report.transformers is not None
    assert report.transformers >= 0.99999


def test_existing_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_bert(tmp_path / "base"))
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export_embedder(embedder, tmp_path / "final", max_seq_length=32)


def test_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder.from_pretrained(tiny_bert(tmp_path / "base"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match=r"^cannot write into .* are free, and the export needs .*; free space there"):
        export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_merge_equals_peft(tmp_path: Path) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path)))
    merged = dict(MergedWeights(embedder.backbone))
    assert isinstance(embedder.backbone, PeftModel)
    by_peft = embedder.backbone.merge_and_unload().state_dict()
    assert merged.keys() == by_peft.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, by_peft[name], rtol=0, atol=1e-7)


def test_computing_with_merged_weights_equals_a_merged_copy(tmp_path: Path) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path), dtype=torch.bfloat16))
    with computing_with(embedder, MergedWeights(embedder.backbone)):
        exchanged = embedder.encode(TEXTS, kind="query", max_length=32)
    assert {parameter.dtype for parameter in embedder.backbone.parameters()} == {torch.bfloat16, torch.float32}
    copy = Embedder.from_pretrained(tmp_path)
    copy.backbone.load_state_dict(dict(MergedWeights(embedder.backbone)))
    torch.testing.assert_close(exchanged, copy.encode(TEXTS, kind="query", max_length=32))


def test_weights_are_put_back_after_an_error(tmp_path: Path) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path)))
    before = {name: parameter.data_ptr() for name, parameter in embedder.named_parameters()}
    with pytest.raises(IndexError), computing_with(embedder, MergedWeights(embedder.backbone)):
        embedder.backbone(input_ids=torch.tensor([[10**6]]))
    assert {name: parameter.data_ptr() for name, parameter in embedder.named_parameters()} == before
    assert not any(module._forward_pre_hooks for module in embedder.modules())


def test_shards(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.full((10, 10), float(i)) for i in range(5)}
    write_weights(weights, tmp_path, prefix="model.", shard_bytes=900)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert read(tmp_path, files[-1])["metadata"] == {"total_size": 2000}
    stored = StoredWeights(str(tmp_path))
    assert {name: tensor[0, 0].item() for name, tensor in stored.items()} == {f"model.w{i}": i for i in range(5)}


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 5.0}, None),
        ({"rope_type": "yarn", "rope_theta": 5.0, "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}),
    ],
)
def test_rope_keys_for_both_versions(parameters: dict[str, object], scaling: dict[str, object] | None) -> None:
    assert rope_keys(parameters) == {"rope_parameters": parameters, "rope_theta": 5.0, "rope_scaling": scaling}
    assert rope_keys({"full_attention": parameters}) == {}
    assert rope_keys(None) == {}


@pytest.mark.parametrize("linked", ["files", "subfolder"])
def test_code_and_linked_files_of_the_base_stay_there(
    tmp_path: Path, linked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, private = tiny_bert(tmp_path / "base"), tmp_path / "private"
    private.mkdir()
    (base / "vocab.txt").unlink()
    (private / "vocab.txt").write_text("my password")
    shutil.move(base / "tokenizer.json", private / "tokenizer.json")
    (base / "modeling_own.py").write_text("raise SystemExit('code of the base was run')")
    for name in ("config.json", "tokenizer_config.json"):
        own = {"auto_map": {"AutoModel": "modeling_own.Own", "AutoTokenizer": ["modeling_own.Own", None]}}
        (base / name).write_text(json.dumps({**read(base, name), **own, "custom_pipelines": {}}))
    if linked == "files":
        for name in ("vocab.txt", "tokenizer.json"):
            (base / name).symlink_to(private / name)
    else:
        for path in [*base.glob("*.json"), base / "model.safetensors"]:
            if path.name not in ("modules.json", "config_sentence_transformers.json"):
                shutil.move(path, private / path.name)
        (base / "0_Transformer").symlink_to(private)
        modules = json.loads((base / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (base / "modules.json").write_text(json.dumps(modules))
    embedder = with_noise(Embedder.from_pretrained(base))
    export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    said = capsys.readouterr().err
    assert "auto_map and custom_pipelines left out" in said
    assert "vocab.txt is a link to a file outside the model and is not exported" in said
    written = [path for path in (tmp_path / "final").rglob("*") if path.is_file()]
    assert not any(path.is_symlink() or path.suffix == ".py" or b"password" in path.read_bytes() for path in written)
    assert not any(b"modeling_own" in path.read_bytes() for path in written)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "final")(TEXTS)["input_ids"]
    assert theirs == embedder.text_tokenizer(TEXTS, 128).ids


def test_a_hard_link_is_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "cached").write_text("a vocabulary")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.txt").hardlink_to(tmp_path / "cached")
    (tmp_path / "final").mkdir()
    copy_tokenizer_files(BaseFiles(str(tmp_path / "base")), tmp_path / "final")
    copy = tmp_path / "final" / "vocab.txt"
    assert (copy.read_text(), copy.stat().st_nlink) == ("a vocabulary", 1)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0").write_text("a vocabulary")
    (snapshot / "vocab.txt").symlink_to("../../blobs/0")
    assert BaseFiles(str(snapshot)).own_path("vocab.txt") == snapshot / "vocab.txt"
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to("../../../other")
    (tmp_path / "other").write_text("private")
    assert BaseFiles(str(snapshot)).own_path("vocab.txt") is None
