"""Which differences between models' files a merge refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestling.export.cross_encoder import write_cross_encoder
from nestling.merging.compatibility import require_compatible
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import RerankerSettings
from tiny import tiny_qwen3


def edited(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def copies(tmp_path: Path, model: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(model, one)
    shutil.copytree(model, other)
    return one, other


def test_models_that_differ_in_their_weights_only(tmp_path: Path, qwen3: Path) -> None:
    other = tiny_qwen3(tmp_path / "other", seed=1)
    require_compatible([str(qwen3), str(other), str(qwen3)], str(other))
    require_compatible([str(qwen3)])
    # The same settings and vocabulary written differently, as other versions of the libraries do.
    edited(other, "config.json", lambda old: {**old, "transformers_version": "9", "dtype": "bfloat16", "new_key": 1})
    edited(other, "tokenizer.json", lambda old: dict(reversed(old.items())))
    require_compatible([str(qwen3), str(other)])


def test_an_encoder_without_prompts_has_empty_ones(tmp_path: Path, bert: Path) -> None:
    one, other = copies(tmp_path, bert)
    prompts = {"prompts": {"query": "", "document": ""}}
    edited(other, "config_sentence_transformers.json", lambda old: {**old, **prompts})
    require_compatible([str(one), str(other)])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"hidden_size": 32}, "config.json: hidden_size is 64 in .*one and 32 in .*other"),
        ("config.json", {"vocab_size": 99}, "config.json: vocab_size is"),
        ("config.json", {"rope_theta": 10000}, "config.json: rope_parameters is"),
        ("config.json", {"architectures": ["Qwen3Model"]}, "architecture is .*Qwen3ForCausalLM.* and .*Qwen3Model"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "tokenizer.json: normaliser of .* differ"),
        ("tokenizer.json", {"post_processor": None}, "tokenizer.json: tokens around a text of .* differ"),
        ("config_sentence_transformers.json", {"prompts": {"query": "q: "}}, "query prompt is .* and 'q: ' in"),
        ("config_sentence_transformers.json", {"prompts": None}, "query prompt is .* and None in"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True},
            "pooling is 'last'",
        ),
    ],
)
def test_every_difference_is_named(
    tmp_path: Path, qwen3: Path, file: str, change: dict[str, Any], message: str
) -> None:
    one, other = copies(tmp_path, qwen3)
    edited(other, file, lambda old: {**old, **change})
    with pytest.raises(ValueError, match=f"(?s)these models cannot be merged:.*{message}"):
        require_compatible([str(one), str(one), str(other)])


def test_several_differences_are_named_at_once(tmp_path: Path, qwen3: Path) -> None:
    one, other = copies(tmp_path, qwen3)
    edited(other, "config.json", lambda old: {**old, "rms_norm_eps": 1e-5})
    edited(other, "modules.json", lambda old: old[:2])
    with pytest.raises(ValueError, match=r"(?s)rms_norm_eps.*\n- normalisation is True in .* and False in"):
        require_compatible([str(one), str(other)])


def test_another_vocabulary_is_named(tmp_path: Path, qwen3: Path, bert: Path) -> None:
    one, other = copies(tmp_path, qwen3)

    def swapped(old: dict[str, Any]) -> dict[str, Any]:
        vocabulary = old["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        return old

    edited(other, "tokenizer.json", swapped)
    with pytest.raises(ValueError, match=r"tokenizer.json: vocabulary of .*one and .*other differ"):
        require_compatible([str(one)], str(other))
    (other / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json \(one has none\)"):
        require_compatible([str(one), str(other)])
    with pytest.raises(ValueError, match=r"config.json: model_type is 'qwen3' in .* and 'bert' in"):
        require_compatible([str(qwen3), str(bert)])


def test_a_base_need_not_be_used_like_the_models(qwen3: Path, qwen3_base: Path) -> None:
    """It has no pooling and no prompts, and its tokenizer appends no special token."""
    require_compatible([str(qwen3), str(qwen3)], str(qwen3_base))
    with pytest.raises(ValueError, match=r"(?s)pooling is 'last'.*query prompt is .*tokens around a text"):
        require_compatible([str(qwen3), str(qwen3_base)])


def test_affixes_of_a_vocabulary_that_are_null_or_empty_are_the_same(tmp_path: Path, qwen3: Path) -> None:
    """transformers' Qwen2Tokenizer, whose file an export of a bare decoder has, writes "" in the place of null."""
    one, other = copies(tmp_path, qwen3)
    for folder, affix in ((one, None), (other, "")):
        affixes = dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), affix)
        edited(folder, "tokenizer.json", lambda old, new=affixes: {**old, "model": {**old["model"], **new}})
    require_compatible([str(one)], str(other))
    edited(other, "tokenizer.json", lambda old: {**old, "model": {**old["model"], "end_of_word_suffix": "</w>"}})
    with pytest.raises(ValueError, match=r"tokenizer.json: vocabulary of"):
        require_compatible([str(one)], str(other))


def test_prompts_that_one_model_has_alone_do_not_matter(tmp_path: Path, qwen3: Path) -> None:
    one, other = copies(tmp_path, qwen3)

    def named(name: str, text: str) -> Callable[[Any], Any]:
        return lambda old: {**old, "prompts": {**old["prompts"], name: text}}

    edited(one, "config_sentence_transformers.json", named("shell", "Find the command"))
    edited(other, "config_sentence_transformers.json", named("bank", "Find the question"))
    require_compatible([str(one), str(other)])
    edited(other, "config_sentence_transformers.json", named("shell", "Find commands"))
    with pytest.raises(ValueError, match=r"prompt 'shell' is 'Find the command' in .* and 'Find commands' in"):
        require_compatible([str(one), str(other)])


def test_encoders(tmp_path: Path, bert: Path) -> None:
    one, other = copies(tmp_path, bert)
    require_compatible([str(one), str(other)])
    edited(
        other, "1_Pooling/config.json", lambda old: {**old, "pooling_mode_mean_tokens": False, "pooling_mode": "cls"}
    )
    with pytest.raises(ValueError, match=r"pooling is 'mean' in .* and 'cls' in"):
        require_compatible([str(one), str(other)])


def test_rerankers(tmp_path: Path, qwen3_base: Path) -> None:
    one, other = copies(tmp_path, qwen3_base)
    (other / "reranker.json").write_text(RerankerSettings(query_max_length=64).to_json())
    require_compatible([str(one), str(other)])  # its settings are the defaults that apply without it, but for a length
    (other / "reranker.json").write_text(RerankerSettings(instruction="Is it a command?").to_json())
    with pytest.raises(ValueError, match=r"reranker.json: instruction is .* and 'Is it a command.' in"):
        require_compatible([str(one), str(other)])
    for folder in (one, other):
        write_cross_encoder(Reranker.from_pretrained(qwen3_base), folder, "causal", 64)
    with pytest.raises(ValueError, match=r"reranker.json: instruction"):
        require_compatible([str(one), str(other)])
