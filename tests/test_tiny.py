import hashlib
import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tiny import DEFAULT_QUERY_PROMPT, tiny_bert, tiny_qwen3

TEXTS = ["find files", "向量检索", "def f(x):\n    return x", "word " * 200]


def test_qwen3_loads_in_transformers_and_ends_every_text_in_endoftext(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<|endoftext|>", "<|im_end|>", "left")
    ids = tokenizer(TEXTS, truncation=True, max_length=16)["input_ids"]
    assert {row[-1] for row in ids} == {tokenizer.pad_token_id}
    assert max(len(row) for row in ids) == 16
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.rope_parameters["rope_theta"] == 1000000


def test_qwen3_loads_in_sentence_transformers(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.prompts["query"] == DEFAULT_QUERY_PROMPT
    vectors = model.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    assert vectors.shape == (4, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert (vectors @ vectors.T - torch.eye(4)).abs().max() < 0.99


def test_bare_qwen3_is_a_causal_language_model_whose_tokenizer_appends_nothing(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path, sentence_transformers=False)
    assert not (folder / "modules.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("find files")["input_ids"][-1] != tokenizer.pad_token_id
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    _, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bert_loads_in_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    folder = tiny_bert(tmp_path, pooling, prompts=prompts)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model[1].get_config_dict()["pooling_mode"] == pooling
    assert model.prompts == prompts
    assert model.max_seq_length == 64
    vectors = model.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    assert vectors.shape == (4, 48)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


def test_bert_without_normalize_and_prompts(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path, normalize=False)
    assert len(json.loads((folder / "modules.json").read_text())) == 2
    model = SentenceTransformer(str(folder), device="cpu")
    assert (model.encode(["find files"], convert_to_tensor=True).norm() - 1).abs() > 0.1


def test_seeds_decide_the_weights_and_leave_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    folders = [tiny_qwen3(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = (_digests(folder) for folder in folders)
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
