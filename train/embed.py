"""Fine-tune an embedding model on pairs, with InfoNCE over nested (Matryoshka) dimensions.

python train/embed.py --config configs/embed/quickstart.yaml
accelerate launch train/embed.py --config configs/embed/qwen3-0.6b-lora.yaml --output_dir runs/mine
"""

from nestling.config import EmbedConfig, parse_config, run

if __name__ == "__main__":
    CONFIG = parse_config(EmbedConfig, __doc__)  # before the slow imports, so that --help and bad keys answer at once

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor

from nestling.backends import Backend, prepare
from nestling.backends.optimizer import adamw
from nestling.backends.sizes import free_memory, full_shape, trained_bytes
from nestling.batches.embed_collation import Collator, TrainBatch
from nestling.batches.lengths import measure_lengths
from nestling.batches.packing import pack, token_budget
from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.checkpoint import RunFolder, check_run_folder, open_run_folder
from nestling.config import DevData, LossConfig, require, require_dims, require_unique
from nestling.console import summary
from nestling.distributed.gathering import gather_batch
from nestling.distributed.ranks import sum_over_ranks
from nestling.export.embedder import export_embedder
from nestling.export.embedder_card import run_card
from nestling.losses.chunked import info_nce
from nestling.losses.cosent import cosent
from nestling.losses.distillation import distillation
from nestling.losses.negatives import Terms
from nestling.mining.refresh import Refresher
from nestling.mining.renewal import Minable
from nestling.models.embedder import Embedder, read_model_files
from nestling.models.token_model import max_positions, read_config
from nestling.models.trainable import load_trainable
from nestling.records import RetrievalSet, load_records, load_retrieval_set
from nestling.report.page import draw_run
from nestling.retrieval import evaluate_embedder
from nestling.run_files import Results
from nestling.training.cached_step import ActivationBudget, CachedStep, cached_backward
from nestling.training.memory import (
    MemoryEstimate,
    activation_bytes,
    estimate,
    kept_bytes,
    room_for_activations,
    sample_chunk,
)
from nestling.training.profiling import profile_step, profile_table, profiled_sizes
from nestling.training.recipe import MAY_DIFFER, load_batches, longest_batch, record_data, seed_step, start
from nestling.training.run import Intervals, Run, open_run
from nestling.training.schedule import course, total_steps

EXPORT = Path(__file__).parents[1] / "scripts" / "export.py"


def main(config: EmbedConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    output, settings = Path(config.output_dir), asdict(config)
    check_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER)
    if (output / "final").exists():
        print(f"{output} is complete: {output / 'final'} holds its model")
        return
    dims = nested_dims(config)
    accelerator = start(cpu=config.cpu, batch_size=config.batch_size, seed=config.seed)

    # 1. Data, read and checked before any weights load.
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        sources = load_sources(config, accelerator.is_main_process)
        dev_sets = [load_dev(dev, accelerator.is_main_process) for dev in config.dev]
    require_unique("train", [source.table.name for source in sources])
    require_unique("dev", [dev_set.name for dev_set in dev_sets])
    row_sampler = RowSampler(config.positives, config.negatives, config.seed)
    batch_sampler = BatchSampler(sources, config.batch_size, row_sampler, config.seed, config.mixing_temperature)
    minables = open_minables(config, accelerator, sources)

    # 2. The model, checked before the run folder is made.
    embedder = load_model(config)

    if config.dry_run:
        dry_run(config, accelerator, batch_sampler, embedder, dims)
        return

    # 3. The run: sections 4 to 6 below.
    with open_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER) as folder:
        if accelerator.is_main_process:
            record_data(folder.path, sources, dev_sets)
        train(config, accelerator, folder, batch_sampler, minables, dev_sets, embedder, dims)
    accelerator.end_training()


def train(
    config: EmbedConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    batch_sampler: BatchSampler,
    minables: list[Minable | None],
    dev_sets: list[RetrievalSet],
    embedder: Embedder,
    dims: dict[int, float],
) -> None:
    main_rank, device = accelerator.is_main_process, accelerator.device
    total = total_steps(batch_sampler, epochs=config.epochs, max_steps=config.max_steps)
    collator, backend = build_collator_and_backend(config, accelerator, batch_sampler, embedder)
    budget = activation_budget(config, backend, collator)
    measure = partial(evaluate, config, embedder, dev_sets, list(dims), backend.sharded, main_rank)
    describe = partial(training_summary, config, batch_sampler, embedder, collator, backend, budget, list(dims), total)

    # 4. The run: at its newest complete checkpoint if it is resumed.
    with open_run(
        folder,
        batch_sampler,
        backend,
        keep_checkpoints=config.keep_checkpoints,
        cadence=Intervals(config.log_steps, config.eval_steps, config.save_steps, config.early_stopping),
        total=total,
        measure=measure if dev_sets else None,
        cut="dim",
        main_rank=main_rank,
        max_bad_steps=config.max_bad_steps,
        settings=asdict(config),
        describe=describe,
    ) as run:
        # 5. The loop. All that is random is a function of (seed, step, rank): resuming needs no generator's state.
        state = run.state
        rate_at = course(total, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule)
        step = CachedStep(backend, budget, run.progress.say)
        for batch in open_batches(config, run, collator, minables, embedder):
            seed_step(config.seed, state.step, accelerator.process_index)
            embedder.train()
            batch = batch.to(device)
            share_of = partial(loss_share, batch=batch, loss=config.loss, dims=dims)
            part = step(batch.tokens, share_of)
            loss, tokens, truncated, stopping, ran_out = sum_over_ranks(
                [part.item(), batch.tokens.tokens, batch.truncated, run.told_to_stop, step.ran_out], device
            )
            if ran_out:
                run.give_up(collator.chunk_tokens, ", or with a lower graph_memory")
            rate = rate_at(state.step)
            norm = backend.update(rate, config.max_grad_norm, partial(run.guard.accepts, state.step, loss))
            state.advance(config.batch_size, int(tokens), int(truncated))
            if not run.close_step(rate, loss, norm, stopping=stopping > 0):
                break

    # 6. The result: the best checkpoint (or the last) as a directory to serve, once it has passed the parity gate.
    run.publish(partial(export, config, run, embedder), EXPORT, best=config.export_best, whole=config.tuning != "qlora")
    if main_rank:
        draw_run(folder.path)


def open_batches(
    config: EmbedConfig, run: Run, collator: Collator, minables: list[Minable | None], embedder: Embedder
) -> Iterator[TrainBatch]:
    """The batches of the steps that are left; hard negatives are mined anew between them if that is set."""
    if config.refresh.steps is None:
        return load_batches(collator, run.batch_sampler, run.steps, config.workers)
    refresher = Refresher(
        run.folder.path / "refresh",
        config.refresh,
        run.batch_sampler,
        collator,
        minables,
        embedder,
        equal_forwards=run.backend.sharded,
        progress=run.main_rank,
        say=run.progress.say,
        log=run.tracker.log,
    )
    return refresher.batches(run.steps, config.workers)


def evaluate(
    config: EmbedConfig,
    embedder: Embedder,
    dev_sets: list[RetrievalSet],
    dims: list[int],
    equal_forwards: bool,
    shown: bool,
) -> Results:
    """Metrics of the model as it is now, on each dev set."""
    return {
        dev_set.name: evaluate_embedder(
            embedder,
            dev_set,
            dims,
            query_max_length=config.query_max_length,
            document_max_length=config.document_max_length,
            instruction=dev.instruction,
            equal_forwards=equal_forwards,
            progress=shown,
        )
        for dev, dev_set in zip(config.dev, dev_sets, strict=True)
    }


def build_collator_and_backend(
    config: EmbedConfig, accelerator: Accelerator, batch_sampler: BatchSampler, embedder: Embedder
) -> tuple[Collator, Backend]:
    """What makes batches, and what trains on them."""
    optimizer = adamw(embedder, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    share = config.batch_size // accelerator.num_processes
    backend = prepare(accelerator, embedder, optimizer, queries_per_rank=share, max_norm=config.max_grad_norm)
    return build_collator(config, batch_sampler, embedder, accelerator), backend


def dry_run(
    config: EmbedConfig,
    accelerator: Accelerator,
    batch_sampler: BatchSampler,
    embedder: Embedder,
    dims: dict[int, float],
) -> None:
    """--dry_run: the longest of the first batches in chunks of several sizes; nothing is written."""
    collator, backend = build_collator_and_backend(config, accelerator, batch_sampler, embedder)
    budget = activation_budget(config, backend, collator)
    if accelerator.is_main_process:
        print(
            training_summary(
                config, batch_sampler, embedder, collator, backend, budget, list(dims), batch_sampler.steps_per_epoch, 0
            ),
            flush=True,
        )
    longest = collator[
        longest_batch(batch_sampler, lambda indices: collator[indices].tokens.tokens, accelerator.device)
    ]
    batch, ids = longest.to(accelerator.device), longest.tokens.ids()
    share_of = partial(loss_share, batch=batch, loss=config.loss, dims=dims)

    def step(size: int) -> tuple[int, int]:
        tokens = pack(ids, size, collator.tokenizer.pad_id, padding_free=collator.padding_free)
        cached_backward(backend, tokens.to(accelerator.device), share_of, budget)
        backend.zero_grad()
        return tokens.tokens, sum(chunk.positions for chunk in tokens.chunks)

    embedder.train()
    found = list(profile_step(step, profiled_sizes(collator.chunk_tokens, backend.ranks), accelerator.device))
    if accelerator.is_main_process:
        print(profile_table(found, batch.tokens.tokens))


def load_sources(config: EmbedConfig, main_rank: bool) -> list[Source]:
    """Read the training sets and say what was read, kept and dropped."""
    sources = []
    for data in config.train:
        table = load_records(
            data.path, split=data.split, name=data.name, instruction=data.instruction, progress=main_rank
        )
        require(
            data.in_batch_negatives
            or table.graded
            or config.refresh.steps is not None
            or min(table.max_negatives, config.negatives) > 0,
            f"{data.path}: without in_batch_negatives its rows need hard negatives, and it has or draws none",
        )
        sources.append(Source(table, data.weight, data.in_batch_negatives))
        if main_rank:
            print(table.summary, flush=True)
    scored = any(source.table.has_scores for source in sources)
    require(
        not config.loss.distillation or scored,
        "loss.distillation needs teacher scores, and no dataset has them in every row; set it to 0 without them",
    )
    return sources


def open_minables(config: EmbedConfig, accelerator: Accelerator, sources: list[Source]) -> list[Minable | None]:
    """The queries and documents of each dataset, if negatives are mined anew."""
    if config.refresh.steps is None:
        return []
    shown = accelerator.is_main_process
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        minables = [
            Minable.open(source.table, data.path, config.refresh.corpus, progress=shown)
            for data, source in zip(config.train, sources, strict=True)
        ]
    if shown:
        print(*(f"negatives from {each.pool}" for each in minables if each is not None), sep="\n", flush=True)
    return minables


def load_dev(dev: DevData, main_rank: bool) -> RetrievalSet:
    retrieval_set = load_retrieval_set(dev.path, dev.split)
    if main_rank:
        print(retrieval_set.summary, flush=True)
    return replace(retrieval_set, name=dev.name) if dev.name else retrieval_set


def load_model(config: EmbedConfig) -> Embedder:
    """The model with what is to be trained."""
    embedder = load_trainable(
        Embedder,
        config.model,
        lora=None if config.tuning == "full" else asdict(config.lora),
        quantised=config.tuning == "qlora",
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        attention=config.attention,
        pooling=config.pooling,
        dropout=config.dropout,
        instruction=config.query_instruction,
        cpu=config.cpu,
    )
    require_room(config, embedder, {data.instruction for data in config.train})
    if config.checkpoint_length is not None:
        embedder.checkpoint_activations_above(config.checkpoint_length)
    return embedder


def require_room(config: EmbedConfig, embedder: Embedder, instructions: Iterable[str | None]) -> None:
    """Refuse length limits that leave no room for a text beside its prompt."""
    limits = [(embedder.prompts.query(each), config.query_max_length, "query_max_length") for each in instructions]
    for prompt, limit, name in [
        *limits,
        (embedder.prompts.document, config.document_max_length, "document_max_length"),
    ]:
        used = embedder.text_tokenizer.overhead(prompt)
        require(limit > used, f"{name} is {limit}, and prompt and special tokens alone take {used}; raise it")


def nested_dims(config: EmbedConfig) -> dict[int, float]:
    """The dimensions to train and their weights, largest first, the full one always among them.

    Checks them and the lengths against the model's config.json, before its weights load.
    """
    published = read_config(config.model, read_model_files(config.model).subfolder)
    require_dims(config.dims, published.hidden_size)
    readable = max_positions(published)
    require(
        config.longest <= readable,
        f"query_max_length, document_max_length: {config.longest} tokens are more than the model's {readable}",
    )
    weights = dict(zip(config.dims, config.dim_weights or [1.0] * len(config.dims), strict=True))
    return {dim: weights.get(dim, 1.0) for dim in sorted({*config.dims, published.hidden_size}, reverse=True)}


def build_collator(
    config: EmbedConfig, batch_sampler: BatchSampler, embedder: Embedder, accelerator: Accelerator
) -> Collator:
    return Collator(
        batch_sampler.sources,
        batch_sampler.row_sampler,
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        chunk_tokens=config.chunk_tokens or token_budget(accelerator.device),
        teacher=config.loss.distillation > 0,
        padding_free=embedder.padding_free,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def activation_budget(config: EmbedConfig, backend: Backend, collator: Collator) -> ActivationBudget:
    """Room for graphs between the passes: as set, or half of what is free beside gradients and AdamW's state."""
    model = backend.model
    length = min(config.longest, collator.chunk_tokens)
    chunk = sample_chunk(length, collator.chunk_tokens, model.config.vocab_size, model.device)
    model.train()
    with backend.computing():
        measured = activation_bytes(model, partial(backend.forward, last=True), chunk)
    half = room_for_activations(free_memory(model.device), trained_bytes(model), backend.state_fractions)
    return ActivationBudget(
        half if config.graph_memory is None else config.graph_memory * 1e9, measured / chunk.positions
    )


def memory(config: EmbedConfig, collator: Collator, backend: Backend, budget: ActivationBudget) -> MemoryEstimate:
    """What a rank needs; the graphs of a step as long as the limits allow, as far as they are kept."""
    return estimate(
        backend.model,
        backend.state_fractions,
        chunk=budget.position * collator.chunk_tokens,
        graphs=kept_bytes(budget.memory, budget.position, config.most_tokens(backend.ranks)),
    )


def training_summary(
    config: EmbedConfig,
    batch_sampler: BatchSampler,
    embedder: Embedder,
    collator: Collator,
    backend: Backend,
    budget: ActivationBudget,
    dims: list[int],
    total: int,
    done: int,
) -> str:
    """What follows from the settings and the data, to read before step 1."""
    in_batch = batch_sampler.batch_size - 1
    trainable = sum(full_shape(each).numel() for each in embedder.parameters() if each.requires_grad)
    everything = sum(full_shape(each).numel() for each in embedder.parameters())
    lengths = [measure_lengths(collator, i) for i in range(len(batch_sampler.sources))]
    items: dict[str, object] = {
        "model": f"{config.model} ({embedder.pooling} pooling, {embedder.dim} dimensions, {config.precision})",
        "query prompt": repr(embedder.prompts.query()),
        "trained": f"{trainable:,} of {everything:,} parameters ({config.tuning})",
        "dimensions": ", ".join(map(str, dims)),
        "processes": f"{collator.world_size} ({backend.name})",
        "global batch": f"{config.batch_size} queries, {config.batch_size // collator.world_size} on each process",
        "negatives a query": f"up to {config.negatives} of its own, and documents of {in_batch} other queries",
        **mined_anew(config, batch_sampler),
        "steps": f"{total:,} ({batch_sampler.steps_per_epoch:,} an epoch)" + (f", {done:,} done" if done else ""),
        "activations": str(budget),
        **memory(config, collator, backend, budget).items(),
    }
    for source, length in zip(batch_sampler.sources, lengths, strict=True):
        items[f"data {source.table.name}"] = str(length)
    return summary("training", items)


def mined_anew(config: EmbedConfig, batch_sampler: BatchSampler) -> dict[str, object]:
    if config.refresh.steps is None:
        return {}
    return {"hard negatives": f"mined anew every {config.refresh.steps or batch_sampler.steps_per_epoch:,} steps"}


class Nested(TypedDict):
    dims: list[int]
    dim_weights: list[float]


def loss_share(embeddings: Tensor, batch: TrainBatch, loss: LossConfig, dims: dict[int, float]) -> Tensor:
    """This rank's share of the loss of the global batch, a float32 scalar; the shares of all ranks sum to it.

    `embeddings` are the raw ones of this rank's distinct texts, [n, D].
    """
    nested: Nested = {"dims": list(dims), "dim_weights": list(dims.values())}
    own = embeddings[batch.queries]  # [Q/W, D]
    queries, documents = gather_batch(own, embeddings[batch.documents], batch.document_counts)  # [Q, D], [N, D]
    if batch.scores is not None:
        whole = cosent(queries, documents, batch.scores, temperature=loss.graded_temperature, **nested)
        return whole / len(batch.document_counts)  # every rank computes all of it
    share = info_nce(
        queries,
        documents,
        batch.structure,
        temperature=loss.temperature,
        terms=terms_of(loss, batch.in_batch_negatives),
        score_margin=loss.score_margin,
        mask_hard_negatives=loss.mask_hard_negatives,
        mask_identity=loss.mask_identity,
        **nested,
    )
    if batch.group is not None and batch.teacher is not None:
        share = share + loss.distillation * distillation(
            own,
            documents,
            batch.group,
            batch.teacher,
            own.new_full((len(own),), 1 / len(queries)),
            temperature=loss.temperature,
            teacher_temperature=loss.teacher_temperature,
            **nested,
        )
    return share


def terms_of(loss: LossConfig, in_batch: bool) -> Terms:
    """The terms of the denominator; a dataset without in-batch negatives has only its own hard negatives."""
    return Terms(
        hard_negatives=loss.hard_negatives,
        query_document=loss.query_document and in_batch,
        query_query=loss.query_query and in_batch,
        document_document=loss.document_document and in_batch,
        other_hard_negatives=loss.other_hard_negatives,
    )


def export(config: EmbedConfig, run: Run, embedder: Embedder, step: int) -> None:
    report = export_embedder(
        embedder,
        run.folder.final,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        dims=config.dims,
        instructions={
            each.table.name: each.table.instruction for each in run.batch_sampler.sources if each.table.instruction
        },
        card=run_card(run.folder.path, config.published(), step),
    )
    print("\n".join(["parity gate row_epoch", *(f"  {line}" for line in report.lines())]), flush=True)


if __name__ == "__main__":
    run(lambda: main(CONFIG))
