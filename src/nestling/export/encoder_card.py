"""The model card of an exported encoder reranker."""

import inspect
import json

from nestling.export.card import Card, license_line, render_card
from nestling.export.gate import GateReport
from nestling.export.reranker_card import PAIR, RerankerFacts, front_matter
from nestling.export.reranker_usage import pair_batch, score_pairs
from nestling.models.reranker_settings import EncoderSettings

# Types of models whose classifiers Text Embeddings Inference serves.
SERVED_BY_TEI = ("bert", "camembert", "distilbert", "modernbert", "new", "roberta", "xlm-roberta")


def render_encoder_card(
    facts: RerankerFacts, settings: EncoderSettings, model_type: str, card: Card, report: GateReport
) -> str:
    """README.md of a model of a type, as transformers calls it."""
    introduction, usage = _introduction(facts, settings), _usage(facts, settings, model_type)
    return render_card(front_matter(facts), introduction, usage, card, report, cut="Candidates")


def _introduction(facts: RerankerFacts, settings: EncoderSettings) -> str:
    made = f"fine-tuned from {facts.base}" if facts.trained else f"converted from {facts.base}"
    score = "its sigmoid is the score" if settings.activation == "sigmoid" else "it is the score"
    instruction = f"\n- Queries begin with the instruction {settings.instruction!r}" if settings.instruction else ""
    return f"""# {facts.title}

A reranker of queries and documents, {made} with Nestling.

- {facts.architecture}: a cross-encoder with one logit; {score}
- Reads a query and a document as a pair of texts, up to {facts.max_length} tokens by its tokenizer's template
- Trained on queries of up to {settings.query_max_length} and documents of up to {settings.document_max_length} tokens\
{instruction}
{license_line(facts.license)}
"""


def _usage(facts: RerankerFacts, settings: EncoderSettings, model_type: str) -> str:
    parts = [
        "## Usage\n\n`MODEL` is the path or hub id of this directory.",
        _nestling(),
        _sentence_transformers(settings),
    ]
    parts.append(_transformers(facts, settings))
    if model_type in SERVED_BY_TEI:
        parts.append(_tei(settings))
    parts.append(_vllm(settings))
    return "\n\n".join(parts) + "\n"


def _nestling() -> str:
    return f"""Nestling:

```python
from nestling import Reranker

model = Reranker.from_pretrained("MODEL")
print(model.score([{PAIR}]))
```"""


def _sentence_transformers(settings: EncoderSettings) -> str:
    releases = "6" if settings.instruction else "5 or 6"  # release 5 puts no prompt before a query
    return f"""sentence-transformers {releases}:

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("MODEL")
print(model.predict([{PAIR}]))
```"""


def _transformers(facts: RerankerFacts, settings: EncoderSettings) -> str:
    return f"""transformers:

```python
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase


{inspect.getsource(pair_batch)}

{inspect.getsource(score_pairs)}

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForSequenceClassification.from_pretrained("MODEL").eval()
batch = pair_batch(
    tokenizer,
    [{PAIR}],
    instruction={settings.before_query!r},
    max_length={facts.max_length},
    padding=True,
    return_tensors="pt",
)
print(score_pairs(model, batch){".sigmoid()" if settings.activation == "sigmoid" else ""})
```"""


def _query(settings: EncoderSettings) -> str:
    return json.dumps(f"{settings.before_query}how do I list files?")


def _tei(settings: EncoderSettings) -> str:
    raw = "" if settings.activation == "sigmoid" else ', "raw_scores": true'
    return f"""Text Embeddings Inference{_of_requests(settings)}:

```bash
text-embeddings-router --model-id MODEL --port 8080
curl localhost:8080/rerank -H 'Content-Type: application/json' \\
  -d '{{"query": {_query(settings)}, "texts": ["ls prints the names of files."]{raw}, "truncate": true}}'
```"""


def _vllm(settings: EncoderSettings) -> str:
    return f"""vLLM{_of_requests(settings)}:

```bash
vllm serve MODEL --runner pooling
curl localhost:8000/v1/rerank -H 'Content-Type: application/json' \\
  -d '{{"model": "MODEL", "query": {_query(settings)}, "documents": ["ls prints the names of files."]}}'
```"""


def _of_requests(settings: EncoderSettings) -> str:
    return ", whose requests bring the instruction themselves" if settings.instruction else ""
