"""Settings that both training recipes have."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from nestling.config.checks import require


@dataclass(frozen=True)
class TrainData:
    """One training dataset.

    Args:
        path: A JSONL(.gz), Parquet or CSV file, a BEIR folder, or a dataset id.
        split: The split of a BEIR folder or of a dataset id.
        name: How reports call it; the file's name without its ending by default.
        instruction: Task of the queries of this dataset; a row's own instruction goes first.
        weight: How often an epoch visits each row: 0.5 takes half of the rows, 2 takes each twice.
        in_batch_negatives: Whether documents of other rows count as negatives; off for classification-like data.
    """

    path: str
    split: str = "train"
    name: str | None = None
    instruction: str | None = None
    weight: float = 1.0
    in_batch_negatives: bool = True

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, f"train: weight is {self.weight:g}, expected a finite number above 0")


@dataclass(frozen=True)
class DevData:
    """One development set in the BEIR layout.

    Args:
        path: The folder with corpus.jsonl, queries.jsonl and qrels/.
        split: Which qrels file to use.
        name: How reports call it; the folder's name by default.
        instruction: Task of its queries; the run's instruction by default.
    """

    path: str
    split: str = "dev"
    name: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters.

    Args:
        r: Rank.
        alpha: Scale; the update is alpha / r times B A.
        dropout: Dropout before A.
        targets: Names of the layers to adapt; every linear layer when empty.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.r > 0, f"lora.r is {self.r}, expected at least 1 (for full fine-tuning set tuning: full)")
        require(self.alpha > 0, f"lora.alpha is {self.alpha}, expected at least 1")
        require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout:g}, expected 0 <= dropout < 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What both recipes take.

    Args:
        model: Directory or hub id of the model to adapt.
        output_dir: Run folder; must not exist unless resume is set.
        train: Training datasets; on the command line paths with commas between do as well.
        instruction: Task of the queries; the model's own by default.
        query_max_length: Tokens of a query.
        document_max_length: Tokens of a document.
        tuning: Train low-rank adapters, the same over a base in 4 bits (qlora, on a GPU), or all weights.
        lora: Adapter settings, with tuning lora.
        precision: Compute in bfloat16 over float32 master weights, or in float32.
        dropout: Dropout inside the model, whatever its files say; null keeps theirs.
        checkpoint_length: Texts of more tokens recompute their activations in the backward pass (gradient
            checkpointing), 0 for all; null for none.
        chunk_tokens: Positions that run through the model at once; by default what suits the device.
        batch_size: Queries in a global batch, over all processes.
        negatives: Hard negatives drawn per query and step, rotating over the epochs.
        positives: Positives drawn per query and step, rotating over the epochs.
        mixing_temperature: Above 1, evens out the sizes of the datasets.
        epochs: Passes over the data.
        max_steps: Stop after this many steps.
        learning_rate: Peak learning rate of AdamW.
        schedule: Course of the learning rate after warm-up.
        warmup: Share of the steps over which the learning rate rises.
        weight_decay: Decoupled weight decay of matrices.
        max_grad_norm: Gradient norm is clipped to this; 0 does not clip.
        seed: Seeds sampling, initialisation and dropout.
        eval_steps: Evaluate on dev every so many steps; 0 evaluates after each epoch.
        early_stopping: Stop after so many evaluations without a better result; 0 never does.
        save_steps: Save a checkpoint every so many steps; 0 saves after each epoch.
        keep_checkpoints: Checkpoints kept beside the best one.
        export_best: Export the best checkpoint by dev nDCG@10 rather than the last.
        log_steps: Write a line of metrics every so many steps.
        wandb: Weights & Biases project to log to.
        tensorboard: Write TensorBoard files into the run folder.
        workers: Processes that read and tokenise.
        resume: Continue the run in output_dir.
        max_bad_steps: Stop after so many steps in a row with a non-finite loss or gradient.
        cpu: Train on the CPU even if there is a GPU.
        dry_run: Take the longest of the first batches forward and backward, print memory and speed, and train nothing.
    """

    model: str
    output_dir: str
    train: list[TrainData]
    instruction: str | None = None
    query_max_length: int = 512
    document_max_length: int = 512
    tuning: Literal["lora", "qlora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    dropout: float | None = 0.0
    checkpoint_length: int | None = 2048
    chunk_tokens: int | None = None
    batch_size: int = 64
    negatives: int = 7
    positives: int = 4
    mixing_temperature: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 42
    eval_steps: int = 0
    early_stopping: int = 0
    save_steps: int = 0
    keep_checkpoints: int = 2
    export_best: bool = True
    log_steps: int = 1
    wandb: str | None = None
    tensorboard: bool = False
    workers: int = 2
    resume: bool = False
    max_bad_steps: int = 5
    cpu: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(bool(self.train), "train is empty; name at least one dataset, such as --train data/sample.jsonl")
        for name in (
            "batch_size",
            "query_max_length",
            "document_max_length",
            "positives",
            "log_steps",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}, expected at least 1")
        for name in ("negatives", "eval_steps", "save_steps", "early_stopping", "workers", "seed"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}, expected 0 or more")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} is {value}, expected 0 or more")
        require(self.max_bad_steps >= 1, f"max_bad_steps is {self.max_bad_steps}, expected at least 1")
        for name in ("learning_rate", "epochs", "mixing_temperature"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value:g}, expected a finite number above 0")
        require(self.chunk_tokens is None or self.chunk_tokens > 0, f"chunk_tokens is {self.chunk_tokens}, not above 0")
        require(
            self.checkpoint_length is None or self.checkpoint_length >= 0,
            f"checkpoint_length is {self.checkpoint_length}, expected 0 or more, or null",
        )
        require(
            self.tuning != "qlora" or self.precision == "bf16",
            "tuning: qlora computes in bfloat16; set precision: bf16",
        )
        require(self.max_steps is None or self.max_steps > 0, f"max_steps is {self.max_steps}, expected at least 1")
        require(0 <= (self.dropout or 0.0) < 1, f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup:g}, expected a share of the steps, 0 <= warmup < 1")

    @property
    def query_instruction(self) -> str | None:
        """The task of queries without one of their own: as set, or that of all datasets if they share one."""
        of_datasets = {data.instruction for data in self.train}
        return self.instruction or (of_datasets.pop() if len(of_datasets) == 1 else None)

    def published(self) -> dict[str, object]:
        """The settings that make the model what it is, for its card: no folders of anyone's machine."""
        private = (
            "output_dir",
            "resume",
            "workers",
            "wandb",
            "tensorboard",
            "cpu",
            "log_steps",
            "keep_checkpoints",
            "dry_run",
        )
        settings = {name: value for name, value in asdict(self).items() if name not in private}
        settings["model"] = Path(self.model).name if Path(self.model).is_dir() else self.model
        for key in ("train", "dev"):
            settings[key] = [{**each, "path": Path(each["path"]).name} for each in settings[key]]
        return settings
