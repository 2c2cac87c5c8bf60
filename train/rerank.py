"""Fine-tune a reranker that answers yes or no, on the same records as the embedder.

python train/rerank.py --config configs/rerank/qwen3-0.6b-lora.yaml --train pairs.jsonl
accelerate launch train/rerank.py --config configs/rerank/qwen3-0.6b-lora.yaml --output_dir runs/mine
"""

from nestling.config import RerankConfig, parse_config, run

if __name__ == "__main__":
    CONFIG = parse_config(RerankConfig, __doc__)  # before the slow imports, so that --help and bad keys answer at once

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from nestling.batches.packing import token_budget
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.batches.sampling import BatchSampler
from nestling.checkpoint import RunFolder
from nestling.config import RerankLossConfig, TrainData, require, require_unique
from nestling.distributed.ranks import rank_zero_first, sum_over_ranks
from nestling.export.card import run_card
from nestling.export.reranker import export_reranker
from nestling.losses.reranker import kl, lambda_ndcg, listwise, margin_mse, pointwise, pointwise_vocabulary
from nestling.models.reranker import Reranker
from nestling.models.scoring import logit_of
from nestling.records import RecordTable
from nestling.report.page import write_missing_report, write_run_report
from nestling.retrieval import rerank
from nestling.training.accumulated import AccumulatedPasses, accumulated_backward
from nestling.training.data import build_batch_sampler, read_sources, record_data, shared_instruction, train_reads
from nestling.training.dev_details import DevEvaluation, evaluate_order, keep_first_stage
from nestling.training.dev_sets import RerankDevSet, load_rerank_dev_set, with_held_out
from nestling.training.limits import require_readable_pairs
from nestling.training.loading import load_batches, longest_batch, seed_step
from nestling.training.memory import bytes_per_position
from nestling.training.models import export_dtype, load_reranker, prepare_model
from nestling.training.parts import RerankParts
from nestling.training.profiling import profile_run
from nestling.training.retry import OutOfMemoryRetry
from nestling.training.run import Run, open_run
from nestling.training.schedule import learning_rate_schedule, total_steps
from nestling.training.start import run_folder, start
from nestling.training.summary import rerank_summary
from nestling.training.unused_settings import require_dev, require_relevant

EXPORT = Path(__file__).parents[1] / "scripts" / "export.py"


def main(config: RerankConfig) -> None:
    accelerator = start(config)
    if accelerator is None:
        write_missing_report(Path(config.output_dir))
        return
    show = accelerator.is_main_process

    # 1. Data, read and checked before any weights load.
    with rank_zero_first():  # which fills the cache of Arrow files
        check = partial(check_dataset, config)
        sources = read_sources(config, check, show=show, allow_no_positives=True)
        measured = with_held_out(config, sources)  # its dev has the rows that --dev_share holds out too
        dev_sets = [load_rerank_dev_set(dev, sources, show=show) for dev in measured.dev]
    require_unique("dev", [each.retrieval_set.name for each in dev_sets])
    require_relevant(config, sources)
    require_dev(config, dev_sets)
    batch_sampler = build_batch_sampler(config, sources)

    # 2. The model, checked before the run folder is made; it goes to its device once the folder is locked.
    reranker = load_reranker(config, shared_instruction(train_reads(sources)))
    reranker.full_vocabulary = config.loss.objective == "pointwise_vocabulary"
    require_readable_pairs(config, reranker.pairs)
    build = partial(build_parts, measured, accelerator, batch_sampler, dev_sets, reranker)

    if config.dry_run:
        dry_run(build())
        return

    # 3. The run: sections 4 to 6 below.
    with run_folder(config) as folder:
        if show:
            record_data(folder.path, config, sources, [each.retrieval_set for each in dev_sets])
        train(build(), folder)
    accelerator.end_training()


def build_parts(
    config: RerankConfig,
    accelerator: Accelerator,
    batch_sampler: BatchSampler,
    dev_sets: list[RerankDevSet],
    reranker: Reranker,
) -> RerankParts:
    """The model on its device, and what makes batches and trains on them."""
    backend = prepare_model(config, accelerator, reranker)
    collator = RerankCollator(
        batch_sampler.sources,
        batch_sampler.row_sampler,
        reranker.pairs,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        chunk_tokens=config.chunk_tokens or token_budget(accelerator.device),
        share_prefix=reranker.share_prefix,
        padding_free=reranker.padding_free,
        whole_groups=not config.loss.pointwise,
        teacher_targets=config.loss.labels == "teacher",
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    longest = min(config.query_max_length + config.document_max_length, reranker.max_positions)
    position_bytes = bytes_per_position(backend, longest)
    return RerankParts(config, accelerator, batch_sampler, dev_sets, reranker, collator, backend, position_bytes)


def train(parts: RerankParts, folder: RunFolder) -> None:
    config, accelerator, backend, collator = parts.config, parts.accelerator, parts.backend, parts.collator
    main_rank, device = accelerator.is_main_process, accelerator.device
    total = total_steps(config, parts.batch_sampler)
    if main_rank:
        keep_first_stage(folder.path, parts.dev_sets)

    # 4. The run: at its newest complete checkpoint if it is resumed.
    with open_run(
        config,
        folder,
        parts.batch_sampler,
        backend,
        total=total,
        measure=partial(evaluate, parts) if parts.dev_sets else None,
        axis="depth",
        first_stage={each.retrieval_set.name: {each.depth: each.first_stage} for each in parts.dev_sets},
        main_rank=main_rank,
        describe=partial(rerank_summary, parts, total),
    ) as run:
        # 5. The loop. All that is random is a function of (seed, step, rank): resuming needs no generator's state.
        state = run.state
        learning_rate_at = learning_rate_schedule(config, total)
        retry = OutOfMemoryRetry(
            backend,
            lambda batch: batch.chunks,
            collator.in_smaller_chunks,
            chunk_tokens=collator.chunk_tokens,
            say=run.progress.say,
            save=run.save,
        )
        for batch in load_batches(collator, parts.batch_sampler, run.steps, config.dataloader_num_workers):
            seed_step(config.seed, state.step, accelerator.process_index)
            parts.reranker.train()
            for attempt in retry.attempts(batch.to(device)):  # one, or more in smaller chunks if memory runs out
                with attempt, AccumulatedPasses(attempt.backend, attempt.batch.chunks) as passes:
                    for chunk, labels in zip(attempt.batch.chunks, attempt.batch.labels, strict=True):
                        logits = passes.forward(chunk)  # [n, C]
                        loss = chunk_loss(logits, labels, attempt.batch, config.loss)
                        passes.backward(loss)
            mean_loss, tokens, truncated, stopping, ran_out = sum_over_ranks(
                [passes.loss.item(), batch.tokens, batch.truncated, run.told_to_stop, retry.ran_out], device
            )
            if ran_out:
                run.give_up(collator.chunk_tokens)
            rate = learning_rate_at(state.step)
            norm = backend.update(rate, config.max_grad_norm, partial(run.guard.accepts, state.step, mean_loss))
            state.advance(config.batch_size, int(tokens), int(truncated))
            if not run.close_step(rate, mean_loss, norm, stopping=stopping > 0):
                break

    # 6. The result: the best checkpoint (or the last) as a directory to serve, once it has passed the parity gates.
    run.export(partial(export, parts, run), EXPORT)
    if main_rank:
        write_run_report(folder.path)


def chunk_loss(logits: Tensor, labels: ChunkLabels, batch: RerankBatch, loss: RerankLossConfig) -> Tensor:
    """What a chunk has in the loss of the global batch: the mean over its pairs, or over its queries.

    `logits` is what the model gives for the n prompts of the chunk, [n, C].
    """
    if loss.pointwise:
        whole = loss.objective == "pointwise_vocabulary"
        weight = {"positive_weight": loss.positive_weight}
        losses = (
            pointwise_vocabulary(logits, labels.targets, **weight)
            if whole
            else pointwise(logits[:, 0], labels.targets, **weight)
        )
        return losses.sum() / batch.pairs
    return query_losses(logit_of(logits), labels, loss).sum() / batch.queries


def query_losses(z: Tensor, labels: ChunkLabels, loss: RerankLossConfig) -> Tensor:
    """The loss of each query of a chunk, [n] logits to [Q], by an objective that compares a query's documents."""
    present = labels.group >= 0  # [Q, G]
    scores, targets = z[labels.group], labels.targets[labels.group]
    if loss.objective == "listwise":
        return listwise(scores, targets > 0.5, present, temperature=loss.temperature)
    if loss.objective == "lambda":
        return lambda_ndcg(scores, targets, present, temperature=loss.temperature)
    assert labels.teacher is not None
    teacher = labels.teacher[labels.group]
    temperatures = {"temperature": loss.temperature, "teacher_temperature": loss.teacher_temperature}
    if loss.objective == "margin_mse":
        return margin_mse(scores, teacher, targets > 0.5, present, **temperatures)
    return kl(scores, teacher, present, **temperatures)


def evaluate(parts: RerankParts) -> list[DevEvaluation]:
    """The candidates as the model orders them now, on each dev set."""
    return [
        evaluate_order(
            each,
            rerank(
                parts.reranker,
                each.retrieval_set,
                each.candidates,
                instruction=each.instruction,
                tokens_per_batch=parts.config.chunk_tokens,
                equal_forwards=parts.backend.sharded,
                progress=parts.accelerator.is_main_process,
            ),
        )
        for each in parts.dev_sets
    ]


def dry_run(parts: RerankParts) -> None:
    """--dry_run: the longest of the first batches in chunks of several sizes; nothing is written."""
    config, backend, collator, device = parts.config, parts.backend, parts.collator, parts.accelerator.device
    if parts.accelerator.is_main_process:
        print(rerank_summary(parts, parts.batch_sampler.steps_per_epoch, 0), flush=True)
    batch = collator[longest_batch(parts.batch_sampler, lambda indices: collator[indices].tokens, device)].to(device)

    def step(size: int) -> tuple[int, int]:
        rechunked = collator.rechunk(batch, size)
        accumulated_backward(
            backend, rechunked.chunks, lambda i, logits: chunk_loss(logits, rechunked.labels[i], rechunked, config.loss)
        )
        backend.zero_grad()
        return rechunked.tokens, rechunked.positions

    parts.reranker.train()
    profile_run(step, chunk_tokens=collator.chunk_tokens, tokens=batch.tokens, accelerator=parts.accelerator)


def check_dataset(config: RerankConfig, data: TrainData, table: RecordTable) -> None:
    """Refuse a dataset that the objective cannot learn from."""
    require(
        table.graded or min(table.max_negatives, config.num_negatives) > 0,
        f"{data.path}: a reranker learns from negatives, and it has or draws none; mine some first",
    )
    require(
        not table.graded or config.loss.pointwise,
        f"{data.path}: graded pairs have one document a query, and the {config.loss.objective} objective compares "
        "several; choose pointwise",
    )
    require(
        not config.loss.needs_positives or table.max_positives > 0,
        f"{data.path}: no row has a positive, and {config.loss.objective} compares positives with negatives; choose "
        "pointwise",
    )
    require(
        not config.loss.needs_scores or table.has_scores or table.graded,
        f"{data.path}: the loss needs scores, and not every row has them; write them with "
        "scripts/mine.py --judge, or choose another objective",
    )
    if config.loss.labels == "teacher" or table.graded:
        low, high = table.score_range()
        most, kind = (1, "probabilities") if config.loss.pointwise else (10, "grades, whose gain is 2^grade - 1")
        require(
            0 <= low <= high <= most,
            f"{data.path}: scores from {low:g} to {high:g} are no {kind}; scale them to 0..{most}",
        )


def export(parts: RerankParts, run: Run, step: int) -> None:
    parts.reranker.full_vocabulary = False
    card = run_card(run.folder.path, parts.config.card_settings(), step)
    report = export_reranker(parts.reranker, run.folder.final, dtype=export_dtype(parts.config), card=card)
    print("\n".join(["parity gates passed", *(f"  {line}" for line in report.lines())]), flush=True)


if __name__ == "__main__":
    run(lambda: main(CONFIG))
