"""Turn a checkpoint of a run, or a LoRA adapter and its base, into a directory to serve.

    python scripts/export.py --checkpoint runs/mine/checkpoints/step-500 --output models/mine
    python scripts/export.py --adapter models/mine/adapter --base Qwen/Qwen3-Embedding-0.6B --output models/again

The directory appears only after it has passed the parity gate: reloaded by transformers and by sentence-transformers,
it gives the embeddings of the merged model in memory.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestling.config import EmbedConfig, parse_config, require, require_dims, run

if TYPE_CHECKING:
    from nestling.embedder import Embedder
    from nestling.model_card import Card


@dataclass(frozen=True)
class ExportConfig:
    """Settings of scripts/export.py.

    Args:
        output: Folder to write; must not exist.
        checkpoint: A step-N folder of a run, whose config.yaml says all else.
        adapter: A folder that peft wrote.
        base: Directory or hub id of the model under the adapter; with a checkpoint, where it has moved to.
        dtype: Of the written weights; the base's own by default.
        dims: Matryoshka dimensions that the adapter was trained at.
        instruction: Task of the queries that the adapter was trained with; the base's own query prompt by default.
        query_max_length: Tokens of a query that the adapter was trained with.
        document_max_length: Tokens of a document, likewise.
    """

    output: str
    checkpoint: str | None = None
    adapter: str | None = None
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    dims: list[int] = field(default_factory=list)
    instruction: str | None = None
    query_max_length: int = 512
    document_max_length: int = 512

    def __post_init__(self) -> None:
        require(
            (self.checkpoint is None) != (self.adapter is None), "give either --checkpoint or --adapter with --base"
        )
        require(
            self.adapter is None or self.base is not None, "--adapter needs --base, the model that it was trained on"
        )
        of_adapters = self.dims or self.instruction or (self.query_max_length, self.document_max_length) != (512, 512)
        require(
            self.checkpoint is None or not of_adapters,
            "dims, instruction and the lengths go with --adapter; those of a checkpoint are in the run's config.yaml",
        )
        require_dims(self.dims)
        for name in ("query_max_length", "document_max_length"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Trained:
    """A trained model and what its directory is to say."""

    embedder: "Embedder"
    card: "Card"
    query_max_length: int
    document_max_length: int
    dims: list[int]
    instructions: dict[str, str]


def main() -> None:
    config = parse_config(ExportConfig, __doc__)
    output = Path(config.output)
    require(not output.exists(), f"--output {output} exists already; name a new folder, or remove it first")
    require(output.parent.is_dir(), f"--output {output}: the folder {output.parent} does not exist; create it first")
    folder = Path(config.checkpoint or config.adapter or "")
    require(folder.is_dir(), f"{folder} is not a folder")

    import torch

    from nestling.export import export_embedder

    trained = from_checkpoint(folder, config.base) if config.checkpoint else from_adapter(folder, config)
    report = export_embedder(
        trained.embedder,
        output,
        query_max_length=trained.query_max_length,
        document_max_length=trained.document_max_length,
        dims=trained.dims,
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        instructions=trained.instructions,
        card=trained.card,
    )
    print("\n".join([f"{output} passed the parity gate", *(f"  {line}" for line in report.lines())]))


def from_checkpoint(checkpoint: Path, base: str | None) -> Trained:
    """The model of a checkpoint, as train/embed.py had it in memory."""
    run_folder = checkpoint.resolve().parents[1]
    require((run_folder / "config.yaml").is_file(), f"{run_folder} has no config.yaml; expected RUN/checkpoints/step-N")
    config = parse_config(EmbedConfig, None, ["--config", str(run_folder / "config.yaml")])

    import torch

    from nestling.checkpoint import load_state, restore_tensors
    from nestling.checkpoint.atomic import damage
    from nestling.model_card import run_card
    from nestling.records import default_name
    from nestling.trainable import load_trainable

    problem = damage(checkpoint)
    require(problem is None, f"{checkpoint} cannot be loaded: {problem}")
    embedder = load_trainable(
        base or config.model,
        lora=None if config.tuning == "full" else asdict(config.lora),  # a base in 4 bits is exported whole
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        pooling=config.pooling,
        instruction=config.query_instruction,
        cpu=True,
    )
    restore_tensors(checkpoint, embedder)
    return Trained(
        embedder,
        run_card(run_folder, config.published(), load_state(checkpoint).step),
        config.query_max_length,
        config.document_max_length,
        config.dims,
        {data.name or default_name(Path(data.path)): data.instruction for data in config.train if data.instruction},
    )


def from_adapter(adapter: Path, config: ExportConfig) -> Trained:
    """A base model with the adapter that peft wrote for it."""
    require(
        (adapter / "adapter_config.json").is_file(), f"{adapter} has no adapter_config.json; expected a peft adapter"
    )

    from nestling.adapters import load_lora
    from nestling.embedder import Embedder
    from nestling.model_card import Card

    assert config.base is not None
    embedder = Embedder.from_pretrained(config.base, instruction=config.instruction)
    require_dims(config.dims, embedder.dim)
    embedder.backbone = load_lora(embedder.backbone, str(adapter))
    return Trained(embedder, Card(), config.query_max_length, config.document_max_length, config.dims, {})


if __name__ == "__main__":
    run(main)
