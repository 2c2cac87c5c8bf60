"""Three SGD steps of one training task: on the ranks of a backend, and by a plain reference in one process.

SGD, because AdamW hides a gradient that is a constant factor off.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from ranks import ROOT
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from nestling.adapters import attach_lora
from nestling.backends import Backend, prepare
from nestling.batching import Draw, Plan, Source
from nestling.cached import GraphBudget, cached_backward
from nestling.checkpoint import Checkpoints, TrainingState, write_training
from nestling.collation import Collator
from nestling.config import LossConfig
from nestling.distributed import gather_batch
from nestling.embedder import Embedder
from nestling.losses import cosent, distillation, info_nce
from nestling.optim import adamw
from nestling.records import load_records

DIMS = {64: 1.0, 16: 0.5}
STEPS = 3
BUDGETS = {"none": GraphBudget(0.0, 1.0), "some": GraphBudget(45.0, 1.0), "all": GraphBudget(float("inf"), 1.0)}
Weights = dict[str, Tensor]


RANKED = [
    {"query": "one", "positives": ["a", "b"], "negatives": ["x"], "positive_scores": [3, 2], "negative_scores": [1]},
    {"query": "two", "positives": ["b"], "negatives": ["y", "z"], "positive_scores": [5], "negative_scores": [0, 1]},
    {"query": "three", "positives": ["c"], "negatives": [], "positive_scores": [4], "negative_scores": []},
    {"query": "four", "positives": ["d"], "negatives": ["x"], "positive_scores": [1], "negative_scores": [0]},
]
GRADED = [{"sentence1": f"left {i}", "sentence2": f"right {i % 3}", "score": (i * 7 % 4) / 4} for i in range(4)]


@dataclass(frozen=True)
class Case:
    """A way to train.

    Args:
        backend: ddp, zero1, zero2, zero3 or fsdp.
        kept: Which graphs stay between the passes: none, some or all.
        tuning: full or lora.
        kind: contrastive, distilled or graded.
        clip: What gradients are clipped to; 0 does not clip.
        whole: Whether whole gradients are kept until they are reduced once.
    """

    backend: str
    kept: str = "none"
    tuning: str = "full"
    kind: str = "contrastive"
    clip: float = 0.0
    whole: bool = True

    def __str__(self) -> str:
        clip, whole = "-clip" if self.clip else "", "" if self.whole else "-parts"
        return f"{self.backend}-{self.kept}-{self.tuning}-{self.kind}{clip}{whole}"


def write_data(folder: Path) -> None:
    for name, rows in (("ranked", RANKED), ("graded", GRADED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, case: Case) -> Embedder:
    embedder = Embedder.from_pretrained(folder / "model", dtype=torch.float32)
    if case.tuning == "lora":
        torch.manual_seed(0)
        embedder.backbone = attach_lora(embedder.backbone, r=4, alpha=8, dropout=0.0)
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:  # zeros at the start, under which A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    return embedder.train()


def collate(folder: Path, case: Case, embedder: Embedder, rank: int, world: int) -> Collator:
    file = folder / f"{'graded' if case.kind == 'graded' else 'ranked'}.jsonl"
    return Collator(
        [Source(load_records(file, progress=False))],
        Draw(positives=2, negatives=2, seed=0),
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=32,
        document_max_length=32,
        chunk_tokens=40,
        teacher=case.kind == "distilled",
        rank=rank,
        world_size=world,
    )


def plans() -> list[Plan]:
    return [Plan(0, rows, [step] * 4) for step, rows in enumerate([[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])]


def loss_config(case: Case) -> LossConfig:
    return LossConfig(temperature=0.2, distillation=0.7 if case.kind == "distilled" else 0.0)


def start(case: Case) -> Accelerator:
    """An Accelerator as the launchers configure it; accelerate wants GPUs for FSDP2, hence the detour there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()  # with which transformers would go on to shard what it loads
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)
    if case.backend.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        settings: dict[str, Any] = {
            "zero_optimization": {"stage": int(case.backend[-1]), "stage3_param_persistence_threshold": 0},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
        }
        handlers = [InitProcessGroupKwargs(backend="gloo")]
        return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings), kwargs_handlers=handlers)
    if case.backend == "fsdp":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        return Accelerator(cpu=True, fsdp_plugin=plugin)
    return Accelerator(cpu=True)


def prepared(folder: Path, case: Case, world: int, *, adam: bool = False) -> Backend:
    accelerator = start(case)  # before the model, as in the recipe: ZeRO-3 shards it while it loads
    embedder = load(folder, case)
    if adam:
        optimizer: torch.optim.Optimizer = adamw(embedder, learning_rate=1e-2, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD([each for each in embedder.parameters() if each.requires_grad], lr=0.1)
    backend = prepare(accelerator, embedder, optimizer, share=4 // world, max_norm=case.clip)
    expected = {"ddp": "DDP", "fsdp": "FSDP2"}.get(case.backend, f"DeepSpeed ZeRO-{case.backend[-1]}")
    assert backend.name == expected, backend.name  # accelerate falls back to DDP without a word
    assert backend.ranks == world
    if not case.whole:
        backend.whole_gradients = False  # type: ignore[attr-defined]
    return backend


def take_step(backend: Backend, case: Case, collator: Collator, plan: Plan) -> tuple[float, float]:
    """This rank's share of the loss, and the norm of the gradient."""
    batch, loss = collator[plan], loss_config(case)
    part = cached_backward(backend, batch.tokens, lambda each: recipe_share(each, batch, loss), BUDGETS[case.kept])
    norm = backend.update(0.1, case.clip, lambda norm: norm < float("inf"))
    return float(part), norm


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embed_recipe", ROOT / "train" / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHARE = recipe().loss_share


def recipe_share(embeddings: Tensor, batch: Any, loss: LossConfig) -> Tensor:
    share: Tensor = SHARE(embeddings, batch, loss, DIMS)
    return share


def save(backend: Backend, folder: Path, rank: int) -> None:
    """A checkpoint, as the recipe writes it."""
    tensors = backend.tensors()

    def write(path: Path) -> None:
        if rank == 0:
            write_training(path, tensors, TrainingState())
        backend.save_optimizer(path)

    Checkpoints(folder).save(1, write)


def train_on_ranks(folder: Path, case: Case, rank: int, world: int) -> Weights:
    """Trained weights after three steps, whole, on rank 0."""
    backend = prepared(folder, case, world)
    collator = collate(folder, case, backend.model, rank, world)
    for plan in plans():
        take_step(backend, case, collator, plan)
    return {name: each.detach().clone() for name, each in backend.tensors().items()}


def train_plainly(folder: Path, case: Case) -> tuple[Weights, Weights]:
    """Weights before and after the same steps: one process, one graph, the reference loss, gradients by hand."""
    embedder = load(folder, case)
    trained = {name: each for name, each in embedder.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    collator = collate(folder, case, embedder, 0, 1)
    for plan in plans():
        batch = collator[plan]
        embeddings = torch.cat([embedder(chunk) for chunk in batch.tokens.chunks])[batch.tokens.position]
        plain_loss(embeddings, batch, loss_config(case)).backward()
        gradients = [each.grad for each in trained.values() if each.grad is not None]
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        scale = min(1.0, case.clip / norm.item()) if case.clip else 1.0
        for each in trained.values():
            if each.grad is not None:
                each.data -= 0.1 * scale * each.grad
                each.grad = None
    return before, {name: each.detach().clone() for name, each in trained.items()}


def plain_loss(embeddings: Tensor, batch: Any, loss: LossConfig) -> Tensor:
    dims, weights = list(DIMS), list(DIMS.values())
    queries, documents = gather_batch(embeddings[batch.queries], embeddings[batch.documents], batch.document_counts)
    if batch.scores is not None:
        return cosent(
            queries, documents, batch.scores, temperature=loss.graded_temperature, dims=dims, dim_weights=weights
        )
    total = info_nce(queries, documents, batch.layout, temperature=loss.temperature, dims=dims, dim_weights=weights)
    if batch.group is not None:
        share = torch.full((len(queries),), 1 / len(queries))
        total = total + loss.distillation * distillation(
            queries,
            documents,
            batch.group,
            batch.teacher,
            share,
            temperature=loss.temperature,
            teacher_temperature=loss.teacher_temperature,
            dims=dims,
            dim_weights=weights,
        )
    return total
