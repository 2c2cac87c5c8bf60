"""Prompts of a model's files and of the settings, against sentence-transformers, and as an export has them."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nestling.batches.prompts import DEFAULT_INSTRUCTION, Prompts, instruct
from nestling.export.embedder import export_embedder
from nestling.models.embedder import Embedder
from nestling.models.model_prompts import choose_prompts
from nestling.records.record import Kind
from nestling.training.models import load_embedder
from tiny import tiny_bert, tiny_qwen3
from trained import with_lora
from training.test_exportable import embed_config

TEXTS = ["find all files", "向量检索", "a"]
BGE = "Represent this sentence for searching relevant passages: "
E5_MISTRAL = "Instruct: Retrieve semantically similar text\nQuery: "


def with_prompts(model: Path, **content: object) -> Path:
    (model / "config_sentence_transformers.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize(
    ("query_prompt", "document_prompt", "prompts"),
    [
        ("query: ", "passage: ", Prompts("query: ", "passage: ")),
        ("query: {text}", "passage: {}", Prompts("query: ", "passage: ")),
        (f"{BGE}{{}}", None, Prompts(BGE, "title: none | text: ")),
        ("", "", Prompts()),
        ("{text}", None, Prompts("", "title: none | text: ")),
    ],
)
def test_prompts_of_the_settings_equal_sentence_transformers(
    query_prompt: str, document_prompt: str | None, prompts: Prompts, tmp_path: Path
) -> None:
    model = tiny_bert(tmp_path, prompts={"query": "task: search | query: ", "document": "title: none | text: "})
    embedder = Embedder.from_pretrained(model, query_prompt=query_prompt, document_prompt=document_prompt)
    assert (embedder.prefix("query"), embedder.prefix("document")) == (prompts.default_query, prompts.document)
    own = {"query": prompts.default_query, "document": prompts.document}
    reference = SentenceTransformer(str(model), device="cpu", prompts=own)
    kinds: tuple[Kind, Kind] = ("query", "document")
    for kind in kinds:
        theirs = torch.tensor(reference.encode(TEXTS, prompt_name=kind))
        torch.testing.assert_close(embedder.encode(TEXTS, kind=kind, max_length=64), theirs, atol=2e-6, rtol=0)


def test_empty_prompts_of_a_decoder_stay_empty(tmp_path: Path) -> None:
    model = with_prompts(tiny_qwen3(tmp_path), prompts={"query": "", "document": ""})
    embedder = Embedder.from_pretrained(model)
    assert (embedder.prefix("query"), embedder.prefix("document")) == ("", "")
    theirs = torch.tensor(SentenceTransformer(str(model), device="cpu").encode_query(TEXTS))
    torch.testing.assert_close(embedder.encode(TEXTS, kind="query", max_length=64), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("content", [{}, {"prompts": {}}, {"prompts": {"query": None, "document": None}}])
def test_a_decoder_without_prompts_gets_the_default_instruction(content: dict[str, object], tmp_path: Path) -> None:
    model = with_prompts(tiny_qwen3(tmp_path), **content)
    assert choose_prompts(model, decoder=True) == Prompts(instruct(DEFAULT_INSTRUCTION))
    assert choose_prompts(model, decoder=False) == Prompts()
    assert choose_prompts(model, decoder=True, query_prompt="") == Prompts("", "", "")


def test_instructions_take_the_form_of_the_models_own_prompts(tmp_path: Path) -> None:
    """E5-Mistral's files have no prompt called "query", and a space after `Query:`."""
    model = with_prompts(tmp_path, prompts={"sts_query": E5_MISTRAL})
    prompts = choose_prompts(model, decoder=True)
    assert prompts.default_query == f"Instruct: {DEFAULT_INSTRUCTION}\nQuery: "
    assert prompts.query("Find it") == "Instruct: Find it\nQuery: "
    assert prompts.instructed
    assert choose_prompts(model, decoder=True, instruction="Find it").default_query == "Instruct: Find it\nQuery: "


def test_a_prompt_with_a_place_for_the_instruction(tmp_path: Path) -> None:
    model = with_prompts(tmp_path, prompts={"query": "own: ", "corpus": "text: "})
    form = "<instruct>{instruction}\n<query>"
    prompts = choose_prompts(model, decoder=True, query_prompt=form + "{text}")
    assert (prompts.query(), prompts.query("Find it"), prompts.document) == (
        "own: ",
        "<instruct>Find it\n<query>",
        "text: ",
    )
    prompts = choose_prompts(model, decoder=False, query_prompt=form, instruction="Find it")
    assert (prompts.query(), prompts.instructed) == ("<instruct>Find it\n<query>", True)


def test_the_default_prompt_of_sentence_transformers(tmp_path: Path) -> None:
    model = with_prompts(tmp_path, prompts={"s2p": "search: ", "document": ""}, default_prompt_name="s2p")
    assert choose_prompts(model, decoder=True) == Prompts("search: ", "")


# peft 0.21 reads a name that transformers 5.2x deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_prompts_are_exported_as_they_were_trained(tmp_path: Path) -> None:
    own = {"query": "query: ", "passage": "passage: ", "sts": "same: "}
    model = tiny_bert(tmp_path / "base", prompts=own)
    config = embed_config(
        model, tmp_path, query_prompt="{instruction}: {text}", document_prompt="", precision="fp32", tuning="full"
    )
    embedder = with_lora(load_embedder(config))
    final = tmp_path / "final"
    lengths = {"max_seq_length": 32}
    report = export_embedder(embedder, final, instructions={"sql": "Find SQL"}, **lengths)
    assert report.failures == []
    stored = json.loads((final / "config_sentence_transformers.json").read_text())["prompts"]
    expected = {"query": "query: ", "document": "", "sql": "Find SQL: ", "passage": "", "sts": "same: "}
    assert stored == expected
    assert "| `sql` | `'Find SQL: '` |" in (final / "README.md").read_text()
