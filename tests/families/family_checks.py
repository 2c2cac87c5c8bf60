"""What a tiny embedder does, against transformers and sentence-transformers.

Shapes: n texts, D dimensions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import pack
from nestling.models.embedder import Embedder
from nestling.models.merged_weights import lora_layers, without_adapters
from nestling.models.pooling import Pooling, pool_padded
from nestling.models.trainable import load_trainable
from nestling.training.cached import ActivationBudget, cached_backward

TEXTS = (
    "a",
    "list the files that changed during the last seven days, and count their lines",
    "The boundary layer becomes turbulent.",
    "find files by size",
)
MAX_LENGTH = 32
# Chunks of the training step: the longest text alone, the others together.
CHUNK_TOKENS = 48
LORA: Mapping[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0}

Gradients = dict[str, Tensor]


def token_ids(embedder: Embedder) -> list[list[int]]:
    return embedder.text_tokenizer(TEXTS, MAX_LENGTH).ids


def by_transformers(model: torch.nn.Module, ids: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """[n, D] embeddings of texts by their token ids, each alone."""
    rows = []
    for each in ids:
        tokens = torch.tensor([each])
        hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        rows.append(pool_padded(hidden, torch.tensor([len(each)]), pooling))
    return normalize(torch.cat(rows), dim=-1)


def by_sentence_transformers(folder: Path) -> Tensor:
    """[n, D] embeddings of the texts, in one batch."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    model.max_seq_length = MAX_LENGTH
    return model.encode(list(TEXTS), prompt="", convert_to_tensor=True, show_progress_bar=False)


@torch.no_grad()
def in_chunks(embedder: Embedder, size: int, order: Sequence[int], *, packed: bool = False) -> Tensor:
    """[n, D] embeddings of the texts, which run in another order and in chunks of about `size` positions."""
    ids = token_ids(embedder)
    batch = pack([ids[i] for i in order], size, embedder.text_tokenizer.pad_id, padding_free=packed)
    rows = torch.cat([embedder(chunk) for chunk in batch.chunks])[batch.position]
    return normalize(rows, dim=-1)[torch.tensor(order).argsort()]


def contrastive(embeddings: Tensor) -> Tensor:
    """A loss in which every text has a part."""
    cosines = normalize(embeddings, dim=-1) @ normalize(embeddings, dim=-1).T
    return cross_entropy(cosines / 0.1, torch.tensor([1, 0, 3, 2]))


def gradients(model: torch.nn.Module) -> Gradients:
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def gradients_by_transformers(folder: Path, embedder: Embedder, pooling: Pooling) -> Gradients:
    """The gradient of every weight, of texts that run alone, without dropout."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    contrastive(by_transformers(model, token_ids(embedder), pooling)).backward()
    return gradients(model)


def loaded_to_train(folder: Path, *, lora: bool) -> Embedder:
    """The model as the recipe loads it. Raises ValueError where it refuses it, before training."""
    embedder = load_trainable(Embedder, str(folder), lora=LORA if lora else None, precision=torch.float32)
    lora_layers(embedder.backbone)
    return embedder.train()


def accumulate(embedder: Embedder) -> Gradients:
    """The gradient of a step's two passes, in chunks of which the last keeps its activations."""
    ids = token_ids(embedder)
    batch = pack(ids, CHUNK_TOKENS, embedder.text_tokenizer.pad_id, padding_free=embedder.padding_free)
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    backend.zero_grad()
    cached_backward(backend, batch, contrastive, ActivationBudget(memory=CHUNK_TOKENS / 2, position=1.0))
    return gradients(without_adapters(embedder.backbone))


def train(embedder: Embedder, steps: int = 2) -> None:
    """Some steps that change the embeddings clearly."""
    optimizer = adamw(embedder, learning_rate=3e-3, weight_decay=0.0)
    for _ in range(steps):
        accumulate(embedder)
        optimizer.step()
