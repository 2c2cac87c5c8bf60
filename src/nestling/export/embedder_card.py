"""The model card of an exported embedder."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from nestling.export.card import Card, adapter_note, license_line, render_card
from nestling.export.embedder_usage import POOL_BY_MASK
from nestling.export.gate import GateReport
from nestling.models.pooling import Mode, Pooling, modes_of

MODES: Mapping[Mode, str] = {
    "last": "last token",
    "mean": "mean",
    "cls": "first token (CLS)",
    "max": "max",
    "mean_sqrt_len_tokens": "sum over root of length",
    "weightedmean": "weighted mean",
}
# Those that vLLM and TEI have.
SERVED_POOLINGS = ("last", "mean", "cls")
# Encoders whose adapters have been served by vLLM.
ADAPTED_ENCODERS = ("bert",)


@dataclass(frozen=True)
class EmbedderFacts:
    """What the exported directory says about itself.

    Args:
        title: Its name.
        base: Name of the base model.
        license: The base's licence, None where it names none.
        pooling: How token states become one embedding.
        dim: Width of an embedding.
        dims: Matryoshka dimensions, empty when it was trained at the full one only.
        max_seq_length: Tokens at which the directory cuts texts, prompt included.
        trained_lengths: Tokens at which training cut queries and documents; None if not known.
        prompts: Prompts by name.
        lora: Whether adapter/ lies beside it.
        head: Kinds of the modules behind the pooling.
        pool_prompt: Whether pooling reads the tokens of prompts.
        model_type: Of its config.json.
        model_class: transformers' Auto class that loads it.
        own_code: Whether its class is in Python files of the directory.
    """

    title: str
    base: str
    license: str | None
    pooling: Pooling
    dim: int
    dims: Sequence[int]
    max_seq_length: int
    trained_lengths: tuple[int, int] | None
    prompts: Mapping[str, str]
    lora: bool
    head: Sequence[str] = ()
    pool_prompt: bool = True
    model_type: str = ""
    model_class: str = "AutoModel"
    own_code: bool = False

    @property
    def plain(self) -> bool:
        """Whether an embedding is one pooling of all token states and nothing else."""
        return len(modes_of(self.pooling)) == 1 and not self.head and self.pool_prompt

    @property
    def unserved(self) -> str | None:
        """What it has that neither vLLM nor TEI is known to compute; None where there is nothing."""
        others = [kind for kind in self.head if kind not in ("Dense", "Dropout")]
        reasons = {
            f"{self.pooling} pooling": self.pooling not in SERVED_POOLINGS,
            "pooling without the prompt": not self.pool_prompt,
            f"{' and '.join(dict.fromkeys(others))} before the end": bool(others),
            "the encoder of an encoder-decoder": self.model_class != "AutoModel",
            "the code in this directory": self.own_code,
        }
        return ", ".join(what for what, is_so in reasons.items() if is_so) or None

    @property
    def lengths(self) -> str:
        """How long texts may be, and were in training."""
        limit = f"`max_seq_length` is {self.max_seq_length}: longer texts are cut there, prompt included"
        if self.trained_lengths is None:
            return limit
        query, document = self.trained_lengths
        return f"{limit}; training cut queries to {query} and documents to {document} tokens"


def render_embedder_card(facts: EmbedderFacts, card: Card, report: GateReport) -> str:
    """README.md of an embedder."""
    return render_card(_front_matter(facts), _introduction(facts), _usage(facts), card, report, cut="Dimensions")


def _front_matter(facts: EmbedderFacts) -> ModelCardData:
    tags = [
        "sentence-transformers",
        "sentence-similarity",
        "feature-extraction",
        "text-embeddings-inference",
        "nestling",
    ]
    return ModelCardData(
        base_model=facts.base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license=facts.license,
        tags=tags + (["matryoshka"] if facts.dims else []),
    )


def _introduction(facts: EmbedderFacts) -> str:
    pooling = " and ".join(MODES[mode] for mode in modes_of(facts.pooling))
    behind = "" if facts.pool_prompt else " (without the prompt's tokens)"
    behind += f", then {', '.join(facts.head)}" if facts.head else ""
    nested = (
        f"Matryoshka, cut to any of {', '.join(map(str, facts.dims))} and normalise again" if facts.dims else "full"
    )
    prompts = "\n".join(f"| `{name}` | `{prompt!r}` |" for name, prompt in facts.prompts.items())
    return f"""# {facts.title}

A text embedding model, fine-tuned from {facts.base} with Nestling.

- Embedding: {facts.dim} dimensions ({nested}), {pooling} pooling{behind}, cosine similarity
- {facts.lengths}
{license_line(facts.license)}
{adapter_note(facts.lora)}{head_note(facts)}
Put the prompt before the text, byte for byte:

| Prompt | Text |
| --- | --- |
{prompts}
"""


def head_note(facts: EmbedderFacts) -> str:
    """A paragraph about modules that were trained beside an adapter; empty without."""
    if not (facts.lora and {"Dense", "LayerNorm"} & set(facts.head)):
        return ""
    return (
        "\nThe modules behind the pooling were trained as a whole: a server that puts `adapter/` onto the base needs "
        "them too.\n"
    )


def _usage(facts: EmbedderFacts) -> str:
    dims = facts.dims[-1] if facts.dims else facts.dim
    cut = (f", truncate_dim={dims}" if facts.dims else "") + trust(facts)
    sections = [
        f"""## Usage

`MODEL` is the path or hub id of this directory.

sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("MODEL"{cut})
queries = model.encode(["how do I list files?"], prompt_name="query")
documents = model.encode(["ls prints the names of files."], prompt_name="document")
print(model.similarity(queries, documents))
```
""",
        _transformers(facts),
        _servers(facts, dims),
    ]
    return "\n".join(sections)


def trust(facts: EmbedderFacts) -> str:
    """A further argument for those who load it."""
    return ", trust_remote_code=True" if facts.own_code else ""


def _transformers(facts: EmbedderFacts) -> str:
    if not facts.plain:
        return "transformers alone gives hidden states of tokens; what follows them is in sentence-transformers.\n"
    query = f"{facts.prompts['query']}how do I list files?"
    document = f"{facts.prompts['document']}ls prints the names of files."
    pool = POOL_BY_MASK[modes_of(facts.pooling)[0]]
    return f"""transformers:

```python
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import {facts.model_class}, AutoTokenizer


{inspect.getsource(pool)}

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = {facts.model_class}.from_pretrained("MODEL"{trust(facts)}).eval()
texts = [{query!r}, {document!r}]
limit = {facts.max_seq_length}
batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
query, document = normalize({pool.__name__}(hidden, batch["attention_mask"]), dim=-1)
print(query @ document)
```
"""


def _servers(facts: EmbedderFacts, dims: int) -> str:
    if facts.unserved is not None:
        return f"""Serve it with sentence-transformers: neither vLLM nor Text Embeddings Inference is known to compute
{facts.unserved}.
"""
    dimensions = f', "dimensions": {dims}' if facts.dims else ""
    cohere: dict[str, object] = {"model": "MODEL", "input_type": "query", "texts": ["how do I list files?"]}
    cohere |= {"embedding_types": ["float"]} | ({"output_dimension": dims} if facts.dims else {})
    python_dims = f"dimensions={dims}" if facts.dims else ""
    query = f"{facts.prompts['query']}how do I list files?"
    versions = (" 0.11 or later", " 1.8 or later") if "Dense" in facts.head else ("", "")
    return f"""vLLM{versions[0]} (at `/v1/embeddings` put the prompt before the text yourself; `/v2/embed` puts that of
`input_type` there):

```bash
vllm serve MODEL --runner pooling
curl localhost:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "MODEL", "input": ["TEXT WITH PROMPT"]{dimensions}}}'
curl localhost:8000/v2/embed -H 'Content-Type: application/json' \\
  -d '{json.dumps(cohere)}'
```

vLLM in Python:

```python
from vllm import LLM, PoolingParams

if __name__ == "__main__":  # where vLLM starts processes by spawning, as on CPUs, they import this file
    model = LLM("MODEL", runner="pooling")
    (output,) = model.embed([{query!r}], pooling_params=PoolingParams({python_dims}))
    print(output.outputs.embedding)
```
{_adapter_usage(facts)}{_llama_usage(facts)}
Text Embeddings Inference{versions[1]} (prompts by name):

```bash
text-embeddings-router --model-id MODEL --port 8080
curl localhost:8080/embed -H 'Content-Type: application/json' \\
  -d '{{"inputs": ["how do I list files?"], "prompt_name": "query", "truncate": true}}'
```
"""


def _adapter_usage(facts: EmbedderFacts) -> str:
    """How the adapter is served on its base; empty without LoRA, and for most encoders.

    Empty too for modules behind the pooling, of which vLLM would take the base's.
    """
    taken = facts.pooling == "last" or facts.model_type in ADAPTED_ENCODERS
    if not facts.lora or not taken or facts.head:
        return ""
    dimensions = f', "dimensions": {facts.dims[-1]}' if facts.dims else ""
    overrides = f" --hf-overrides '{json.dumps({'matryoshka_dimensions': list(facts.dims)})}'" if facts.dims else ""
    return f"""
vLLM, the adapter on its base (whose prompts and limit count); RANK is `r` in `adapter/adapter_config.json` or the next
of 8, 16, 32, 64, 128:

```bash
vllm serve {facts.base} --runner pooling --enable-lora --max-lora-rank RANK --lora-modules mine=MODEL/adapter{overrides}
curl localhost:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "mine", "input": ["TEXT WITH PROMPT"]{dimensions}}}'
```
"""


def _llama_usage(facts: EmbedderFacts) -> str:
    """How llama.cpp serves it; empty for modules behind the pooling, which have not been tried there."""
    if facts.head:
        return ""
    pooling_flag = "--pooling last " if facts.pooling == "last" else ""  # the GGUF of an encoder says how it pools
    return f"""
llama.cpp (put the prompt before the text yourself, cut embeddings and normalise again in the client):

```bash
llama.cpp/convert_hf_to_gguf.py MODEL --outfile model.gguf --outtype bf16
llama-server -m model.gguf --embedding {pooling_flag}-c 8192 -ub 8192 --port 8080
```
"""
