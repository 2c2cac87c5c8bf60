"""The contrastive loss in blocks: against float64, and at size."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nestling.losses import chunked, reference
from nestling.losses.negatives import BatchStructure
from scripts.gpu.attention import relative_difference
from scripts.gpu.child import check_elsewhere
from scripts.gpu.place import Place

TEMPERATURE = 0.02
LIMIT = 1e-4  # TF32 keeps three digits, and is off by more


def check(place: Place) -> None:
    """Loss and gradients of float32 embeddings, against the reference in float64."""
    queries, width = place.size(256, 32), place.size(1024, 64)
    dims = [width, width // 4, width // 16]
    embeddings = similar_pairs(queries, width, place.device)
    structure = rows(queries, 3, place.device)
    found = with_gradients(chunked.info_nce, embeddings, structure, dims)
    wanted = with_gradients(reference.info_nce, [each.double() for each in embeddings], structure, dims)
    for name, ours, theirs in zip(("loss", "queries", "documents"), found, wanted, strict=True):
        place.require(f"contrastive loss: {name}", relative_difference(ours, theirs), LIMIT)
    torch.set_float32_matmul_precision("high")
    found = with_gradients(chunked.info_nce, embeddings, structure, dims)
    torch.set_float32_matmul_precision("highest")
    allowed = relative_difference(found[1], wanted[1])
    place.add("differences", quantity="contrastive loss: queries, if TF32 were allowed", found=allowed)


def check_with_tf32(place: Place) -> None:
    """The same where the environment turns float32 products to TF32, as images of NGC do."""
    check_elsewhere("scripts.gpu.losses:check", place, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1")


def measure(place: Place) -> None:
    """Seconds and memory of loss and gradient."""
    from nestling.training.profiling import PeakMemory  # slow, and `check_with_tf32` imports this file anew

    for queries, documents in place.size([(1024, 9), (8192, 2)], [(32, 3)]):
        width = place.size(1024, 64)
        dims = [width, width // 4, width // 16]
        embeddings = similar_pairs(queries, width, place.device, documents)
        step = partial(with_gradients, chunked.info_nce, embeddings, rows(queries, documents, place.device), dims)
        seconds, peak = place.median_seconds(step), PeakMemory(place.device)
        with peak:
            step()
        place.add("loss", queries=queries, documents_each=documents, seconds=seconds, peak_GB=peak.bytes / 1e9)


def similar_pairs(queries: int, width: int, device: torch.device, documents: int = 3) -> list[Tensor]:
    """[Q, D] and [documents * Q, D] float32: embeddings that are near those of their query, hence hard to tell."""
    torch.manual_seed(0)
    query = torch.randn(queries, width, device=device)
    noise = torch.randn(documents * queries, width, device=device)
    return [query, query.repeat(documents, 1) + noise]


def rows(queries: int, documents: int, device: torch.device) -> BatchStructure:
    """A positive a query and `documents - 1` hard negatives, standing column by column; all texts are different."""
    order = torch.arange(queries, device=device)
    every = torch.arange(documents * queries, device=device)
    return BatchStructure(
        query=order,
        positive=order,
        weight=torch.full((queries,), 1 / queries, device=device),
        owner=order.repeat(documents),
        is_negative=every >= queries,
        query_text=order,
        document_text=every,
        known_positives=order.unsqueeze(1),
    )


def with_gradients(
    loss_of: Callable[..., Tensor], embeddings: list[Tensor], structure: BatchStructure, dims: list[int]
) -> list[Tensor]:
    """The loss, and its gradients with respect to queries and documents."""
    inputs = [each.detach().requires_grad_() for each in embeddings]
    loss = loss_of(*inputs, structure, temperature=TEMPERATURE, dims=dims)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]
