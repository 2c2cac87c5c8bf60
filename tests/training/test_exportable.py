"""What an export refuses is refused before a training: in the same words, and before any weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from nestling.config import EmbedConfig, RerankConfig, parse_config
from nestling.export import cross_encoder
from nestling.export.embedder import export_embedder
from nestling.export.reranker import export_reranker
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.training.exportable import require_exportable
from nestling.training.models import load_embedder, load_reranker
from trained import with_lora

LENGTHS = {"max_seq_length": 32}


def embed_config(model: Path, folder: Path, **more: object) -> EmbedConfig:
    settings = {"model": model, "output_dir": folder / "run", "train": "rows", "use_cpu": "true", **more}
    return parse_config(EmbedConfig, None, [f"--{name}={value}" for name, value in settings.items()])


def rerank_config(model: Path, folder: Path, **more: object) -> RerankConfig:
    settings = {"model": model, "output_dir": folder / "run", "train": "rows", "use_cpu": "true", **more}
    return parse_config(RerankConfig, None, [f"--{name}={value}" for name, value in settings.items()])


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as refused:
        action()
    return str(refused.value)


def copy(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "model"))


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def without_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"no weights")


def bad_json(model: Path) -> None:
    (model / "sentence_bert_config.json").write_text("{")


def list_of_settings(model: Path) -> None:
    (model / "sentence_bert_config.json").write_text("[]")


def unknown_dtype(model: Path) -> None:
    change(model / "config.json", dtype="float8_e4m3fn")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (bad_json, "sentence_bert_config.json: "),
    (list_of_settings, "sentence_bert_config.json: expected a"),
    (
        unknown_dtype,
        "config.json: its dtype is 'float8_e4m3fn', expected float32, bfloat16, float16, float64; set export_dtype",
    ),
]


def test_sound_models_are_taken(bert: Path, qwen3: Path, qwen3_base: Path, tmp_path: Path) -> None:
    for model in (bert, qwen3, qwen3_base):
        require_exportable(embed_config(model, tmp_path))
        require_exportable(embed_config(model, tmp_path, tuning="full"))
    require_exportable(rerank_config(qwen3_base, tmp_path))


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_file_that_an_export_cannot_read(
    damage: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    model = copy(bert, tmp_path)
    embedder = with_lora(Embedder.from_pretrained(model))
    damage(model)
    at_export = refusal(lambda: export_embedder(embedder, tmp_path / "final", **LENGTHS))
    without_weights(model)
    assert refusal(lambda: require_exportable(embed_config(model, tmp_path))) == at_export
    assert message in at_export


def test_a_dtype_that_the_export_does_not_take_may_be_set(bert: Path, tmp_path: Path) -> None:
    model = copy(bert, tmp_path)
    unknown_dtype(model)
    require_exportable(embed_config(model, tmp_path, export_dtype="float32"))


def test_a_quantised_base(bert: Path, qwen3_base: Path, tmp_path: Path) -> None:
    model = copy(qwen3_base, tmp_path)
    change(model / "config.json", quantization_config={"quant_method": "fp8"})
    without_weights(model)
    for config in (embed_config(model, tmp_path), rerank_config(model, tmp_path)):
        with pytest.raises(ValueError, match="its weights are quantised, into which nothing can be merged; take the m"):
            require_exportable(config)


def test_adapters_that_cannot_be_merged(qwen3_base: Path, tmp_path: Path) -> None:
    """Here of a tied output layer; the weights are damaged, so that an attempt to load them would be another error."""
    model = copy(qwen3_base, tmp_path)
    config = rerank_config(model, tmp_path, **{"lora.target_modules": "embed_tokens"})
    reranker = load_reranker(config)
    at_export = refusal(lambda: export_reranker(reranker, tmp_path / "final"))
    without_weights(model)
    assert refusal(lambda: require_exportable(config)) == at_export
    assert "embed_tokens.weight is the weight of the output layer too" in at_export
    require_exportable(embed_config(model, tmp_path, **{"lora.target_modules": "embed_tokens"}))


def test_adapters_of_the_output_layer_of_a_reranker(qwen3_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora.target_modules \['lm_head'\]: "):
        require_exportable(rerank_config(qwen3_base, tmp_path, **{"lora.target_modules": "lm_head"}))


def test_modules_that_the_model_does_not_have(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora.target_modules \['absent'\]: "):
        require_exportable(embed_config(bert, tmp_path, **{"lora.target_modules": "absent"}))


def test_adapters_of_gpt2_whose_layers_are_transposed(qwen3_base: Path, tmp_path: Path) -> None:
    model = copy(qwen3_base, tmp_path)
    settings = GPT2Config(vocab_size=700, n_embd=32, n_layer=1, n_head=2).to_diff_dict()
    (model / "config.json").write_text(json.dumps({**settings, "architectures": ["GPT2LMHeadModel"]}))
    without_weights(model)
    require_exportable(embed_config(model, tmp_path))
    require_exportable(rerank_config(model, tmp_path))


def test_a_tokenizer_without_a_token_to_pad_with(qwen3_base: Path, tmp_path: Path) -> None:
    model = copy(qwen3_base, tmp_path)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    text = (model / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (model / "tokenizer.json").write_text(text)
    reranker = with_lora(Reranker.from_pretrained(model))
    at_export = refusal(lambda: export_reranker(reranker, tmp_path / "final"))
    without_weights(model)
    assert refusal(lambda: require_exportable(rerank_config(model, tmp_path))) == at_export
    assert refusal(lambda: require_exportable(embed_config(model, tmp_path))) == at_export
    assert "the tokenizer has neither a pad_token nor an eos_token; give it one" in at_export


def test_weights_under_names_that_the_model_does_not_have(bert: Path, tmp_path: Path) -> None:
    model = copy(bert, tmp_path)
    load_embedder(embed_config(model, tmp_path))
    weights = load_file(model / "model.safetensors")
    save_file(
        {f"another.{name}": each for name, each in weights.items()}, model / "model.safetensors", {"format": "pt"}
    )
    assert "not the weights that its config.json asks for" in refusal(
        lambda: load_embedder(embed_config(model, tmp_path))
    )


def test_a_release_that_cannot_check_a_reranker(
    bert: Path, qwen3_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_encoder, "version", lambda package: "5.2.1")
    reranker = with_lora(Reranker.from_pretrained(qwen3_base))
    at_export = refusal(lambda: export_reranker(reranker, tmp_path / "final"))
    assert at_export.startswith(
        "a reranker is exported as a CrossEncoder of sentence-transformers 6, and 5.2.1 is inst"
    )
    assert refusal(lambda: require_exportable(rerank_config(qwen3_base, tmp_path))) == at_export
    require_exportable(embed_config(bert, tmp_path))


def test_a_disk_without_room_for_the_result(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy(bert, tmp_path)
    without_weights(model)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=64e6))
    with pytest.raises((ValueError, OSError), match=r"0\.06 GB .*free, and the export needs 0\.00 GB"):
        require_exportable(embed_config(model, tmp_path))
