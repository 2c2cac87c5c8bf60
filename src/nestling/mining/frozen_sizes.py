"""What a guide and a teacher take, for a dry run, which loads neither: their weights, and vectors of their width.

Shapes: Q queries and N documents of a global batch, T dimensions of a frozen model, d of the model in training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.batches.embed_collation import EmbedBatch
from nestling.config import EmbedConfig
from nestling.losses.regression import Projections
from nestling.mining.stored_vectors import StoredVectors, is_stored
from nestling.models.auto_classes import text_model_class
from nestling.models.embedder import read_model_files, read_width
from nestling.models.remote_code import is_trusted
from nestling.models.token_model import read_config
from nestling.training.exportable import without_weights
from nestling.training.memory import gigabytes


def frozen_lines(config: EmbedConfig) -> Iterator[str]:
    """What each takes in memory on each process: before step 1, when it embeds all texts, and no longer."""
    for name, model in (("guide", config.guide), ("teacher", config.loss.teacher)):
        if model is not None and not is_stored(model):
            size = gigabytes(weight_bytes(model))
            yield f"loss.{name} {model}: {size} of weights on each process while it embeds all texts, before step 1"


def weight_bytes(model: str) -> int:
    """Bytes of an embedder's weights in float32, as a guide is loaded, by its config.json."""
    config = read_config(model, read_model_files(model).subfolder)
    backbone = without_weights(config, text_model_class(config), torch.float32, own_code=is_trusted(model))
    return int(4 * backbone.num_parameters())


def with_stand_ins(batch: EmbedBatch, config: EmbedConfig) -> EmbedBatch:
    """A batch with random vectors in the places of the guide's and the teacher's; graded pairs have none."""
    if batch.scores is not None:
        return batch
    sizes = len(batch.structure.query_text), len(batch.structure.document_text)
    return replace(
        batch,
        guide=stand_ins(config.guide, sizes),
        teacher_vectors=stand_ins(config.loss.teacher, sizes),
    )


def stand_ins(model: str | None, sizes: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Random unit vectors, [Q, T] and [N, T] float32, the same on all ranks; None without a model."""
    if model is None:
        return None
    generator, width = torch.Generator().manual_seed(0), frozen_width(model)
    queries, documents = (F.normalize(torch.randn(size, width, generator=generator), dim=1) for size in sizes)
    return queries, documents


def stand_in_projections(config: EmbedConfig, dims: Iterable[int], device: torch.device) -> Projections:
    """Projections of the sizes that regression has, [d, T] float32 of each dimension; none without regression."""
    if config.loss.teacher is None or config.loss.regression_weight == 0:
        return {}
    width = frozen_width(config.loss.teacher)
    return {dim: torch.eye(dim, width, device=device) for dim in dims}


def frozen_width(model: str) -> int:
    return StoredVectors(Path(model)).width if is_stored(model) else read_width(model)
