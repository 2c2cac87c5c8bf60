"""Fine-tune a reranker that answers yes or no, on the same records as the embedder.

python train/rerank.py --config configs/rerank/qwen3-0.6b-lora.yaml --train pairs.jsonl
accelerate launch train/rerank.py --config configs/rerank/qwen3-0.6b-lora.yaml --output_dir runs/mine
"""

from nestling.config import RerankConfig, parse_config, run

if __name__ == "__main__":
    CONFIG = parse_config(RerankConfig, __doc__)  # before the slow imports, so that --help and bad keys answer at once

import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from nestling.backends import Backend, prepare
from nestling.backends.optimizer import adamw
from nestling.backends.sizes import full_shape
from nestling.batches.packing import token_budget
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.checkpoint import RunFolder, check_run_folder, open_run_folder
from nestling.config import CandidateData, RerankLossConfig, require, require_unique
from nestling.console import summary
from nestling.distributed.ranks import sum_over_ranks
from nestling.export.embedder_card import run_card
from nestling.export.reranker import export_reranker
from nestling.losses.reranker import kl, listwise, pointwise, pointwise_vocabulary
from nestling.models.reranker import Reranker, read_settings
from nestling.models.scoring import logit_of
from nestling.models.token_model import max_positions, read_config
from nestling.models.trainable import load_trainable
from nestling.records import RetrievalSet, load_records, load_retrieval_set
from nestling.report.page import draw_run
from nestling.retrieval import Candidates, evaluate_candidates, open_candidates, rerank
from nestling.run_files import Results
from nestling.training.accumulated_step import accumulated_backward
from nestling.training.memory import MemoryEstimate, activation_bytes, estimate, sample_chunk
from nestling.training.profiling import profile_step, profile_table, profiled_sizes
from nestling.training.recipe import MAY_DIFFER, PROFILED, load_batches, longest_batch, record_data, seed_step, start
from nestling.training.rerank_step import RerankStep
from nestling.training.run import Intervals, Run, open_run
from nestling.training.schedule import course, total_steps

EXPORT = Path(__file__).parents[1] / "scripts" / "export.py"


@dataclass(frozen=True)
class DevSet:
    """A development set with its candidates."""

    retrieval_set: RetrievalSet
    candidates: Candidates
    instruction: str | None

    @property
    def depth(self) -> int:
        """Candidates of the query that has most."""
        return max(len(rows) for rows in self.candidates.rows)


def main(config: RerankConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    output, settings = Path(config.output_dir), asdict(config)
    check_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER)
    if (output / "final").exists():
        print(f"{output} is complete: {output / 'final'} holds its model")
        return
    published = read_config(config.model)
    accelerator = start(cpu=config.cpu, batch_size=config.batch_size, seed=config.seed)

    # 1. Data, read and checked before any weights load.
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        sources = load_sources(config, accelerator.is_main_process)
        dev_sets = [load_dev(dev, accelerator.is_main_process) for dev in config.dev]
    require_unique("train", [source.table.name for source in sources])
    require_unique("dev", [each.retrieval_set.name for each in dev_sets])
    row_sampler = RowSampler(config.positives, config.negatives, config.seed)
    batch_sampler = BatchSampler(sources, config.batch_size, row_sampler, config.seed, config.mixing_temperature)

    # 2. The model, checked before the run folder is made.
    reranker = load_model(config)
    require_room(config, reranker, max_positions(published))

    if config.dry_run:
        dry_run(config, accelerator, batch_sampler, reranker)
        return

    # 3. The run: sections 4 to 6 below.
    with open_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER) as folder:
        if accelerator.is_main_process:
            record_data(folder.path, sources, [each.retrieval_set for each in dev_sets])
        train(config, accelerator, folder, batch_sampler, dev_sets, reranker)
    accelerator.end_training()


def train(
    config: RerankConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    batch_sampler: BatchSampler,
    dev_sets: list[DevSet],
    reranker: Reranker,
) -> None:
    main_rank, device = accelerator.is_main_process, accelerator.device
    total = total_steps(batch_sampler, epochs=config.epochs, max_steps=config.max_steps)
    collator, backend = build_collator_and_backend(config, accelerator, batch_sampler, reranker)
    needed = memory(reranker, collator, backend)
    measure = partial(evaluate, reranker, dev_sets, config.chunk_tokens, backend.sharded, main_rank)
    describe = partial(training_summary, config, batch_sampler, reranker, collator, backend, needed, total)

    # 4. The run: at its newest complete checkpoint if it is resumed.
    with open_run(
        folder,
        batch_sampler,
        backend,
        keep_checkpoints=config.keep_checkpoints,
        cadence=Intervals(config.log_steps, config.eval_steps, config.save_steps, config.early_stopping),
        total=total,
        measure=measure if dev_sets else None,
        cut="depth",
        main_rank=main_rank,
        max_bad_steps=config.max_bad_steps,
        settings=asdict(config),
        describe=describe,
    ) as run:
        # 5. The loop. All that is random is a function of (seed, step, rank): resuming needs no generator's state.
        state = run.state
        rate_at = course(total, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule)
        step = RerankStep(backend, collator, partial(loss_share, loss=config.loss), run.progress.say)
        for batch in load_batches(collator, batch_sampler, run.steps, config.workers):
            seed_step(config.seed, state.step, accelerator.process_index)
            reranker.train()
            part = step(batch.to(device))
            loss, tokens, truncated, stopping, ran_out = sum_over_ranks(
                [part.item(), batch.tokens, batch.truncated, run.told_to_stop, step.ran_out], device
            )
            if ran_out:
                run.give_up(collator.chunk_tokens)
            rate = rate_at(state.step)
            norm = backend.update(rate, config.max_grad_norm, partial(run.guard.accepts, state.step, loss))
            state.advance(config.batch_size, int(tokens), int(truncated))
            if not run.close_step(rate, loss, norm, stopping=stopping > 0):
                break

    # 6. The result: the best checkpoint (or the last) as a directory to serve, once it has passed the parity gates.
    run.publish(partial(export, config, run, reranker), EXPORT, best=config.export_best, whole=config.tuning != "qlora")
    if main_rank:
        draw_run(folder.path)


def loss_share(logits: Tensor, labels: ChunkLabels, batch: RerankBatch, loss: RerankLossConfig) -> Tensor:
    """What a chunk has in the loss of the global batch: the mean over its pairs, or over its queries.

    `logits` is what the model gives for the n prompts of the chunk, [n, C].
    """
    if loss.objective == "pointwise":
        whole = loss.label_space == "vocabulary"
        weight = {"positive_weight": loss.positive_weight}
        losses = (
            pointwise_vocabulary(logits, labels.targets, **weight)
            if whole
            else pointwise(logits[:, 0], labels.targets, **weight)
        )
        return losses.sum() / batch.pairs
    present = labels.group >= 0  # [Q, G]
    scores = logit_of(logits)[labels.group]
    if loss.objective == "listwise":
        positive = labels.targets[labels.group] > 0.5
        return listwise(scores, positive, present, temperature=loss.temperature).sum() / batch.queries
    assert labels.teacher is not None
    temperatures = {"temperature": loss.temperature, "teacher_temperature": loss.teacher_temperature}
    return kl(scores, labels.teacher[labels.group], present, **temperatures).sum() / batch.queries


def evaluate(
    reranker: Reranker, dev_sets: list[DevSet], chunk_tokens: int | None, equal_forwards: bool, shown: bool
) -> Results:
    """Metrics of the candidates as the model orders them now, on each dev set."""
    return {
        each.retrieval_set.name: {
            each.depth: evaluate_candidates(
                rerank(
                    reranker,
                    each.retrieval_set,
                    each.candidates,
                    instruction=each.instruction,
                    tokens_per_batch=chunk_tokens,
                    equal_forwards=equal_forwards,
                    progress=shown,
                ),
                each.candidates,
                each.retrieval_set,
            )
        }
        for each in dev_sets
    }


def build_collator_and_backend(
    config: RerankConfig, accelerator: Accelerator, batch_sampler: BatchSampler, reranker: Reranker
) -> tuple[RerankCollator, Backend]:
    """What makes batches, and what trains on them."""
    optimizer = adamw(reranker, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    share = config.batch_size // accelerator.num_processes
    backend = prepare(accelerator, reranker, optimizer, queries_per_rank=share, max_norm=config.max_grad_norm)
    collator = RerankCollator(
        batch_sampler.sources,
        batch_sampler.row_sampler,
        reranker.pairs,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        chunk_tokens=config.chunk_tokens or token_budget(accelerator.device),
        share_prefix=reranker.share_prefix,
        padding_free=reranker.padding_free,
        whole_groups=config.loss.objective != "pointwise",
        teacher_targets=config.loss.labels == "teacher",
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    return collator, backend


def dry_run(config: RerankConfig, accelerator: Accelerator, batch_sampler: BatchSampler, reranker: Reranker) -> None:
    """--dry_run: the longest of the first batches in chunks of several sizes; nothing is written."""
    collator, backend = build_collator_and_backend(config, accelerator, batch_sampler, reranker)
    needed = memory(reranker, collator, backend)
    if accelerator.is_main_process:
        print(
            training_summary(
                config, batch_sampler, reranker, collator, backend, needed, batch_sampler.steps_per_epoch, 0
            ),
            flush=True,
        )
    indices = longest_batch(batch_sampler, lambda each: collator[each].tokens, accelerator.device)
    batch = collator[indices].to(accelerator.device)

    def take(size: int) -> tuple[int, int]:
        again = collator.rechunk(batch, size)
        accumulated_backward(
            backend, again.chunks, lambda i, logits: loss_share(logits, again.labels[i], again, config.loss)
        )
        backend.zero_grad()
        return again.tokens, again.positions

    reranker.train()
    found = list(profile_step(take, profiled_sizes(collator.chunk_tokens, backend.ranks), accelerator.device))
    if accelerator.is_main_process:
        print(profile_table(found, batch.tokens))


def load_sources(config: RerankConfig, main_rank: bool) -> list[Source]:
    """Read the training sets and say what was read, kept and dropped."""
    sources = []
    for data in config.train:
        table = load_records(
            data.path,
            split=data.split,
            name=data.name,
            instruction=data.instruction,
            progress=main_rank,
            allow_no_positives=True,
        )
        if main_rank:
            print(table.summary, flush=True)
        require(
            table.graded or min(table.max_negatives, config.negatives) > 0,
            f"{data.path}: a reranker learns from negatives, and it has or draws none; mine some first",
        )
        require(
            not table.graded or config.loss.objective == "pointwise",
            f"{data.path}: graded pairs have one document a query, and the {config.loss.objective} objective compares "
            "several; choose pointwise",
        )
        require(
            config.loss.objective != "listwise" or table.max_positives > 0,
            f"{data.path}: no row has a positive, and listwise compares positives with negatives; choose pointwise",
        )
        require(
            not config.loss.needs_scores or table.has_scores or table.graded,
            f"{data.path}: the loss needs scores, and not every row has them; write them with "
            "scripts/mine.py --judge, or choose another objective",
        )
        if config.loss.labels == "teacher" or table.graded:
            low, high = table.score_range()
            require(
                0 <= low <= high <= 1,
                f"{data.path}: scores from {low:g} to {high:g} are no probabilities; scale them to 0..1",
            )
        sources.append(Source(table, data.weight))
    return sources


def load_dev(dev: CandidateData, main_rank: bool) -> DevSet:
    retrieval_set = load_retrieval_set(dev.path, dev.split)
    retrieval_set = replace(retrieval_set, name=dev.name) if dev.name else retrieval_set
    candidates = open_candidates(dev.candidates, retrieval_set, dev.depth)
    if main_rank:
        print(f"{retrieval_set.summary}\n  {dev.candidates}: {candidates}", flush=True)
        before = evaluate_candidates(candidates.before, candidates, retrieval_set)
        print("  their order: " + ", ".join(f"{name} {value:.4f}" for name, value in before.items()), flush=True)
    return DevSet(retrieval_set, candidates, dev.instruction)


def load_model(config: RerankConfig) -> Reranker:
    """The model with what is to be trained."""
    reranker = load_trainable(
        Reranker,
        config.model,
        settings=replace(read_settings(config.model), **config.reading),
        lora=None if config.tuning == "full" else asdict(config.lora),
        quantised=config.tuning == "qlora",
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        attention=config.attention,
        share_prefix=config.share_prefix,
        dropout=config.dropout,
        cpu=config.cpu,
    )
    reranker.full_vocabulary = config.loss.label_space == "vocabulary"
    if config.checkpoint_length is not None:
        reranker.checkpoint_activations_above(config.checkpoint_length)
    return reranker


def require_room(config: RerankConfig, reranker: Reranker, readable: int) -> None:
    """Refuse length limits that make prompts longer than the model can read."""
    tasks = [*(data.instruction for data in config.train), *(data.instruction for data in config.dev)]
    overhead = max(map(reranker.pairs.overhead, tasks))
    longest = overhead + config.query_max_length + config.document_max_length
    require(
        longest <= readable,
        f"query_max_length, document_max_length: with the {overhead} tokens of the prompt they make {longest}, more "
        f"than the model's {readable}",
    )


def memory(reranker: Reranker, collator: RerankCollator, backend: Backend) -> MemoryEstimate:
    """What a rank needs; graphs do not outlive their chunk."""
    length = min(collator.query_max_length + collator.document_max_length, collator.chunk_tokens)
    chunk = sample_chunk(length, collator.chunk_tokens, reranker.config.vocab_size, reranker.device)
    reranker.train()
    with backend.computing():
        bytes_held = activation_bytes(reranker, partial(backend.forward, last=True), chunk)
    return estimate(
        reranker, backend.state_fractions, chunk=bytes_held / chunk.positions * collator.chunk_tokens, graphs=0.0
    )


def training_summary(
    config: RerankConfig,
    batch_sampler: BatchSampler,
    reranker: Reranker,
    collator: RerankCollator,
    backend: Backend,
    needed: MemoryEstimate,
    total: int,
    done: int,
) -> str:
    """What follows from the settings and the data, to read before step 1."""
    trainable = sum(full_shape(each).numel() for each in reranker.parameters() if each.requires_grad)
    everything = sum(full_shape(each).numel() for each in reranker.parameters())
    first = [
        collator[indices] for indices in islice(batch_sampler.batches(), min(PROFILED, batch_sampler.steps_per_epoch))
    ]
    tokens, positions = sum(each.tokens for each in first), sum(each.positions for each in first)
    loss = config.loss
    items: dict[str, object] = {
        "model": f"{config.model} ({config.precision})",
        "prompt": repr(reranker.settings.prompt.body("{query}", "{document}")),
        "answers": f"{reranker.settings.yes!r} and {reranker.settings.no!r}",
        "trained": f"{trainable:,} of {everything:,} parameters ({config.tuning})",
        "objective": f"{loss.objective}" + (f" over {loss.label_space}" if loss.objective == "pointwise" else ""),
        "processes": f"{collator.world_size} ({backend.name})",
        "global batch": f"{config.batch_size} queries, {config.batch_size // collator.world_size} on each process",
        "documents a query": f"up to {config.positives} positives and {config.negatives} negatives",
        "steps": f"{total:,} ({batch_sampler.steps_per_epoch:,} an epoch)" + (f", {done:,} done" if done else ""),
        "prompts": f"{tokens / sum(each.pairs for each in first) * collator.world_size:.0f} tokens each, "
        f"{positions / tokens:.3f} positions a token"
        + (" (common beginnings run once)" if reranker.share_prefix else ""),
        **needed.items(),
        "truncated": f"{sum(each.truncated for each in first):,} queries and documents of the first "
        f"{len(first)} batches" + (", in this process" if collator.world_size > 1 else ""),
    }
    return summary("training", items)


def export(config: RerankConfig, run: Run, reranker: Reranker, step: int) -> None:
    reranker.full_vocabulary = False
    report = export_reranker(reranker, run.folder.final, card=run_card(run.folder.path, config.published(), step))
    print("\n".join(["parity gates row_epoch", *(f"  {line}" for line in report.lines())]), flush=True)


if __name__ == "__main__":
    run(lambda: main(CONFIG))
