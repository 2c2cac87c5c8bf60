"""Turn a checkpoint of a run, or a LoRA adapter and its base, into a directory to serve.

    python scripts/export.py --checkpoint runs/mine/checkpoints/step-500 --output runs/served
    python scripts/export.py --adapter runs/served/adapter --base Qwen/Qwen3-Embedding-0.6B --output runs/again
    python scripts/export.py --model runs/my-reranker/final --shape classifier --output runs/classifier

The directory appears only after it has passed the parity gate: reloaded by transformers and by sentence-transformers,
it gives the embeddings, or a reranker's scores, of the merged model in memory.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import (
    EmbedConfig,
    ExportConfig,
    RerankConfig,
    new_outputs,
    parse_config,
    read_run,
    require,
    require_dims,
    run,
)
from nestling.console import say, working

if TYPE_CHECKING:
    from nestling.batches.prompts import Prompts
    from nestling.export.card import Card
    from nestling.export.gate import GateReport
    from nestling.models.embedder import Embedder
    from nestling.models.reranker import Reranker


@dataclass(frozen=True)
class Trained:
    """A trained embedder and what its directory is to say."""

    embedder: "Embedder"
    card: "Card"
    max_seq_length: int | None
    trained_lengths: tuple[int, int] | None
    dims: list[int]
    instructions: dict[str, str]


def main() -> None:
    config = parse_config(ExportConfig, __doc__)
    output = Path(config.output)
    with new_outputs(("--output", output)):
        report = export(config, output)

    from nestling.export.gate import verdict

    print("\n".join([f"{output} {verdict(report)}", *(f"  {line}" for line in report.lines())]))


def export(config: ExportConfig, output: Path) -> "GateReport":
    """Write `output` from whatever is given."""
    from nestling.models.remote_code import trust_code
    from nestling.training.recorded_code import require_same_code

    if config.trust_remote_code:
        trust_code(config.model, config.base)
    if config.model is not None:
        from nestling.models.reranker import Reranker

        return write_reranker(Reranker.from_pretrained(config.model, cpu=True), None, output, config)
    folder = Path(config.checkpoint or config.adapter or "")
    require(folder.is_dir(), f"{folder} is not a folder")
    if config.checkpoint is None:
        return write_embedder(from_adapter(folder, config), output, config)
    settings = read_run(folder.resolve().parents[1])
    require_undamaged(folder)
    if config.trust_remote_code:
        trust_code(config.base or settings.model)
    require_same_code(folder.resolve().parents[1], config.base or settings.model)
    config = replace(config, dtype=config.dtype or settings.export_dtype)
    if isinstance(settings, RerankConfig):
        require(config.max_seq_length is None, f"{folder} is of a reranker, and max_seq_length is an embedder's")
        return write_reranker(*reranker_of(folder, settings, config.base), output, config)
    require(config.shape is None, f"{folder} is of an embedder, and shape is a reranker's")
    return write_embedder(embedder_of(folder, settings, config.base), output, config)


def write_embedder(trained: Trained, output: Path, config: ExportConfig) -> "GateReport":
    import torch

    from nestling.export.embedder import export_embedder

    return export_embedder(
        trained.embedder,
        output,
        max_seq_length=config.max_seq_length or trained.max_seq_length,
        trained_lengths=trained.trained_lengths,
        dims=trained.dims,
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        allow_failed_gate=config.allow_failed_gate,
        instructions=trained.instructions,
        card=trained.card,
    )


def write_reranker(reranker: "Reranker", card: "Card | None", output: Path, config: ExportConfig) -> "GateReport":
    """`card` is None for a model that was not trained here."""
    import torch

    from nestling.export.reranker import export_reranker

    return export_reranker(
        reranker,
        output,
        shape=config.shape,
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        allow_failed_gate=config.allow_failed_gate,
        card=card,
        trained=card is not None,
    )


def require_undamaged(checkpoint: Path) -> None:
    from nestling.checkpoint.atomic import damage

    problem = damage(checkpoint)
    require(problem is None, f"{checkpoint} cannot be loaded: {problem}")


def embedder_of(checkpoint: Path, config: EmbedConfig, base: str | None) -> Trained:
    """The model of a checkpoint, as train/embed.py had it in memory."""
    from nestling.training.data import query_prompts, recorded_reads, shared_instruction
    from nestling.training.models import for_export, load_embedder

    reads = recorded_reads(checkpoint.resolve().parents[1])
    embedder = load_embedder(for_export(config, base), shared_instruction(reads))
    return Trained(
        embedder,
        restore(checkpoint, embedder, config),
        config.max_seq_length,
        (config.query_max_length, config.document_max_length),
        config.matryoshka_dims or [],
        query_prompts(config, reads),
    )


def reranker_of(checkpoint: Path, config: RerankConfig, base: str | None) -> "tuple[Reranker, Card]":
    """The model of a checkpoint, as train/rerank.py had it in memory, and its card."""
    from nestling.training.data import recorded_reads, shared_instruction
    from nestling.training.models import for_export, load_reranker

    reads = recorded_reads(checkpoint.resolve().parents[1])
    reranker = load_reranker(for_export(config, base), shared_instruction(reads))
    return reranker, restore(checkpoint, reranker, config)


def restore(checkpoint: Path, model: "Embedder | Reranker", config: EmbedConfig | RerankConfig) -> "Card":
    """Load a checkpoint's tensors into the model; what its run knows for its card."""
    from nestling.checkpoint import load_state, restore_tensors
    from nestling.export.card import run_card

    with working(f"loading {checkpoint}"):
        restore_tensors(checkpoint, model)
    return run_card(checkpoint.resolve().parents[1], config.card_settings(), load_state(checkpoint).step)


def from_adapter(adapter: Path, config: ExportConfig) -> Trained:
    """A base model with the adapter that peft wrote for it."""
    require(
        (adapter / "adapter_config.json").is_file(), f"{adapter} has no adapter_config.json; expected a peft adapter"
    )

    from nestling.export.card import Card
    from nestling.models.adapter_files import load_modules_beside, read_adapter_files
    from nestling.models.adapters import load_lora
    from nestling.models.embedder import Embedder
    from nestling.models.modules import load_head, modules_beside

    assert config.base is not None
    beside = read_adapter_files(str(adapter), config.base)
    query_prompt, document_prompt = prompt_settings(config, None if beside is None else beside.prompts)
    embedder = Embedder.from_pretrained(
        config.base,
        instruction=config.instruction,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        files=None if beside is None else beside.model,
    )
    require_dims(config.matryoshka_dims, embedder.dim, "matryoshka_dims")
    embedder.backbone = load_lora(embedder.backbone, str(adapter))
    if beside is not None:
        say(f"{adapter}: pooling, prompts and max_seq_length are those of its own sentence-transformers files")
        load_modules_beside(str(adapter), beside, embedder)
        return Trained(embedder, Card(), beside.max_seq_length, None, config.matryoshka_dims, {})
    modules = modules_beside(str(adapter), embedder.head.settings)
    embedder.head = embedder.head if modules is None else load_head(str(adapter), modules)
    return Trained(embedder, Card(), None, None, config.matryoshka_dims, {})


def prompt_settings(config: ExportConfig, own: "Prompts | None") -> tuple[str | None, str | None]:
    """Of queries and documents: those of the flags, else those in the adapter's files, else None for the base's."""
    query, document = config.query_prompt, config.document_prompt
    if own is not None:
        query = own.default_query if query is None and config.instruction is None else query
        document = own.document if document is None else document
    return query, document


if __name__ == "__main__":
    run(main)
