"""Fine-tune an embedding model on pairs, with InfoNCE over nested (Matryoshka) dimensions.

python train/embed.py --config configs/embed/quickstart.yaml
accelerate launch train/embed.py --config configs/embed/qwen3-0.6b-lora.yaml --output_dir runs/mine
"""

from nestling.config import EmbedConfig, parse_config, run

if __name__ == "__main__":
    CONFIG = parse_config(EmbedConfig, __doc__)  # before the slow imports, so that --help and bad keys answer at once

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from nestling.batches.embed_collation import EmbedBatch, EmbedCollator
from nestling.batches.packing import pack, token_budget
from nestling.batches.random_texts import RandomTexts
from nestling.batches.sampling import BatchSampler
from nestling.checkpoint import RunFolder
from nestling.config import LossConfig, require_unique
from nestling.distributed.gathering import gather_batch
from nestling.distributed.ranks import rank_zero_first, sum_over_ranks
from nestling.export.card import run_card
from nestling.export.embedder import export_embedder
from nestling.losses.chunked import info_nce
from nestling.losses.regression import Projections
from nestling.losses.spread_out import spread_out
from nestling.mining.frozen_sizes import frozen_lines, stand_in_projections, with_stand_ins
from nestling.mining.frozen_vectors import FrozenVectors, open_frozen_vectors, require_frozen_models
from nestling.mining.refresh_dataset import RefreshDataset, open_refresh_datasets
from nestling.mining.refresh_schedule import Refresher
from nestling.mining.stored_vectors import require_stored_vectors
from nestling.models.embedder import Embedder
from nestling.records.retrieval_set import RetrievalSet
from nestling.report.page import write_missing_report, write_run_report
from nestling.run_files import read_exported
from nestling.training.cached import CachedPasses, cached_backward
from nestling.training.data import (
    build_batch_sampler,
    check_embed_data,
    query_prompts,
    read_sources,
    record_data,
    shared_instruction,
    train_reads,
)
from nestling.training.dev_details import DevEvaluation, evaluate_dims, keep_bm25
from nestling.training.dev_sets import load_dev_set, with_held_out
from nestling.training.interpolation import as_trained, interpolate_run
from nestling.training.limits import matryoshka_dims, require_room_for_texts, with_matryoshka_dims
from nestling.training.loading import load_batches, longest_batch, seed_step
from nestling.training.loss_settings import Nested, graded_loss, guide_of, hardness_of, terms_of
from nestling.training.memory import activation_budget
from nestling.training.models import export_dtype, load_embedder, prepare_model, untrained_tensors
from nestling.training.parts import EmbedParts
from nestling.training.profiling import profile_run
from nestling.training.retention_term import embed_random_texts, retention_term
from nestling.training.retry import OutOfMemoryRetry
from nestling.training.run import Run, open_run
from nestling.training.schedule import learning_rate_schedule, total_steps
from nestling.training.start import run_folder, start
from nestling.training.summary import embed_summary
from nestling.training.teacher_projection import fit_projections
from nestling.training.teacher_terms import teacher_terms
from nestling.training.unused_settings import require_dev, require_used
from nestling.training.whole_weights import require_whole_weights

EXPORT = Path(__file__).parents[1] / "scripts" / "export.py"
LESS_MEMORY = ", or with a lower activation_memory"


def main(config: EmbedConfig) -> None:
    accelerator = start(config)
    if accelerator is None:
        write_missing_report(Path(config.output_dir))
        return
    config = with_matryoshka_dims(config)
    dims = matryoshka_dims(config)
    require_frozen_models(config)
    require_whole_weights(config, accelerator)
    show = accelerator.is_main_process

    # 1. Data, read and checked before any weights load.
    with rank_zero_first():  # which fills the cache of Arrow files
        sources = read_sources(config, partial(check_embed_data, config), show=show)
        measured = with_held_out(config, sources)  # its dev has the rows that --dev_share holds out too
        dev_sets = [load_dev_set(dev, sources, show=show) for dev in measured.dev]
    require_used(config, sources)
    require_dev(config, dev_sets)
    require_stored_vectors(config, sources)
    require_unique("dev", [dev_set.name for dev_set in dev_sets])
    batch_sampler = build_batch_sampler(config, sources)
    with rank_zero_first():
        refresh_datasets = open_refresh_datasets(config, sources, show=show)

    # 2. The model, checked before the run folder is made; it goes to its device once the folder is locked.
    embedder = load_embedder(config, shared_instruction(train_reads(sources)))
    require_room_for_texts(config, embedder)
    build = partial(build_parts, measured, accelerator, dims, batch_sampler, dev_sets, embedder)

    if config.dry_run:
        dry_run(build())
        return

    frozen = open_frozen_vectors(config, sources, accelerator.device, show=show)

    # 3. The run: sections 4 to 6 below.
    with run_folder(config) as folder:
        if show:
            record_data(folder.path, config, sources, dev_sets)
            frozen.record(folder.path)
        train(build(), refresh_datasets, frozen, folder)
    accelerator.end_training()


def build_parts(
    config: EmbedConfig,
    accelerator: Accelerator,
    dims: dict[int, float],
    batch_sampler: BatchSampler,
    dev_sets: list[RetrievalSet],
    embedder: Embedder,
) -> EmbedParts:
    """The model on its device, and what makes batches and trains on them."""
    backend = prepare_model(config, accelerator, embedder)
    texts = partial(RandomTexts.draw, embedder.text_tokenizer, embedder.prompts.document, config.document_max_length)
    collator = EmbedCollator(
        batch_sampler.sources,
        batch_sampler.row_sampler,
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        chunk_tokens=config.chunk_tokens or token_budget(accelerator.device),
        teacher=config.loss.needs_teacher_scores,
        padding_free=embedder.padding_free,
        random_texts=texts(config.seed) if config.loss.retention_weight else None,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    memory = None if config.activation_memory is None else config.activation_memory * 1e9
    budget = activation_budget(backend, config.longest, memory)
    return EmbedParts(config, accelerator, dims, batch_sampler, dev_sets, embedder, collator, backend, budget)


def train(
    parts: EmbedParts, refresh_datasets: list[RefreshDataset | None], frozen: FrozenVectors, folder: RunFolder
) -> None:
    config, accelerator, backend, collator = parts.config, parts.accelerator, parts.backend, parts.collator
    main_rank, device = accelerator.is_main_process, accelerator.device
    total = total_steps(config, parts.batch_sampler)
    if main_rank:
        keep_bm25(folder.path, parts.dev_sets)

    # While the model is as it was loaded.
    projections, before = fit_projections(parts, frozen.attach), embed_random_texts(parts)

    # 4. The run: at its newest complete checkpoint if it is resumed.
    with open_run(
        config,
        folder,
        parts.batch_sampler,
        backend,
        total=total,
        measure=partial(evaluate, parts) if parts.dev_sets else None,
        axis="dim",
        main_rank=main_rank,
        describe=partial(embed_summary, parts, total),
    ) as run:
        # 5. The loop. All that is random is a function of (seed, step, rank): resuming needs no generator's state.
        state = run.state
        learning_rate_at = learning_rate_schedule(config, total)
        retry = OutOfMemoryRetry(
            backend,
            lambda batch: batch.tokens.chunks,
            EmbedBatch.in_smaller_chunks,
            chunk_tokens=collator.chunk_tokens,
            say=run.progress.say,
            save=run.save,
            otherwise=LESS_MEMORY,
        )
        for batch in open_batches(parts, refresh_datasets, frozen, run):
            seed_step(config.seed, state.step, accelerator.process_index)
            parts.embedder.train()
            for attempt in retry.attempts(batch.to(device)):  # one, or more in smaller chunks if memory runs out
                with attempt, CachedPasses(attempt.backend, parts.budget) as passes:
                    embeddings = passes.forward(attempt.batch.tokens)  # [n, D], this rank's distinct texts
                    loss = rank_loss(embeddings, attempt.batch, config.loss, parts.dims, projections, before)
                    passes.backward(loss)
                    del embeddings, loss  # the update and the next forward need their memory
            mean_loss, tokens, truncated, stopping, ran_out = sum_over_ranks(
                [passes.loss.item(), batch.tokens.tokens, batch.truncated, run.told_to_stop, retry.ran_out], device
            )
            if ran_out:
                run.give_up(collator.chunk_tokens, LESS_MEMORY)
            rate = learning_rate_at(state.step)
            norm = backend.update(rate, config.max_grad_norm, partial(run.guard.accepts, state.step, mean_loss))
            state.advance(config.batch_size, int(tokens), int(truncated))
            if not run.close_step(rate, mean_loss, norm, stopping=stopping > 0):
                break

    # 6. The result: the best checkpoint (or the last), or weights between it and the base that are better on dev, as a
    # directory to serve, once it has passed the parity gate.
    base = partial(untrained_tensors, config, parts.embedder)
    between = partial(interpolate_run, run, base, config.fixed_share)
    run.export(partial(export, parts, run), EXPORT, between if config.interpolate else partial(as_trained, run))
    if main_rank:
        write_run_report(folder.path)


def rank_loss(
    embeddings: Tensor,
    batch: EmbedBatch,
    loss: LossConfig,
    dims: dict[int, float],
    projections: Projections,
    before: Tensor | None = None,
) -> Tensor:
    """This rank's part of the loss of the global batch, a float32 scalar; the parts of all ranks sum to the loss.

    `embeddings` are the raw ones of this rank's distinct texts, [n, D]; `before` those of all random texts, [P, D].
    """
    nested: Nested = {"dims": list(dims), "dim_weights": list(dims.values())}
    retained = retention_term(embeddings, batch, loss, before, nested)
    own, own_documents = embeddings[batch.queries], embeddings[batch.documents]
    queries, documents = gather_batch(own, own_documents, batch.document_counts)  # [Q, D], [N, D]
    if batch.scores is not None:
        whole = graded_loss(loss)(queries, documents, batch.scores, **nested)
        return whole / len(batch.document_counts) + retained  # every rank computes all of the first
    part = info_nce(
        queries,
        documents,
        batch.structure,
        temperature=loss.temperature,
        terms=terms_of(loss, batch.in_batch_negatives),
        score_margin=loss.score_margin,
        mask_document_document=loss.mask_document_document,
        mask_hard_negatives=loss.mask_hard_negatives,
        mask_identity=loss.mask_identity,
        hardness=hardness_of(loss),
        guide=guide_of(loss, batch.guide),
        **nested,
    )
    if loss.spread_out_weight:
        spread = spread_out(queries, **nested) + spread_out(documents[~batch.structure.is_negative], **nested)
        part = part + loss.spread_out_weight * spread / len(batch.document_counts)  # every rank computes all of it
    return part + retained + teacher_terms(own, own_documents, documents, batch, loss, nested, projections)


def open_batches(
    parts: EmbedParts, refresh_datasets: list[RefreshDataset | None], frozen: FrozenVectors, run: Run
) -> Iterator[EmbedBatch]:
    """The batches of the steps that are left; hard negatives are mined again between them if that is set."""
    config, batch_sampler, collator = parts.config, parts.batch_sampler, parts.collator
    if config.refresh.steps is None:
        batches = load_batches(collator, batch_sampler, run.steps, config.dataloader_num_workers)
        return map(frozen.attach, batches)
    refresher = Refresher(
        run.folder.path / "refresh",
        config.refresh,
        batch_sampler,
        collator,
        refresh_datasets,
        parts.embedder,
        equal_forwards=parts.backend.sharded,
        progress=run.main_rank,
        say=run.progress.say,
        log=run.tracker.log,
    )
    return refresher.batches(run.steps, config.dataloader_num_workers)


def evaluate(parts: EmbedParts) -> list[DevEvaluation]:
    """The model as it is now, on each dev set."""
    return [
        evaluate_dims(
            parts.embedder,
            dev_set,
            list(parts.dims),
            max_length=parts.config.max_seq_length,
            instruction=dev.instruction,
            equal_forwards=parts.backend.sharded,
            progress=parts.accelerator.is_main_process,
        )
        for dev, dev_set in zip(parts.config.dev, parts.dev_sets, strict=True)
    ]


def dry_run(parts: EmbedParts) -> None:
    """--dry_run: the longest of the first batches in chunks of several sizes; nothing is written."""
    config, backend, collator, device = parts.config, parts.backend, parts.collator, parts.accelerator.device
    if parts.accelerator.is_main_process:
        print(embed_summary(parts, parts.batch_sampler.steps_per_epoch, 0), *frozen_lines(config), sep="\n", flush=True)
    longest = collator[longest_batch(parts.batch_sampler, lambda indices: collator[indices].tokens.tokens, device)]
    longest, projections = with_stand_ins(longest, config), stand_in_projections(config, parts.dims, device)
    batch, ids, before = longest.to(device), longest.tokens.ids(), embed_random_texts(parts)

    def step(size: int) -> tuple[int, int]:
        tokens = pack(ids, size, collator.tokenizer.pad_id, padding_free=collator.padding_free)
        loss = partial(
            rank_loss, batch=batch, loss=config.loss, dims=parts.dims, projections=projections, before=before
        )
        cached_backward(backend, tokens.to(device), loss, parts.budget)
        backend.zero_grad()
        return tokens.tokens, sum(chunk.positions for chunk in tokens.chunks)

    parts.embedder.train()
    profile_run(step, chunk_tokens=collator.chunk_tokens, tokens=batch.tokens.tokens, accelerator=parts.accelerator)


def export(parts: EmbedParts, run: Run, step: int) -> None:
    config, exported = parts.config, read_exported(run.folder.path)
    report = export_embedder(
        parts.embedder,
        run.folder.final,
        max_seq_length=config.max_seq_length,
        trained_lengths=(config.query_max_length, config.document_max_length),
        dims=config.matryoshka_dims or [],
        instructions=query_prompts(config, train_reads(run.batch_sampler.sources)),
        dtype=export_dtype(config),
        card=run_card(run.folder.path, config.card_settings(), step, exported.results if exported else None),
        trained=exported is None or exported.share > 0,  # 0: the base was better on dev
    )
    print("\n".join(["parity gate passed", *(f"  {line}" for line in report.lines())]), flush=True)


if __name__ == "__main__":
    run(lambda: main(CONFIG))
