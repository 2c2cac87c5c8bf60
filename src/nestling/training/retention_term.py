"""What the model makes of random texts before training, which it is held to: `loss.retention_weight`.

Shapes: P random texts of a run, Q queries of a global batch, W ranks, n texts of this rank, D dimensions.
"""

from torch import Tensor

from nestling.batches.embed_collation import EmbedBatch
from nestling.batches.packing import pack
from nestling.config import LossConfig
from nestling.console import working
from nestling.losses.retention import retention
from nestling.training.loss_settings import Nested
from nestling.training.parts import EmbedParts


def embed_random_texts(parts: EmbedParts) -> Tensor | None:
    """[P, D] float32 by the model as it was loaded, on all ranks, which must all call it; None without the term."""
    collator = parts.collator
    if collator.random_texts is None:
        return None
    ids, prompt = collator.random_texts.ids, collator.random_texts.prompt
    tokens = pack(
        ids,
        collator.chunk_tokens,
        collator.tokenizer.pad_id,
        padding_free=collator.padding_free,
        pooled_from=collator.tokenizer.pooled_from([prompt] * len(ids)),
    )
    with working("embedding random words", shown=parts.accelerator.is_main_process):
        return parts.embed(tokens)


def retention_term(
    embeddings: Tensor, batch: EmbedBatch, loss: LossConfig, before: Tensor | None, nested: Nested
) -> Tensor | float:
    """This rank's part of the term, a scalar; the parts of all ranks sum to it.

    Args:
        embeddings: [n, D] raw embeddings of this rank's texts.
        batch: Which of them are random texts, Q/W, and of which row.
        loss: The objective.
        before: [P, D] of all random texts before training; None without the term.
        nested: The dimensions and their weights.
    """
    if before is None or batch.retained is None:
        return 0.0
    texts, rows = batch.retained
    ranks = len(batch.document_counts)
    weight = embeddings.new_full((len(texts),), loss.retention_weight / (ranks * len(texts)), dtype=before.dtype)
    return retention(embeddings[texts], before[rows], weight, **nested)
