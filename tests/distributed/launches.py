"""Helpers for tests of training on several ranks: processes and backends as launchers configure them, and updates.

SGD, because AdamW hides a gradient that is a constant factor off.
"""

import importlib.util
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol, TypeVar

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from ranks import ROOT
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from nestling.backends import Backend, prepare
from nestling.backends.optimizer import adamw
from nestling.batches.sampling import BatchIndices
from nestling.config.training import OptimName
from nestling.models.adapters import attach_lora
from nestling.models.token_model import TokenModel

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp")
RATE = 0.1
QUERIES = 4  # of a global batch
Weights = dict[str, Tensor]


class Launch(Protocol):
    """A case of training that is tested.

    Attributes:
        backend: ddp, zero1, zero2, zero3 or fsdp.
        clip: What gradients are clipped to; 0 does not clip.
        full_gradients: Whether full gradients are kept until they are reduced once per step.
    """

    @property
    def backend(self) -> str: ...

    @property
    def clip(self) -> float: ...

    @property
    def full_gradients(self) -> bool: ...


Case = TypeVar("Case", bound=Launch)


def usable(cases: Sequence[Case]) -> list[Case]:
    """The cases whose packages are installed."""
    zero = importlib.util.find_spec("deepspeed") is not None
    return [case for case in cases if zero or not case.backend.startswith("zero")]


def require_deepspeed(case: Launch) -> None:
    if case.backend.startswith("zero"):
        pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")


def join(rank: int, world: int, port: int) -> None:
    """Set the environment variables that a launcher sets in its processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if importlib.util.find_spec("deepspeed") is not None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an optional kernel that takes a build


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(backend: str) -> Accelerator:
    """An Accelerator as the launchers configure it; for FSDP2 accelerate is told that there are GPUs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()  # with which transformers would go on to shard what it loads
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)
    if backend.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        settings: dict[str, Any] = {
            "zero_optimization": {"stage": int(backend[-1]), "stage3_param_persistence_threshold": 0},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
        }
        handlers = [InitProcessGroupKwargs(backend="gloo")]
        return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings), kwargs_handlers=handlers)
    if backend == "fsdp":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        return Accelerator(cpu=True, fsdp_plugin=plugin)
    return Accelerator(cpu=True)


def adapt(model: TokenModel) -> None:
    """Add LoRA adapters to a model, the same every time, all with a gradient."""
    torch.manual_seed(0)
    model.backbone = attach_lora(model.backbone, r=4, alpha=8, dropout=0.0)
    model.train_head()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at the start, under which A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1)


def launch(case: Launch, world: int, load: Callable[[], TokenModel], *, optim: OptimName | None = None) -> Backend:
    """The model in the backend of the case, with a kind of AdamW, or SGD."""
    accelerator = start(case.backend)  # before the model, as in the recipes: ZeRO-3 shards it while it loads
    model = load()
    if optim is not None:
        optimizer: torch.optim.Optimizer = adamw(model, learning_rate=1e-2, weight_decay=0.1, optim=optim)
    else:
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=RATE)
    backend = prepare(
        accelerator,
        model,
        optimizer,
        queries_per_rank=QUERIES // world,
        max_norm=case.clip,
        optim=optim or "adamw_torch_fused",
    )
    expected = {"ddp": "DDP", "fsdp": "FSDP2"}.get(case.backend, f"DeepSpeed ZeRO-{case.backend[-1]}")
    assert backend.name == expected, backend.name  # accelerate falls back to DDP without a word
    assert backend.ranks == world
    if not case.full_gradients:
        backend.full_gradients = False  # type: ignore[attr-defined]
    return backend


def global_batches() -> list[BatchIndices]:
    return [
        BatchIndices(0, rows, [step] * QUERIES) for step, rows in enumerate([[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
    ]


def recipe(name: str) -> ModuleType:
    """train/NAME.py, imported."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "train" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_by_hand(
    model: TokenModel,
    loss_of: Callable[[BatchIndices], Tensor],
    global_batches: Iterable[BatchIndices],
    clip: float,
    rate: float = RATE,
) -> tuple[Weights, Weights]:
    """Weights before and after a step for each global batch, in one process without chunks, with SGD written out."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    for indices in global_batches:
        loss_of(indices).backward()
        gradients = [each.grad for each in trained.values() if each.grad is not None]
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        scale = min(1.0, clip / norm.item()) if clip else 1.0
        for each in trained.values():
            if each.grad is not None:
                each.data -= rate * scale * each.grad
                each.grad = None
    return before, {name: each.detach().clone() for name, each in trained.items()}


def assert_same_update(before: Weights, expected: Weights, found: Weights) -> None:
    assert expected.keys() <= found.keys()
    update = flat({name: found[name] - before[name] for name in expected})
    wanted = flat({name: expected[name] - before[name] for name in expected})
    assert wanted.norm() > 1e-3, wanted.norm()
    assert (update.norm() / wanted.norm()).item() == pytest.approx(1.0, rel=1e-5)
    difference = (update - wanted).norm() / wanted.norm()
    assert difference.item() < 1e-5


def flat(weights: Weights) -> Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])
