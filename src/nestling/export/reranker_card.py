"""The model card of an exported reranker."""

import inspect
import json
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from nestling.export.card import Card, adapter_note, license_line, render_card
from nestling.export.gate import GateReport
from nestling.export.reranker_expectation import Shape
from nestling.export.reranker_usage import score_causal, score_classifier, tokenize_pairs
from nestling.models.reranker_settings import AnySettings, RerankerSettings

PAIR = '("how do I list files?", "ls prints the names of files.")'


@dataclass(frozen=True)
class RerankerFacts:
    """What the exported directory says about itself.

    Args:
        title: Its name.
        base: Name of the base model.
        license: The base's licence, None where it names none.
        shape: What it holds.
        architecture: Of its config.json.
        settings: What it reads.
        max_length: Tokens of a prompt with a query and a document as long as those of training.
        cross_encoder: Whether sentence-transformers and a chat template can make its prompts.
        lora: Whether adapter/ lies beside it.
        trained: Whether its weights are other than the base's.
    """

    title: str
    base: str
    license: str | None
    shape: Shape
    architecture: str
    settings: AnySettings
    max_length: int
    cross_encoder: bool
    lora: bool
    trained: bool


def render_reranker_card(facts: RerankerFacts, card: Card, report: GateReport) -> str:
    """README.md of a causal reranker, in either of its shapes."""
    return render_card(front_matter(facts), _introduction(facts), _usage(facts), card, report, cut="Candidates")


def front_matter(facts: RerankerFacts) -> ModelCardData:
    return ModelCardData(
        base_model=facts.base,
        library_name="sentence-transformers" if facts.cross_encoder else "transformers",
        pipeline_tag="text-ranking",
        license=facts.license,
        tags=[*(["sentence-transformers", "cross-encoder"] if facts.cross_encoder else []), "reranker", "nestling"],
    )


def _introduction(facts: RerankerFacts) -> str:
    settings = facts.settings
    assert isinstance(settings, RerankerSettings)
    made = f"fine-tuned from {facts.base}" if facts.trained else f"converted from {facts.base}"
    held = {
        "causal": "a causal language model; a score is the probability of yes between its two answers",
        "classifier": "the weights of its two answers as a classifier of one label, whose sigmoid is the score",
    }[facts.shape]
    template = (
        "- `chat_template.jinja` makes the prompt from a query and a document: it is not one to chat with\n"
        if facts.cross_encoder
        else "- Without files of sentence-transformers, which would not give these scores\n"
    )
    return f"""# {facts.title}

A reranker of queries and documents, {made} with Nestling.

- {facts.architecture}: {held}
- Answers: {settings.yes!r} when the document is relevant, {settings.no!r} when it is not
- Trained on queries of up to {settings.query_max_length} and documents of up to {settings.document_max_length} tokens
{template}{license_line(facts.license)}
{adapter_note(facts.lora)}
The prompt, byte for byte and without special tokens around it, is
`PREFIX + "<Instruct>: " + INSTRUCTION + "\\n<Query>: " + query + "\\n<Document>: " + document + SUFFIX` with

```python
PREFIX = {settings.prefix!r}
INSTRUCTION = {settings.instruction!r}
SUFFIX = {settings.suffix!r}
```
"""


def _usage(facts: RerankerFacts) -> str:
    parts = ["## Usage\n\n`MODEL` is the path or hub id of this directory."]
    if facts.shape == "causal":
        parts.append(_nestling())
    if facts.cross_encoder:
        parts.append(_sentence_transformers())
    parts.append(_transformers(facts))
    if facts.cross_encoder and (facts.shape == "classifier" or facts.architecture == "Qwen3ForCausalLM"):
        parts.append(_vllm(facts))
    if facts.shape == "causal" and facts.architecture == "Qwen3ForCausalLM" and _as_published(facts.settings):
        parts.append(_llama_cpp())
    return "\n\n".join(parts) + "\n"


def _nestling() -> str:
    return f"""Nestling:

```python
from nestling.models.reranker import Reranker

model = Reranker.from_pretrained("MODEL")
print(model.score([{PAIR}]))
```"""


def _sentence_transformers() -> str:
    return f"""sentence-transformers 6:

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("MODEL")
print(model.predict([{PAIR}]))
print(model.predict([{PAIR}], prompt="another instruction"))
```"""


def _transformers(facts: RerankerFacts) -> str:
    causal = facts.shape == "causal"
    kind = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
    score = inspect.getsource(score_causal if causal else score_classifier)
    settings = facts.settings
    assert isinstance(settings, RerankerSettings)
    words = (settings.no, settings.yes)
    answers = f"""no, yes = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in {words!r})
print(score_causal(model, tokenizer, prompts, no, yes).exp()[:, 1])"""
    return f"""transformers:

```python
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import {kind}, AutoTokenizer, PreTrainedTokenizerBase


{inspect.getsource(tokenize_pairs)}

{score}

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = {kind}.from_pretrained("MODEL").eval()
prompts = tokenize_pairs(
    tokenizer,
    [{PAIR}],
    prefix=PREFIX,
    suffix=SUFFIX,
    instruction=INSTRUCTION,
    max_length={facts.max_length},
)
{answers if causal else "print(score_classifier(model, tokenizer, prompts).sigmoid())"}
```"""


def _vllm(facts: RerankerFacts) -> str:
    settings = facts.settings
    assert isinstance(settings, RerankerSettings)
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": [settings.no, settings.yes],
        "is_original_qwen3_reranker": True,
    }
    flag = f"--hf-overrides '{json.dumps(overrides)}' \\\n  " if facts.shape == "causal" else ""
    return f"""vLLM, with `MODEL` a path; a request may have an `instruction` of its own:

```bash
vllm serve MODEL --runner pooling \\
  {flag}--chat-template MODEL/chat_template.jinja
curl localhost:8000/v1/rerank -H 'Content-Type: application/json' \\
  -d '{{"model": "MODEL", "query": "how do I list files?", "documents": ["ls prints the names of files."]}}'
```"""


def _as_published(settings: AnySettings) -> bool:
    """Whether all but the instruction is that of the published Qwen3-Reranker, which llama.cpp's converter assumes."""
    return settings == RerankerSettings(
        instruction=settings.instruction,
        query_max_length=settings.query_max_length,
        document_max_length=settings.document_max_length,
    )


def _llama_cpp() -> str:
    return """llama.cpp, with `MODEL` a directory whose name holds `qwen3-reranker`. Before converting, put INSTRUCTION
in place of the instruction in `conversion/qwen.py` of llama.cpp:

```bash
llama.cpp/convert_hf_to_gguf.py MODEL --outfile model.gguf --outtype bf16
llama-server -m model.gguf --reranking --chat-template chatml -c 8192 -ub 8192 --port 8080
```"""
