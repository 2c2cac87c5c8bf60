"""Fine-tune an embedding model on pairs, with InfoNCE over nested (Matryoshka) dimensions.

python train/embed.py --config configs/embed/quickstart.yaml
accelerate launch train/embed.py --config configs/embed/qwen3-0.6b-lora.yaml --output_dir runs/mine
"""

from nestling.config import EmbedConfig, parse_config, run

if __name__ == "__main__":
    CONFIG = parse_config(EmbedConfig, __doc__)  # before the slow imports, so that --help and bad keys answer at once

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TypedDict, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from nestling.adapters import attach_lora
from nestling.batching import Draw, Plan, Planner, Source
from nestling.checkpoint import (
    Checkpoints,
    NonFiniteGuard,
    RunFolder,
    StopSignal,
    TrainingState,
    check_run_folder,
    ignore_stop_signals,
    on_rank_zero,
    open_run_folder,
    restore,
    trainable_tensors,
    write_training,
)
from nestling.collation import Collator, TrainBatch
from nestling.config import DevData, LossConfig, require, require_dims, require_unique
from nestling.distributed import gather_batch, require_world, sum_over_ranks
from nestling.embedder import Embedder, max_positions, read_config, read_model_files
from nestling.export import export_embedder
from nestling.lengths import measure_lengths
from nestling.losses import Terms, cosent, distillation
from nestling.model_card import Card, DataLine, before_and_after
from nestling.optim import adamw, clip_gradients, learning_rate_at, set_learning_rate
from nestling.packing import token_budget
from nestling.records import RetrievalSet, load_records, load_retrieval_set
from nestling.retrieval import evaluate_embedder
from nestling.streaming import info_nce
from nestling.tracking import Meter, Progress, Results, evaluation_at, open_tracker, summary, table

# Ranks wait so long for rank 0, which converts data before the loop and exports after it.
PATIENCE = timedelta(hours=12)

# A resumed run may differ in these: they touch neither data, weights nor schedule.
MAY_DIFFER = ("output_dir", "resume", "wandb", "tensorboard", "workers", "log_steps", "keep_checkpoints", "cpu")


def main(config: EmbedConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    output, settings = Path(config.output_dir), asdict(config)
    check_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER)
    if (output / "final").exists():
        print(f"{output} is complete: {output / 'final'} holds its model")
        return
    dims = nested_dims(config)
    accelerator = start(config)

    # 1. Data, read and checked before any weights load.
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        sources = load_sources(config, accelerator.is_main_process)
        dev_sets = [load_dev(dev) for dev in config.dev]
    require_unique("train", [source.table.name for source in sources])
    require_unique("dev", [dev_set.name for dev_set in dev_sets])
    draw = Draw(config.positives, config.negatives, config.seed)
    planner = Planner(sources, config.batch_size, draw, config.seed, config.mixing_temperature)

    # 2. The model, checked before the run folder is made.
    embedder = load_model(config)

    # 3. The run: sections 4 to 6 below.
    with open_run_folder(output, settings, resume=config.resume, may_differ=MAY_DIFFER) as folder:
        train(config, accelerator, folder, planner, dev_sets, embedder, dims)
    accelerator.end_training()


def start(config: EmbedConfig) -> Accelerator:
    """The process group; the embedder itself computes in the precision asked for."""
    accelerator = Accelerator(
        cpu=config.cpu or not torch.accelerator.is_available(),
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    require_world(accelerator.num_processes)
    require(
        config.batch_size % accelerator.num_processes == 0,
        f"batch_size {config.batch_size} is for all {accelerator.num_processes} processes together and must divide by "
        "their number",
    )
    torch.manual_seed(config.seed)
    return accelerator


def train(
    config: EmbedConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    planner: Planner,
    dev_sets: list[RetrievalSet],
    embedder: Embedder,
    dims: dict[int, float],
) -> None:
    main_rank, device = accelerator.is_main_process, accelerator.device
    total = config.max_steps or math.ceil(config.epochs * planner.steps_per_epoch)
    warmup = round(config.warmup * total)
    collator = build_collator(config, planner, embedder, accelerator)
    model, optimizer = accelerator.prepare(
        embedder, adamw(embedder, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    )

    # 4. Where to start: at the newest complete checkpoint if the run is resumed.
    checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
    newest = checkpoints.recover() if folder.resumed else None
    data = planner.fingerprint()
    state = restore(newest, embedder, optimizer) if newest else TrainingState(data=data)
    require(
        state.data == data,
        f"the training data is not what the run in {folder.path} began with; start a new run for it",
    )
    guard = NonFiniteGuard(config.max_bad_steps, state.skipped_steps, state.skipped_in_a_row)
    if main_rank:
        print(derivation(config, planner, collator, embedder, list(dims), total, state.step), flush=True)

    def evaluate() -> None:
        results = {
            dev_set.name: evaluate_embedder(
                embedder,
                dev_set,
                list(dims),
                query_max_length=config.query_max_length,
                document_max_length=config.document_max_length,
                instruction=dev.instruction,
                progress=main_rank,
            )
            for dev, dev_set in zip(config.dev, dev_sets, strict=True)
        }
        tracker.log_evaluation(state.step, results)
        if state.step:  # the model as it came is there to compare with, not a checkpoint
            state.judge(fmean(result[embedder.dim]["nDCG@10"] for result in results.values()))
        progress.say(f"step {state.step}\n{evaluation_table(results)}")

    def save() -> None:
        state.skipped_steps, state.skipped_in_a_row = guard.skipped, guard.in_a_row
        tensors, moments = trainable_tensors(embedder), optimizer.state_dict()
        checkpoints.save(
            state.step, lambda path: write_training(path, tensors, moments, state), best_step=state.best_step
        )

    def stale() -> bool:
        return 0 < config.early_stopping <= state.evaluations_since_best

    # 5. The loop. All that is random is a function of (seed, step, rank): resuming needs no generator's state.
    with (
        open_tracker(
            folder.path,
            main_rank=main_rank,
            resumed_step=state.step if newest else None,
            wandb_project=config.wandb,
            tensorboard=config.tensorboard,
            config=asdict(config),
        ) as tracker,
        Progress(total, done=state.step, shown=main_rank) as progress,
        StopSignal() as stop,
    ):
        if dev_sets and not newest:
            evaluate()
        meter, started = Meter(state.tokens), time.perf_counter()
        for batch in load_batches(config, planner, collator, state.step, state.step if stale() else total):
            seed_step(config.seed, state.step, accelerator.process_index)
            rate = learning_rate_at(
                state.step, total=total, peak=config.learning_rate, warmup=warmup, schedule=config.schedule
            )
            set_learning_rate(optimizer, rate)
            model.train()
            share = loss_share(model, batch.to(device), config.loss, dims)
            # Data parallel training takes the mean of the ranks' gradients, and their shares of the loss sum to it.
            accelerator.backward(share * accelerator.num_processes)
            norm = clip_gradients(model.parameters(), config.max_grad_norm)
            loss, tokens, truncated = sum_over_ranks([share.item(), batch.tokens.tokens, batch.truncated], device)
            if guard.accepts(state.step, loss, norm):
                optimizer.step()
            optimizer.zero_grad()
            state.advance(config.batch_size, int(tokens), int(truncated))

            meter.add(loss, norm, time.perf_counter() - started)
            if state.step % config.log_steps == 0 or state.step == total:
                figures = meter.read(state.tokens)
                tracker.log(
                    state.step,
                    {
                        "epoch": state.step / planner.steps_per_epoch,
                        "learning_rate": rate,
                        **figures,
                        **totals(state, guard),
                    },
                )
                progress.update(
                    state.step,
                    loss=figures["loss"],
                    learning_rate=rate,
                    tokens_per_second=figures["tokens_per_second"],
                )
            if dev_sets and due(state.step, config.eval_steps, planner.steps_per_epoch, total):
                evaluate()
            early = stale()
            stopping = stop.requested(device)
            new_best = state.best_step == state.step
            if new_best or early or stopping or due(state.step, config.save_steps, planner.steps_per_epoch, total):
                save()
            if stopping:
                leave(stop, checkpoints.path(state.step), progress)
            if early:
                progress.say(f"no better result in {config.early_stopping} evaluations: stopping at step {state.step}")
                break
            started = time.perf_counter()

    # 6. The result: the best checkpoint (or the last) as a directory to serve, once it has passed the parity gate.
    if config.export_best and state.best_step is not None and state.best_step != state.step:
        restore(checkpoints.verified(state.best_step), embedder)
    shown = state.best_step if config.export_best and state.best_step is not None else state.step
    on_rank_zero(lambda: publish(config, folder, embedder, planner.sources, list(dims), shown))


def load_sources(config: EmbedConfig, main_rank: bool) -> list[Source]:
    """Read the training sets and say what was read, kept and dropped."""
    sources = []
    for data in config.train:
        table = load_records(
            data.path, split=data.split, name=data.name, instruction=data.instruction, progress=main_rank
        )
        require(
            data.in_batch_negatives or table.graded or min(table.max_negatives, config.negatives) > 0,
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


def load_dev(dev: DevData) -> RetrievalSet:
    retrieval_set = load_retrieval_set(dev.path, dev.split)
    return replace(retrieval_set, name=dev.name) if dev.name else retrieval_set


def load_model(config: EmbedConfig) -> Embedder:
    """The model with what is to be trained; master weights are float32, and frozen ones stay as they are published."""
    instructions = {data.instruction for data in config.train}
    shared = next(iter(instructions)) if len(instructions) == 1 else None
    frozen = config.tuning == "lora" and config.precision == "bf16"
    embedder = Embedder.from_pretrained(
        config.model,
        dtype="auto" if frozen else torch.float32,
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        attention=config.attention,
        cpu=config.cpu,
        pooling=config.pooling,
        dropout=config.dropout,
        instruction=config.instruction or shared,
    )
    require_room(config, embedder, instructions)
    if config.tuning == "lora":
        lora = config.lora
        embedder.backbone = attach_lora(
            embedder.backbone, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets
        )
    if config.gradient_checkpointing:
        embedder.enable_gradient_checkpointing()
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
    longest, readable = max(config.query_max_length, config.document_max_length), max_positions(published)
    require(
        longest <= readable,
        f"query_max_length, document_max_length: {longest} tokens are more than the model's {readable}",
    )
    weights = dict(zip(config.dims, config.dim_weights or [1.0] * len(config.dims), strict=True))
    return {dim: weights.get(dim, 1.0) for dim in sorted({*config.dims, published.hidden_size}, reverse=True)}


def build_collator(config: EmbedConfig, planner: Planner, embedder: Embedder, accelerator: Accelerator) -> Collator:
    return Collator(
        planner.sources,
        planner.draw,
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        chunk_tokens=config.chunk_tokens or token_budget(accelerator.device),
        teacher=config.loss.distillation > 0,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def derivation(
    config: EmbedConfig,
    planner: Planner,
    collator: Collator,
    embedder: Embedder,
    dims: list[int],
    total: int,
    done: int,
) -> str:
    """What follows from the settings and the data, to read before step 1."""
    trainable = sum(parameter.numel() for parameter in embedder.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in embedder.parameters())
    in_batch = planner.batch_size - 1
    lengths = [measure_lengths(collator, i) for i in range(len(planner.sources))]
    items: dict[str, object] = {
        "model": f"{config.model} ({embedder.pooling} pooling, {embedder.dim} dimensions, {config.precision})",
        "query prompt": repr(embedder.prompts.query()),
        "trained": f"{trainable:,} of {everything:,} parameters ({config.tuning})",
        "dimensions": ", ".join(map(str, dims)),
        "processes": collator.world_size,
        "global batch": f"{planner.batch_size} queries, {planner.batch_size // collator.world_size} on each process",
        "negatives a query": f"up to {config.negatives} of its own, and documents of {in_batch} other queries",
        "steps": f"{total:,} ({planner.steps_per_epoch:,} an epoch)" + (f", {done:,} done" if done else ""),
    }
    for source, length in zip(planner.sources, lengths, strict=True):
        items[f"data {source.table.name}"] = str(length)
    return summary("training", items)


def load_batches(
    config: EmbedConfig, planner: Planner, collator: Collator, done: int, total: int
) -> Iterator[TrainBatch]:
    """Batches from step `done` on, tokenised in workers."""
    plans = islice(planner.plans(skip=done), max(0, total - done))
    return iter(
        DataLoader(
            collator,
            sampler=cast(Sampler[Plan], plans),
            batch_size=None,
            num_workers=config.workers,
            worker_init_fn=start_worker,
            pin_memory=False,
        )
    )


def start_worker(worker_id: int) -> None:
    ignore_stop_signals(worker_id)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork


class Nested(TypedDict):
    dims: list[int]
    dim_weights: list[float]


def loss_share(model: nn.Module, batch: TrainBatch, loss: LossConfig, dims: dict[int, float]) -> Tensor:
    """This rank's share of the loss of the global batch, a float32 scalar; the shares of all ranks sum to it."""
    nested: Nested = {"dims": list(dims), "dim_weights": list(dims.values())}
    embeddings = model(batch.tokens)  # [n, D] of this rank's distinct texts
    own = embeddings[batch.queries]  # [Q/W, D]
    queries, documents = gather_batch(own, embeddings[batch.documents], batch.document_counts)  # [Q, D], [N, D]
    if batch.scores is not None:
        whole = cosent(queries, documents, batch.scores, temperature=loss.graded_temperature, **nested)
        return whole / len(batch.document_counts)  # every rank computes all of it
    share = info_nce(
        queries,
        documents,
        batch.layout,
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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), different on every rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def due(step: int, every: int, per_epoch: int, total: int) -> bool:
    """Whether something happens after `step`: every so many steps, or after each epoch with 0; always at the end."""
    return step % (every or per_epoch) == 0 or step == total


def totals(state: TrainingState, guard: NonFiniteGuard) -> dict[str, float]:
    """Running counts of a line of metrics."""
    return {
        "tokens": state.tokens,
        "examples": state.examples,
        "truncated": state.truncated,
        "skipped_steps": guard.skipped,
    }


def evaluation_table(results: Results) -> str:
    rows = [[name, dim, *metrics.values()] for name, by_dim in results.items() for dim, metrics in by_dim.items()]
    names = list(next(iter(next(iter(results.values())).values())))
    return table(["dev set", "dim", *names], rows, digits=4)


def leave(stop: StopSignal, checkpoint: Path, progress: Progress) -> None:
    """Say where the run stands after SIGTERM or Ctrl-C, and end with the signal's status."""
    name = stop.received.name if stop.received else "a signal to another process"
    progress.say(f"stopped by {name}; saved {checkpoint}; go on with the same command and --resume true")
    sys.exit(128 + (stop.received or signal.SIGTERM))


def data_line(source: Source) -> str:
    """A dataset in one line of the model card."""
    summary = source.table.summary
    negatives = f", {summary.negatives:,} hard negatives" if summary.negatives else ""
    instruction = f", instruction: {source.table.instruction}" if source.table.instruction else ""
    return f"{summary.positives:,} positives{negatives}{instruction}"


def publish(
    config: EmbedConfig, folder: RunFolder, embedder: Embedder, sources: Sequence[Source], dims: list[int], step: int
) -> None:
    """Write final/, and print before and after."""
    scores = before_and_after(evaluation_at(folder.metrics, 0), evaluation_at(folder.metrics, step))
    card = Card(
        data=[DataLine(each.table.name, len(each.table), data_line(each)) for each in sources],
        config=config.published(),
        scores=scores,
    )
    instructions = {each.table.name: each.table.instruction for each in sources if each.table.instruction}
    report = export_embedder(
        embedder,
        folder.final,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        dims=dims if config.dims else (),
        instructions=instructions,
        card=card,
    )
    print("\n".join(["parity gate passed", *(f"  {line}" for line in report.lines())]))
    if scores:
        rows = [[each.dataset, each.dim, each.before, each.after] for each in scores if each.metric == "nDCG@10"]
        print(table(["dev set", "dim", "nDCG@10 before", "after"], rows, digits=4))
    print(f"{folder.final} holds the model of step {step}")


if __name__ == "__main__":
    run(lambda: main(CONFIG))
