"""The model card, README.md of an exported directory: what it is, where it comes from, how each stack uses it."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData, metadata_load

from nestling.export.embedder_gate import POOL_BY_MASK
from nestling.export.gate import Report
from nestling.models.pooling import Pooling
from nestling.models.weights import model_file
from nestling.run_files import DATA, METRICS, DataLine, evaluation_at

# Figures of an evaluation: dataset -> dimension -> metric -> value.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Score:
    """A figure before and after training; None where it was not measured.

    An embedder's is of embeddings cut to `dim`, a reranker's of `dim` candidates a query.
    """

    dataset: str
    dim: int
    metric: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Card:
    """What the run knows and the exported directory does not.

    Args:
        title: Name of the model; by default that of its base, fine-tuned.
        base: Name of the base model; by default its hub id or the name of its folder.
        data: What it was trained on.
        config: Settings of the run, printed as YAML.
        scores: Figures before and after.
    """

    title: str | None = None
    base: str | None = None
    data: Sequence[DataLine] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    scores: Sequence[Score] = ()


def run_card(folder: Path, config: Mapping[str, object], step: int) -> Card:
    """The card of a run's model: what its folder says of its data, and of its evaluations before and at `step`."""
    lines = json.loads((folder / DATA).read_text(encoding="utf-8")) if (folder / DATA).exists() else []
    metrics = folder / METRICS
    scores = before_and_after(evaluation_at(metrics, 0), evaluation_at(metrics, step)) if metrics.exists() else []
    return Card(data=[DataLine(**line) for line in lines], config=config, scores=scores)


@dataclass(frozen=True)
class Facts:
    """What the exported directory says about itself.

    Args:
        title: Its name.
        base: Name of the base model.
        license: The base's licence, None where it names none.
        pooling: How token states become one embedding.
        dim: Width of an embedding.
        dims: Matryoshka dimensions, empty when it was trained at the full one only.
        query_max_length: Tokens of a query in training.
        document_max_length: Tokens of a document in training.
        prompts: Prompts by name.
        lora: Whether adapter/ lies beside it.
    """

    title: str
    base: str
    license: str | None
    pooling: Pooling
    dim: int
    dims: Sequence[int]
    query_max_length: int
    document_max_length: int
    prompts: Mapping[str, str]
    lora: bool


def before_and_after(before: Results, after: Results) -> list[Score]:
    """The figures of two evaluations side by side."""
    return [
        Score(dataset, dim, metric, before.get(dataset, {}).get(dim, {}).get(metric), value)
        for dataset, by_dim in after.items()
        for dim, metrics in by_dim.items()
        for metric, value in metrics.items()
    ]


def base_name(source: str) -> str:
    """Hub id of a base model, or the name of its folder: a card holds no path of anyone's machine."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def base_license(source: str) -> str | None:
    """The licence that the card of a directory or hub id names."""
    readme = model_file(source, "README.md")
    found = (metadata_load(readme) or {}).get("license") if readme is not None else None
    return None if found is None else str(found)


def render_card(facts: Facts, card: Card, report: Report) -> str:
    """README.md with its YAML front matter."""
    sections = [
        _introduction(facts),
        scores_section(card.scores, "Dimensions"),
        _usage(facts),
        data_section(card.data),
        config_section(card.config),
        gate_section(report),
    ]
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n".join(section for section in sections if section)


def _front_matter(facts: Facts) -> str:
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
    ).to_yaml()


def _introduction(facts: Facts) -> str:
    pooling = {"last": "last token", "mean": "mean", "cls": "first token (CLS)"}[facts.pooling]
    nested = (
        f"Matryoshka, cut to any of {', '.join(map(str, facts.dims))} and normalise again" if facts.dims else "full"
    )
    prompts = "\n".join(f"| `{name}` | `{prompt!r}` |" for name, prompt in facts.prompts.items())
    adapter = (
        "\nThe weights have the LoRA adapter merged in; the adapter itself lies in `adapter/`.\n" if facts.lora else ""
    )
    return f"""# {facts.title}

A text embedding model, fine-tuned from {facts.base} with Nestling.

- Embedding: {facts.dim} dimensions ({nested}), {pooling} pooling, cosine similarity
- Trained on queries of up to {facts.query_max_length} and documents of up to {facts.document_max_length} tokens,
  prompt included; raise `max_seq_length` in `sentence_bert_config.json` for longer texts
- Licence of the base: {facts.license or "not named by its files; see its own page"}
{adapter}
Put the prompt before the text, byte for byte:

| Prompt | Text |
| --- | --- |
{prompts}
"""


def scores_section(scores: Sequence[Score], cut: str) -> str:
    """A table of what was measured before and after training; `cut` is how the column of `Score.dim` is called."""
    if not scores:
        return ""
    metrics = list(dict.fromkeys(score.metric for score in scores))
    cells = {(score.dataset, score.dim, score.metric): score for score in scores}
    rows = list(dict.fromkeys((score.dataset, score.dim) for score in scores))
    lines = [
        f"| {dataset} | {dim} | " + " | ".join(_cell(cells.get((dataset, dim, metric))) for metric in metrics) + " |"
        for dataset, dim in rows
    ]
    return "\n".join(
        [
            "## Results",
            "",
            "Before → after training.",
            "",
            f"| Data | {cut} | {' | '.join(metrics)} |",
            f"| --- | ---: |{' ---: |' * len(metrics)}",
            *lines,
            "",
        ]
    )


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    before, after = ("?" if value is None else f"{value:.4f}" for value in (score.before, score.after))
    return f"{before} → {after}"


def _usage(facts: Facts) -> str:
    query = f"{facts.prompts['query']}how do I list files?"
    document = f"{facts.prompts['document']}ls prints the names of files."
    pool = POOL_BY_MASK[facts.pooling]
    dims = facts.dims[-1] if facts.dims else facts.dim
    cut = f", truncate_dim={dims}" if facts.dims else ""
    dimensions = f', "dimensions": {dims}' if facts.dims else ""
    return f"""## Usage

`MODEL` is the path or hub id of this directory.

sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("MODEL"{cut})
queries = model.encode(["how do I list files?"], prompt_name="query")
documents = model.encode(["ls prints the names of files."], prompt_name="document")
print(model.similarity(queries, documents))
```

transformers:

```python
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer


{inspect.getsource(pool)}

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModel.from_pretrained("MODEL").eval()
texts = [{query!r}, {document!r}]
limit = {max(facts.query_max_length, facts.document_max_length)}
batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
query, document = normalize({pool.__name__}(hidden, batch["attention_mask"]), dim=-1)
print(query @ document)
```

vLLM (put the prompt before the text yourself):

```bash
vllm serve MODEL --runner pooling
curl localhost:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "MODEL", "input": ["TEXT WITH PROMPT"]{dimensions}}}'
```

Text Embeddings Inference (prompts by name):

```bash
text-embeddings-router --model-id MODEL --port 8080
curl localhost:8080/embed -H 'Content-Type: application/json' \\
  -d '{{"inputs": ["how do I list files?"], "prompt_name": "query", "truncate": true}}'
```
"""


def data_section(data: Sequence[DataLine]) -> str:
    """A table of the training data."""
    if not data:
        return ""
    lines = [f"| {each.name} | {each.rows:,} | {_cell_text(each.summary)} |" for each in data]
    return "\n".join(["## Training data", "", "| Dataset | Rows | Summary |", "| --- | ---: | --- |", *lines, ""])


def _cell_text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def config_section(config: Mapping[str, object]) -> str:
    """The run's settings."""
    if not config:
        return ""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"## Training configuration\n\n```yaml\n{text}```\n"


def gate_section(report: Report) -> str:
    """What the gate measured."""
    return "\n".join(
        [
            "## Parity",
            "",
            "Measured at export, in a separate process:",
            "",
            *(f"- {line}" for line in report.lines()),
            "",
        ]
    )
