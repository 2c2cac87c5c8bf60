"""What a tiny embedder does, against transformers and sentence-transformers."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from nestling.batches.packing import pack
from nestling.models.embedder import Embedder
from nestling.models.pooling import pool_padded

TEXTS = (
    "a",
    "list the files that changed during the last seven days, and count their lines",
    "The boundary layer becomes turbulent.",
    "人工智慧是研究如何使電腦模擬人類智慧的科學",
    "find files by size",
)


@torch.no_grad()
def by_transformers(folder: Path, ids: list[list[int]], pooling: str) -> Tensor:
    """[n, D] embeddings of texts by their token ids, each alone, with the plainest attention there is."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for each in ids:
        tokens = torch.tensor([each])
        hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        rows.append(pool_padded(hidden, torch.tensor([len(each)]), pooling))
    return normalize(torch.cat(rows), dim=-1)


@torch.no_grad()
def in_chunks(embedder: Embedder, ids: list[list[int]], size: int, packed: bool = False) -> Tensor:
    """[n, D] embeddings in chunks of about `size` positions."""
    batch = pack(ids, size, embedder.text_tokenizer.pad_id, padding_free=packed)
    with embedder.computing():
        return normalize(torch.cat([embedder(chunk) for chunk in batch.chunks])[batch.position], dim=-1)
