"""Rerankers exported as causal language models and classifiers, and what their gates find."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from jinja2 import TemplateError
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import AutoTokenizer, Ernie4_5Config, Ernie4_5ForCausalLM, PhiConfig, PhiForCausalLM

from families.causal_models import tiny_causal
from nestling.batches.pair_prompts import RerankPrompt
from nestling.export.card import Card, Score
from nestling.export.cross_encoder import chat_template
from nestling.export.gate import ExportError
from nestling.export.reranker import export_reranker
from nestling.export.reranker_expectation import RerankerExpectation, Shape
from nestling.export.reranker_gate import RerankerReport, check_reranker
from nestling.models.adapter_merging import lora_delta
from nestling.models.adapters import load_lora
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.weights import write_weights
from nestling.run_files import DataLine
from tiny import tiny_qwen3
from trained import with_lora, with_noise

# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

PAIRS = [
    ("find files by size", "find . -size +1M"),
    ("向量检索", "向量检索把查询和文档映射到同一个空间。"),
    ("read lines", "def f(x):\n    return x\n"),
]
SETTINGS = RerankerSettings(instruction="Find the command", query_max_length=40, document_max_length=80)


def base_model(folder: Path, **settings: Any) -> Path:
    """A tiny causal language model."""
    return tiny_qwen3(folder, sentence_transformers=False, **settings)


def untie(folder: Path) -> Path:
    """Give a model an output layer of its own."""
    config = read(folder, "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"]) / 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_lora_causal_passes_its_gate(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", dtype=torch.bfloat16)
    config = read(base, "tokenizer_config.json") | {"chat_template": "{{ messages[0].content }}"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    reranker = with_lora(Reranker.from_pretrained(base, precision=torch.bfloat16, settings=SETTINGS))
    before = {name: tensor.clone() for name, tensor in reranker.state_dict().items()}
    card = Card(
        data=[DataLine("nl2bash", 8000, "lists")],
        config={"learning_rate": 1e-4},
        scores=[Score("nl2bash", 100, "nDCG@10", 0.25, 0.75)],
    )
    final = tmp_path / "final"
    report = export_reranker(reranker, final, card=card)
    assert report.failures == []
    assert max(report.nestling or 1, report.transformers or 1, report.sentence_transformers or 1) < 1e-5
    assert report.merged is not None
    assert report.merged < 1e-5
    assert report.rounding is not None
    assert report.bfloat16 is not None
    assert report.base_bfloat16 is not None
    assert 0 < max(report.rounding, report.bfloat16, report.base_bfloat16) < 0.1
    assert (report.changes.tensors, report.changes.changed) == (24, 14)

    for name, tensor in reranker.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "final"]
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (final / name).read_bytes() == (base / name).read_bytes()
    config = read(final, "config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["dtype"], config["torch_dtype"], config["rope_theta"]) == ("bfloat16", "bfloat16", 1000000)
    written = load_file(final / "model.safetensors")
    assert written.keys() == load_file(base / "model.safetensors").keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert read(final, "1_LogitScore/config.json") == {
        "true_token_id": reranker.pairs.yes_id,
        "false_token_id": reranker.pairs.no_id,
    }
    assert RerankerSettings(**read(final, "reranker.json")) == SETTINGS
    assert "chat_template" not in read(final, "tokenizer_config.json")

    metadata = metadata_load(final / "README.md")
    assert metadata is not None
    assert (metadata["base_model"], metadata["pipeline_tag"]) == ("base", "text-ranking")
    text = (final / "README.md").read_text(encoding="utf-8")
    assert "| Data | Candidates | nDCG@10 |" in text
    assert "| nl2bash | 100 | 0.2500 → 0.7500 |" in text
    assert "learning_rate: 0.0001" in text
    assert '"classifier_from_token": ["no", "yes"]' in text
    assert str(tmp_path) not in text

    expected = reranker.score(PAIRS)
    restored = Reranker.from_pretrained(base, precision=torch.bfloat16, settings=SETTINGS)
    restored.backbone = load_lora(restored.backbone, str(final / "adapter"))
    torch.testing.assert_close(restored.score(PAIRS), expected, rtol=0, atol=0)
    again = Reranker.from_pretrained(final)
    assert again.settings == SETTINGS
    torch.testing.assert_close(again.score(PAIRS), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_give_the_same_scores(tmp_path: Path, tied: bool, lora: bool, dtype: torch.dtype) -> None:
    base = base_model(tmp_path / "base") if tied else untie(base_model(tmp_path / "base"))
    reranker = (with_lora if lora else with_noise)(Reranker.from_pretrained(base, settings=SETTINGS))
    causal, classifier = tmp_path / "causal", tmp_path / "classifier"
    report = export_reranker(reranker, causal, dtype=dtype)
    assert max(report.nestling or 1, report.transformers or 1, report.sentence_transformers or 1) < 1e-5
    assert report.merged is not None
    assert report.merged < 1e-5
    assert ((report.rounding or 0) > 1e-5) == (dtype == torch.bfloat16)
    of_classifier = export_reranker(reranker, classifier, dtype=dtype, shape="classifier")
    assert of_classifier.nestling is None
    assert max(of_classifier.transformers or 1, of_classifier.sentence_transformers or 1) < 1e-5

    scores = Reranker.from_pretrained(causal).score(PAIRS)
    torch.testing.assert_close(scores, reranker.score(PAIRS), rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)
    for folder in (causal, classifier):
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        found = model.predict(PAIRS, convert_to_tensor=True)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-6)
        other = Reranker.from_pretrained(causal).score(PAIRS, instruction="Another")
        found = model.predict(PAIRS, prompt="Another", convert_to_tensor=True)
        torch.testing.assert_close(found, other, rtol=0, atol=1e-6)

    written, logits = load_file(causal / "model.safetensors"), load_file(classifier / "model.safetensors")
    assert ("lm_head.weight" in written) == (not tied)
    assert logits.keys() - written.keys() == {"score.weight"}
    assert written.keys() - logits.keys() == (set() if tied else {"lm_head.weight"})
    head = written["model.embed_tokens.weight" if tied else "lm_head.weight"].double()
    row = head[reranker.pairs.yes_id] - head[reranker.pairs.no_id]
    torch.testing.assert_close(logits["score.weight"], row[None].float(), rtol=0, atol=0)
    config = read(classifier, "config.json")
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (config["num_labels"], config["pad_token_id"]) == (1, reranker.pairs.pad_id)
    assert not (classifier / "adapter").exists()
    assert not (classifier / "reranker.json").exists()


@pytest.mark.parametrize("shape", ["causal", "classifier"])
def test_the_usage_of_the_card_runs(tmp_path: Path, shape: Shape) -> None:
    reranker = with_noise(Reranker.from_pretrained(base_model(tmp_path / "base")))
    export_reranker(reranker, tmp_path / "final", shape=shape)
    text = (tmp_path / "final" / "README.md").read_text(encoding="utf-8").replace("MODEL", str(tmp_path / "final"))
    constants, *usages = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(usages) == (3 if shape == "causal" else 2)
    assert ("llama-server -m" in text) == (shape == "causal")
    expected = reranker.score([("how do I list files?", "ls prints the names of files.")]).item()
    for usage in usages:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(constants + usage, {})
        printed = re.search(r"[0-9]\.[0-9]+", output.getvalue())
        assert printed is not None
        assert abs(float(printed[0]) - expected) < 1e-4


@pytest.mark.parametrize("shape", ["causal", "classifier"])
@pytest.mark.parametrize("words", ["its own", "of BERT"])
def test_a_tokenizer_that_adds_special_tokens_stops_doing_so(
    tmp_path: Path, bert: Path, shape: Shape, words: str
) -> None:
    base = tiny_qwen3(tmp_path / "base")  # as published embedders: its weights have no prefix either
    (base / "modules.json").unlink()
    if words == "of BERT":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(bert / name, base / name)
    reranker = with_noise(Reranker.from_pretrained(base))
    assert len(reranker.tokenizer("a")["input_ids"]) > 1
    report = export_reranker(reranker, tmp_path / "final", shape=shape)
    assert report.changes.changed == report.changes.tensors == 24
    assert len(AutoTokenizer.from_pretrained(tmp_path / "final")("a")["input_ids"]) == 1
    assert read(tmp_path / "final", "modules.json")[0]["type"].startswith("sentence_transformers.base.modules")


def swap_answers(folder: Path) -> None:
    config = read(folder, "1_LogitScore/config.json")
    swapped = {"true_token_id": config["false_token_id"], "false_token_id": config["true_token_id"]}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(swapped))


def lose_the_last_line_break(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template.replace('\\n\\n" }}', '\\n" }}'), encoding="utf-8")


def answer_with_logits(folder: Path) -> None:
    config = read(folder, "config_sentence_transformers.json")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps(config | {"activation_fn": "torch.nn.modules.linear.Identity"})
    )


def read_more(folder: Path) -> None:
    config = read(folder, "sentence_bert_config.json")
    (folder / "sentence_bert_config.json").write_text(json.dumps(config | {"max_seq_length": 400}))


def forget_the_instruction(folder: Path) -> None:
    (folder / "reranker.json").write_text(replace(SETTINGS, instruction="Find a command").to_json())


def restore_the_base(folder: Path) -> None:
    shutil.copyfile(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")


def leave_a_tensor_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def append_special_tokens(folder: Path) -> None:
    embedder = tiny_qwen3(folder.parent / "embedder")
    shutil.copyfile(embedder / "tokenizer.json", folder / "tokenizer.json")


def flip_the_score(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("shape", "fault", "found"),
    [
        ("causal", swap_answers, "sentence-transformers: the logit of"),
        ("causal", lose_the_last_line_break, "sentence-transformers: the logit of"),
        ("causal", answer_with_logits, "sentence-transformers: predict gives"),
        ("causal", read_more, "sentence-transformers: max_seq_length is 400"),
        ("causal", forget_the_instruction, "Nestling: settings are .*Nestling: the logit of"),
        ("causal", restore_the_base, "transformers: the logit of .*nothing was learnt"),
        ("causal", leave_a_tensor_out, "weights are missing: model.layers.1.mlp.up_proj.weight"),
        ("classifier", append_special_tokens, "transformers: the tokenizer adds special tokens"),
        ("classifier", flip_the_score, "transformers: the logit of .*sentence-transformers: the logit of"),
    ],
)
def test_gate_finds_a_planted_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Shape, fault: Callable[[Path], None], found: str
) -> None:
    reranker = with_noise(Reranker.from_pretrained(base_model(tmp_path / "base"), settings=SETTINGS))

    def check(directory: Path, expectation: RerankerExpectation) -> RerankerReport:
        assert check_reranker(directory, expectation).failures == []
        fault(directory)
        return check_reranker(directory, expectation)

    monkeypatch.setattr("nestling.export.reranker.check_reranker", check)
    with pytest.raises(ExportError, match=f"(?s){found}"):
        export_reranker(reranker, tmp_path / "final", shape=shape)
    assert not [path.name for path in tmp_path.iterdir() if "final" in path.name]


def scaled_delta(scale: float, layer: LoraLayer) -> Tensor:
    return scale * lora_delta(layer)


@pytest.mark.parametrize("shape", ["causal", pytest.param("classifier", marks=pytest.mark.slow)])
def test_gate_finds_a_wrong_merge_at_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    base = base_model(tmp_path / "base", dtype=torch.bfloat16, layers=28)
    reranker = with_lora(Reranker.from_pretrained(base, settings=SETTINGS), scale=0.02)
    report = export_reranker(reranker, tmp_path / "sound", shape=shape)
    assert report.merged is not None
    assert report.merged < 1e-4
    assert max(report.transformers or 1, report.sentence_transformers or 1) < 1e-4
    for scale in (0.0, 2.0, 0.9):  # not merged, merged twice, merged with a wrong scale
        wrong = partial(scaled_delta, scale)
        monkeypatch.setattr("nestling.models.merged_weights.lora_delta", wrong)
        with pytest.raises(ExportError, match="merged weights: the logit of"):
            export_reranker(reranker, tmp_path / "final", shape=shape)


@pytest.mark.parametrize("shape", ["causal", "classifier"])
def test_weights_that_are_written_wrongly_leave_no_directory_unless_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    def write_half(weights: Mapping[str, Tensor], folder: Path, **settings: Any) -> None:
        write_weights({name: tensor / 2 for name, tensor in weights.items()}, folder, **settings)

    monkeypatch.setattr("nestling.export.reranker.write_weights", write_half)
    reranker = with_noise(Reranker.from_pretrained(base_model(tmp_path / "base")))
    with pytest.raises(
        ExportError, match=r"(?s)/final failed the parity gate:.*transformers: the logit of 'How do I list"
    ):
        export_reranker(reranker, tmp_path / "final", shape=shape)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    export_reranker(reranker, tmp_path / "final", shape=shape, allow_failed_gate=True)
    assert "This directory failed" in (tmp_path / "final" / "README.md").read_text(encoding="utf-8")


def test_a_directory_changes_its_shape(tmp_path: Path) -> None:
    reranker = with_lora(Reranker.from_pretrained(base_model(tmp_path / "base"), settings=SETTINGS))
    export_reranker(reranker, tmp_path / "causal", dtype=torch.bfloat16)
    again = Reranker.from_pretrained(tmp_path / "causal")
    with pytest.raises(ExportError, match="nothing was learnt"):
        export_reranker(again, tmp_path / "classifier", shape="classifier")
    report = export_reranker(again, tmp_path / "classifier", shape="classifier", trained=False)
    assert report.changes.tensors == 0
    assert "converted from causal" in (tmp_path / "classifier" / "README.md").read_text(encoding="utf-8")
    export_reranker(reranker, tmp_path / "direct", shape="classifier", dtype=torch.bfloat16)
    written, direct = (load_file(tmp_path / name / "model.safetensors") for name in ("classifier", "direct"))
    assert written.keys() == direct.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, direct[name]), name
    with pytest.raises(ValueError, match="is a classifier"):
        Reranker.from_pretrained(tmp_path / "classifier")


def test_a_model_without_sequence_classification(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    qwen = read(base, "config.json")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    config = Ernie4_5Config(**{name: qwen[name] for name in same}, num_key_value_heads=2, pad_token_id=0)
    Ernie4_5ForCausalLM(config).save_pretrained(base)
    reranker = with_noise(Reranker.from_pretrained(base))
    with pytest.raises(ValueError, match="no sequence classification for ernie4_5 models"):
        export_reranker(reranker, tmp_path / "classifier", shape="classifier")
    export_reranker(reranker, tmp_path / "causal")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "causal"]
    assert "vLLM" not in (tmp_path / "causal" / "README.md").read_text(encoding="utf-8")


def test_an_output_layer_with_bias_makes_no_classifier(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    qwen = read(base, "config.json")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = PhiForCausalLM(PhiConfig(**{name: qwen[name] for name in same}))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(base)
    reranker = with_noise(Reranker.from_pretrained(base))
    with pytest.raises(ValueError, match="the output layer has a bias"):
        export_reranker(reranker, tmp_path / "classifier", shape="classifier")
    report = export_reranker(reranker, tmp_path / "causal")
    assert (report.sentence_transformers or 1) < 1e-5


def test_capped_logits_make_no_classifier(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    capped = with_noise(Reranker.from_pretrained(tiny_causal("gemma2", tmp_path / "gemma2", base)))
    with pytest.raises(ValueError, match=r"the model caps its logits at 30, and a sequence classification does not"):
        export_reranker(capped, tmp_path / "classifier", shape="classifier")


def test_a_prompt_whose_parts_melt_together_gets_no_cross_encoder(tmp_path: Path) -> None:
    settings = RerankerSettings(prefix="", suffix="ing?")
    reranker = with_noise(Reranker.from_pretrained(base_model(tmp_path / "base"), settings=settings))
    report = export_reranker(reranker, tmp_path / "final")
    assert report.sentence_transformers is None
    assert (report.transformers or 1) < 1e-5
    assert not (tmp_path / "final" / "modules.json").exists()
    assert not (tmp_path / "final" / "chat_template.jinja").exists()
    text = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert "Without files of sentence-transformers" in text
    assert "CrossEncoder" not in text


def with_template(directory: Path, prompt: RerankPrompt) -> Callable[..., str]:
    """What renders messages (role, content) by the chat template of `prompt`."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = chat_template(prompt)

    def render(*messages: tuple[str, str], **variables: str | None) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **variables))

    return render


def test_chat_template_keeps_every_character(qwen3: Path) -> None:
    text = ' {{ "a" }} {% b %} {# c #} \\n \' 🙂\t人\r\n'
    prompt = RerankPrompt(prefix=text, suffix=f"{text}\n\n", instruction=text)
    render = with_template(qwen3, prompt)
    pair = (("query", text), ("document", text))
    assert render(*pair) == prompt.prefix + prompt.body(text, text) + prompt.suffix
    assert render(*pair, ("system", text)) == render(*pair, instruction=text) == render(*pair)


def test_chat_template_takes_the_instruction_of_a_message_or_a_request(qwen3: Path) -> None:
    prompt = RerankPrompt(instruction="Trained")
    render = with_template(qwen3, prompt)
    pair = (("query", "q"), ("document", "d"))

    def expected(instruction: str) -> str:
        return prompt.prefix + prompt.body("q", "d", instruction) + prompt.suffix

    assert render(*pair, instruction="Asked for") == expected("Asked for")
    assert render(("system", "A message"), *pair) == expected("A message")
    assert render(("system", "A message"), *pair, instruction="Asked for") == expected("A message")
    assert render(*pair, instruction=None) == render(*pair, instruction="") == expected("Trained")


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("system", "user"), "system, user"),
        (("user",), "user"),
        (("query",), "query"),
        (("document", "user", "assistant"), "document, user, assistant"),
    ],
)
def test_chat_template_refuses_chats(roles: tuple[str, ...], said: str, qwen3: Path) -> None:
    with pytest.raises(TemplateError, match=rf"of the role query and one of the role document; got the roles {said}$"):
        with_template(qwen3, RerankPrompt())(*((role, "text") for role in roles))


def test_existing_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    reranker = Reranker.from_pretrained(base_model(tmp_path / "base"))
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export_reranker(reranker, tmp_path / "final")
