"""Settings that both training recipes have, called as in transformers' TrainingArguments where it has them."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from nestling.config.attention import Attention, require_attention
from nestling.config.checks import changed, require, require_at_least, require_positive
from nestling.config.datasets import TrainData
from nestling.config.lora import LoraConfig

OptimName = Literal["adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"]

# They do not change the model; its card leaves them out, with the folders of somebody's machine.
NOT_ON_THE_CARD = (
    "output_dir",
    "resume",
    "dataloader_num_workers",
    "report_to",
    "use_cpu",
    "logging_steps",
    "save_total_limit",
    "dry_run",
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What both recipes take.

    Args:
        model: Directory or hub id of the model to adapt.
        output_dir: Folder of the run; must not exist, unless resume is true.
        train: Training datasets; on the command line also paths with commas between.
        dev_share: Share of each training dataset to hold out as dev; 0: none; default: some of an embedder's.
        instruction: Task of the queries; by default the model's own.
        query_max_length: Longest query in tokens; longer ones are cut.
        document_max_length: Longest document in tokens; longer ones are cut.
        tuning: Train LoRA adapters (lora), adapters over a base in 4 bits on a GPU (qlora), or all weights (full).
        lora: Settings of the adapters, for tuning lora and qlora.
        precision: Type of the computation, over float32 weights in training unless optim is adamw_torch_8bit.
        dropout: Dropout inside the model; null takes what the model's files say.
        gradient_checkpointing_length: Use gradient checkpointing for texts of more tokens; 0: for all, null: for none.
        chunk_tokens: Tokens, padding included, that run through the model at once; by default what suits the device.
        batch_size: Queries in a step, over all processes together.
        num_negatives: Hard negatives of a query in a step, drawn in turn over the epochs.
        num_positives: Positives of a query in a step, drawn in turn over the epochs.
        mixing_temperature: Values above 1 make the shares of large and small datasets more equal.
        num_train_epochs: Passes over the data.
        max_steps: Stop after this many steps; by default num_train_epochs counts.
        learning_rate: Peak learning rate of AdamW.
        lr_scheduler_type: Course of the learning rate after the warm-up.
        warmup_ratio: Share of the steps over which the learning rate rises.
        weight_decay: Weight decay of AdamW, on matrices only.
        adam_beta2: Decay of AdamW's second moment.
        optim: Kind of AdamW; those of 8 bits take less memory to train all weights (docs/gpu.md).
        max_grad_norm: Clip the gradient to this norm; 0: do not clip.
        seed: Seed of sampling, initialisation and dropout.
        eval_steps: Evaluate on dev every this many steps; 0: after each epoch.
        early_stopping_patience: Stop after this many evaluations without a better result; 0: never.
        save_steps: Save a checkpoint every this many steps; 0: after each epoch.
        save_total_limit: Checkpoints to keep, besides the best one.
        export_dtype: Type of the weights in final/; by default the base's own.
        logging_steps: Write a line of metrics every this many steps.
        report_to: Also log to wandb (its project is WANDB_PROJECT), to tensorboard, or to both.
        dataloader_num_workers: Processes that read and tokenize the data.
        trust_remote_code: Run the code that comes with the model, and export it too.
        resume: Continue the run in output_dir.
        use_cpu: Train on the CPU even if there is a GPU.
        dry_run: Run the longest of the first batches, print memory and speed, and train nothing.
    """

    model: str
    output_dir: str
    train: list[TrainData]
    dev_share: float | None = None
    instruction: str | None = None
    query_max_length: int = 512
    document_max_length: int = 512
    tuning: Literal["lora", "qlora", "full"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    precision: Literal["bf16", "fp32"] = "bf16"
    dropout: float | None = 0.0
    gradient_checkpointing_length: int | None = 2048
    chunk_tokens: int | None = None
    batch_size: int = 64
    num_negatives: int = 7
    num_positives: int = 4
    mixing_temperature: float = 1.0
    num_train_epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 1e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    optim: OptimName = "adamw_torch_fused"
    max_grad_norm: float = 1.0
    seed: int = 42
    eval_steps: int = 0
    early_stopping_patience: int = 0
    save_steps: int = 0
    save_total_limit: int = 2
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    logging_steps: int = 1
    report_to: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    dataloader_num_workers: int = 2
    trust_remote_code: bool = False
    resume: bool = False
    use_cpu: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(bool(self.train), "train is empty; name at least one dataset, such as --train data/sample.jsonl")
        require_at_least(1, self, "query_max_length", "document_max_length", "chunk_tokens", "batch_size")
        require_at_least(1, self, "num_positives", "max_steps", "save_total_limit", "logging_steps")
        require_at_least(0, self, "num_negatives", "eval_steps", "save_steps", "early_stopping_patience", "seed")
        require_at_least(0, self, "weight_decay", "max_grad_norm", "dataloader_num_workers")
        require_at_least(0, self, "gradient_checkpointing_length")
        require(self.seed < 2**63, f"seed is {self.seed}, expected less than 2 to the power of 63")
        require(
            0 <= (self.dev_share or 0.0) < 1,
            f"dev_share is {self.dev_share}, expected a share of the training data, 0 <= dev_share < 1",
        )
        require_positive(self, "learning_rate", "num_train_epochs")
        require(
            0.1 <= self.mixing_temperature < math.inf,  # below, sizes to the power of 1 / temperature overflow
            f"mixing_temperature is {self.mixing_temperature:g}, expected a finite number from 0.1: 1 takes datasets "
            "by their size, more makes their shares more equal",
        )
        require(
            self.mixing_temperature == 1 or len(self.train) > 1,
            f"mixing_temperature is {self.mixing_temperature:g}, of the shares of several datasets, and train has one; "
            "leave it out",
        )
        require(
            self.tuning != "qlora" or self.precision == "bf16",
            "tuning: qlora computes in bfloat16; set precision: bf16",
        )
        unused = changed(self.lora, "lora.")
        require(
            self.tuning != "full" or not unused,
            f"{', '.join(unused)}: of adapters, and tuning: full trains all weights without; leave this out, or set "
            "tuning: lora",
        )
        require(
            self.tuning == "full" or self.optim == "adamw_torch_fused",
            f"optim: {self.optim} saves memory where all weights are trained; with tuning: {self.tuning} use "
            "adamw_torch_fused",
        )
        require(0 <= self.adam_beta2 < 1, f"adam_beta2 is {self.adam_beta2}, expected 0 <= adam_beta2 < 1")
        require(0 <= (self.dropout or 0.0) < 1, f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        require(
            0 <= self.warmup_ratio < 1,
            f"warmup_ratio is {self.warmup_ratio:g}, expected a share of the steps, 0 <= warmup_ratio < 1",
        )

    @property
    def measures_by_default(self) -> bool:
        """Whether some training data is held out as a dev set if nothing is said of it."""
        return False

    @property
    def query_instruction(self) -> str | None:
        """The task of queries without one of their own: as set, or that of all datasets if they share one."""
        of_datasets = {data.instruction for data in self.train}
        return self.instruction or (of_datasets.pop() if len(of_datasets) == 1 else None)

    @property
    def bf16_weights(self) -> bool:
        """Whether the weights in training are bfloat16, since the optimizer rounds them stochastically."""
        return self.optim == "adamw_torch_8bit" and self.precision == "bf16"

    def card_settings(self) -> dict[str, object]:
        """The settings that a model card shows: those that make the model what it is, without folders."""
        settings = {name: value for name, value in asdict(self).items() if name not in NOT_ON_THE_CARD}
        settings["model"] = Path(self.model).name if Path(self.model).is_dir() else self.model
        for key in ("train", "dev"):
            settings[key] = [{**each, "path": Path(each["path"]).name} for each in settings[key]]
        return settings


def require_dev_and_attention(config: TrainingConfig, dev: bool, attn_implementation: Attention) -> None:
    """Raise ValueError for early stopping without a dev set, and for an attention that the precision rules out."""
    require(
        not config.early_stopping_patience or dev,
        "early_stopping_patience needs a dev set; give one with --dev FOLDER, or hold one out with --dev_share 0.05",
    )
    require_attention(attn_implementation, config.precision)
