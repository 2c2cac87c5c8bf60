"""The content of a checkpoint; training resumed from it on the same number of ranks is bit-for-bit the same.

model.safetensors   trained parameters and persistent buffers (with LoRA only the adapter), in the model's own dtypes
optimizer.pt        the optimizer's state_dict; with DeepSpeed a folder instead (`nestling.backends.zero`)
state.json          the progress of the run, `TrainingState`

States of random generators are not saved, since recipes seed them at every step from (seed, step, rank).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@dataclass
class TrainingState:
    """The progress of a run.

    Args:
        step: Optimizer steps done, including skipped updates.
        data: Fingerprint of the training data.
        tokens: Tokens trained on, over all ranks.
        examples: Rows trained on, over all ranks.
        truncated: Texts that were truncated, over all ranks.
        best_metric: Best result on the dev sets; None before the first evaluation.
        best_step: The step of that result.
        evaluations_since_best: Evaluations since then, for early stopping.
        skipped_steps: Steps whose update was skipped because the loss or gradient was not finite.
        skipped_in_a_row: How many of the latest steps were skipped in a row.
    """

    step: int = 0
    data: str = ""
    tokens: int = 0
    examples: int = 0
    truncated: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def advance(self, examples: int, tokens: int, truncated: int) -> None:
        """Count a step with its rows, tokens and truncated texts."""
        self.step += 1
        self.examples += examples
        self.tokens += tokens
        self.truncated += truncated

    def record_evaluation(self, metric: float) -> None:
        """Record the result of an evaluation at the current step; of equal results the earlier one is the best."""
        if self.best_metric is None or metric > self.best_metric:
            self.best_metric, self.best_step, self.evaluations_since_best = metric, self.step, 0
        else:
            self.evaluations_since_best += 1

    def forget_best(self) -> None:
        """Go on as if there had been no evaluation; the next one is the best."""
        self.best_metric, self.best_step, self.evaluations_since_best = None, None, 0


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that require gradients and buffers of the state_dict, by name; a shared parameter once."""
    persistent = model.state_dict(keep_vars=True).keys()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return {name: value.detach() for name, value in {**parameters, **buffers}.items()}


def write_training(folder: Path, tensors: dict[str, Tensor], state: TrainingState) -> None:
    """Write a checkpoint without the optimizer: unsharded `trainable_tensors`, and the progress of the run."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / MODEL)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def save_optimizer(folder: Path, optimizer: dict[str, object]) -> None:
    """Write an unsharded state_dict of an optimizer."""
    # With a Python file object, torch keeps the OSError of a full disk as the context of its own RuntimeError.
    with (folder / OPTIMIZER).open("wb") as file:
        torch.save(optimizer, file)


def load_state(folder: Path) -> TrainingState:
    """The progress of the run at a checkpoint."""
    return TrainingState(**json.loads((folder / STATE).read_text(encoding="utf-8")))


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Load an optimizer's state in place.

    Raises:
        ValueError: The file is missing, or its parameter groups differ from the optimizer's.
    """
    if not (folder / OPTIMIZER).exists():
        raise ValueError(f"{folder} has no {OPTIMIZER}; resume with the backend that the run started with")
    saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    require_same_groups(folder, saved, optimizer)
    optimizer.load_state_dict(saved)


@torch.no_grad()
def restore_tensors(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's tensors into a model, in place; parameters keep their dtype, device and sharding.

    Raises:
        ValueError: The names, shapes or dtypes of the tensors differ from the model's.
    """
    saved, target = load_file(folder / MODEL), trainable_tensors(model)
    if saved.keys() != target.keys():
        missing, unknown = sorted(target.keys() - saved.keys()), sorted(saved.keys() - target.keys())
        raise ValueError(
            f"{folder / MODEL} is not of this model: {len(missing)} trained tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}; resume with the model and tuning that the run started with"
        )
    for name, tensor in target.items():
        stored = saved[name]
        if (stored.shape, stored.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{folder / MODEL}: {name} is {list(stored.shape)} {stored.dtype}, the model's is "
                f"{list(tensor.shape)} {tensor.dtype}; resume with the model and precision that the run started with"
            )
        if isinstance(tensor, DTensor):  # every rank has read the full tensor and takes its shard: nothing is sent
            stored = distribute_tensor(
                stored.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
            )
        tensor.copy_(stored)


def require_same_groups(folder: Path, saved: dict[str, list[dict[str, list[int]]]], optimizer: Optimizer) -> None:
    """Raise ValueError unless the saved parameter groups have as many tensors as the optimizer's."""
    stored = [len(group["params"]) for group in saved["param_groups"]]
    present = [len(group["params"]) for group in optimizer.param_groups]
    if stored != present:
        raise ValueError(
            f"{folder / OPTIMIZER} has parameter groups of {stored} tensors, this optimizer of {present}; "
            "resume with the model, tuning and weight decay that the run started with"
        )
