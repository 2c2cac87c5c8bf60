"""Mine hard negatives for training records, filtered so that few of them are relevant after all.

    python scripts/mine.py --data pairs.jsonl --retrievers MODEL_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers bm25,MODEL_DIR,run.trec --percent 0.95 --output mined.jsonl
    accelerate launch scripts/mine.py --data my-beir --retrievers MODEL_DIR --judge RERANKER_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers MODEL_DIR --sweep true
    python scripts/mine.py --judge RERANKER_DIR --data mined.jsonl --output judged.jsonl

The last form drops and moves nothing: it writes a reranker's scores beside the positives and negatives of records.
Embeddings and a judge's scores stay in the cache ($NESTLING_CACHE), so other thresholds, or a run that was killed, cost
little. docs/mining.md explains the settings.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import MineConfig, parse_config, require, require_extra, require_model, require_new, run

if TYPE_CHECKING:
    from nestling.mining.candidates import Candidates
    from nestling.mining.judgements import Judgements
    from nestling.mining.mined import Mined, Positives
    from nestling.mining.retrievers import Retriever
    from nestling.mining.rows import MinedRows
    from nestling.mining.selection import Verdicts
    from nestling.mining.task import Task


def main() -> None:
    config = parse_config(MineConfig, __doc__)
    for flag, name in (("--output", config.output), ("--audit", config.audit)):
        require_new(flag, name)
    embedders = models_of([*config.retrievers, config.scorer])
    for model in [*embedders, *models_of([config.judge])]:
        check_model(model)
    require(config.ceiling is None or bool(embedders), "ceiling needs an embedder, whose cosines it bounds")
    run_files = [each for each in config.retrievers if Path(each).is_file()]
    require(config.scores != "ensemble" or not run_files, "scores: ensemble: a run file does not score every document")
    if config.index is not None:
        check_index(config.index, config.index_search, models_of([*config.retrievers]))
    if not config.retrievers:
        judge_records(config)
        return
    mine(config)


def mine(config: MineConfig) -> None:
    import numpy as np

    from nestling.distributed.ranks import on_rank_zero
    from nestling.mining.judging import open_judge, probabilities
    from nestling.mining.lists import Lists
    from nestling.mining.mined import Mined, drop_beyond, drop_copies, drop_ranks
    from nestling.mining.selection import Verdicts
    from nestling.mining.steps import choose_scorer, draw_negatives, drop_by_score, find_candidates, read_by_judge
    from nestling.mining.task import open_retrievers, open_task, precision_of, read_judgements

    # 1. Records, their queries, the documents.
    task = open_task(config)
    judgements = read_judgements(config, task)

    # 2. Candidates, with the scorer's scores of all of them and of the positives.
    retrievers = open_retrievers(config, task)
    scorer = choose_scorer(config, retrievers)
    candidates, positives = find_candidates(config, task, retrievers, scorer)
    order = next(iter(retrievers)) if scorer == "judge" else scorer

    # 3. Rules, in this order: the first that hits a candidate counts.
    verdicts = Verdicts(len(candidates))
    drop_copies(verdicts, task.asked, task.pool, positives.lists, candidates)
    if config.sweep:
        sweep(config, task, retrievers, candidates, positives, verdicts, order, judgements)
        return
    drop_ranks(verdicts, candidates, config.rank_from, config.rank_to)
    if scorer != "judge":
        drop_by_score(config, candidates, positives, verdicts, retrievers, scorer)
    likely = np.zeros(len(candidates), dtype=bool)
    if config.judge is not None:
        drop_beyond(verdicts, candidates, order, config.judge_depth)
        judge = open_judge(config.judge, precision=precision_of(config), device=task.device)
        candidates, positives = read_by_judge(task, judge, candidates, positives, verdicts)
        if scorer == "judge":
            drop_by_score(config, candidates, positives, verdicts, retrievers, scorer)
        likely = verdicts.left & (probabilities(candidates.scores["judge"]) > config.relevant)
        verdicts.drop(f"relevant to the judge (above {config.relevant:g})", likely)

    # 4. The draw, and what came of it.
    added = np.flatnonzero(likely) if config.relabel else np.zeros(0, np.int64)
    mined = Mined(
        asked=task.asked,
        pool=task.pool,
        positives=positives,
        candidates=candidates,
        verdicts=verdicts,
        scorer=scorer,
        negatives=draw_negatives(config, task, candidates, verdicts, scorer),
        relabelled=Lists.grouped(candidates.queries[added], added, len(task.asked)),
    )
    on_rank_zero(lambda: report(config, task, mined, judgements))


def models_of(settings: "list[str | None]") -> list[str]:
    """Those of some settings that name models: neither files nor words of ours."""
    ours = ("bm25", "given", "judge")
    return [each for each in settings if each is not None and each not in ours and not Path(each).is_file()]


def check_model(model: str) -> None:
    require_model(model, f"{model}: no such file or directory; expected bm25, a model or a run file")


def check_index(factory: str, search: str | None, models: list[str]) -> None:
    """Refuse what FAISS cannot build for the models that search, before any is loaded."""
    require(bool(models), "index needs an embedder among the retrievers, whose candidates are found in it")
    require_extra("index", "faiss", "faiss")
    from nestling.mining.approximate import Index
    from nestling.models.embedder import read_width

    for model in models:
        Index(factory, search).empty(read_width(model))


def sweep(
    config: MineConfig,
    task: "Task",
    retrievers: "dict[str, Retriever]",
    candidates: "Candidates",
    positives: "Positives",
    verdicts: "Verdicts",
    order: str,
    judgements: "Judgements | None",
) -> None:
    """Print a table of what thresholds would keep."""
    from nestling.mining.judging import open_judge, probabilities
    from nestling.mining.mined import drop_beyond
    from nestling.mining.steps import dense_ones, read_by_judge
    from nestling.mining.sweep import table_lines, try_settings
    from nestling.mining.task import precision_of

    likely = None
    if config.judge is not None:
        judge = open_judge(config.judge, precision=precision_of(config), device=task.device)
        read = verdicts.copy()
        drop_beyond(read, candidates, order, config.judge_depth)
        candidates, positives = read_by_judge(task, judge, candidates, positives, read)
        likely = probabilities(candidates.scores["judge"])
    outcomes = try_settings(
        candidates,
        positives,
        verdicts,
        order,
        negatives=config.num_negatives,
        cosines=order in dense_ones(retrievers),
        probabilities=likely,
        judgements=judgements,
    )
    task.say(f"the {config.num_negatives} highest by {order} of what each rule leaves:")
    task.say(*table_lines(list(outcomes), judged=judgements is not None))


def report(config: MineConfig, task: "Task", mined: "Mined", judgements: "Judgements | None") -> None:
    """Write the rows and the page; say what happened."""
    from nestling.files import replace_text, write_jsonl
    from nestling.mining.audit import audit_page
    from nestling.mining.judging import probabilities
    from nestling.mining.mined import summary_lines
    from nestling.mining.rows import MinedRows

    assert config.output is not None
    written = "judge" if config.judge is not None else mined.scorer
    written = "ensemble" if config.scores == "ensemble" else written
    scores = [mined.positives.scores[written], mined.candidates.scores[written]]
    if written == "judge" and config.scores == "probability":
        scores = [probabilities(each) for each in scores]
    rows = MinedRows(task.table, mined, *scores)
    write_jsonl(Path(config.output), mined_lines(config, rows))
    lines = list(summary_lines(mined, config.num_negatives))
    if judgements is not None:
        lines.append(f"  {judgements.measure(mined.candidates, mined.negatives.values)}")
    lines.append(f"{config.output}: {rows.written}, with scores of {written}")
    task.say(*lines)
    if config.audit is not None:
        settings = {name: value for name, value in asdict(config).items() if value not in (None, False)}
        title = f"Negatives for {task.table.name}"
        replace_text(Path(config.audit), audit_page(mined, scorer=written, title=title, settings=settings, lines=lines))
        task.say(f"{config.audit} shows the most suspicious negatives")


def mined_lines(config: MineConfig, rows: "MinedRows") -> "Iterator[dict[str, Any]]":
    from nestling.mining.rows import in_dialect

    for record, facts in rows:
        for row in in_dialect(record, config.format):
            yield row | {"mined": facts} if config.explain else row


def judge_records(config: MineConfig) -> None:
    """Write the judge's scores beside the documents of the records."""
    require(
        int(os.environ.get("WORLD_SIZE", "1")) == 1,
        "--judge without --retrievers runs in one process; start it with python rather than a launcher",
    )
    from nestling.records import load_records

    table = load_records(
        config.data, split=config.split, instruction=config.instruction, allow_no_positives=True, progress=True
    )
    print(table.summary)
    require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")

    import torch

    from nestling.files import write_jsonl
    from nestling.mining.judging import judged_records
    from nestling.mining.rows import in_dialect
    from nestling.mining.task import precision_of
    from nestling.models.reranker import Reranker
    from nestling.models.scoring import ScoringStats

    assert config.judge is not None
    assert config.output is not None
    reranker = Reranker.from_pretrained(config.judge, precision=precision_of(config))
    reranker.to("cuda" if torch.cuda.is_available() else "cpu")
    stats = ScoringStats()
    probable = config.scores == "probability"
    judged = judged_records(reranker, table, stats, probabilities=probable, progress=sys.stderr.isatty())
    write_jsonl(Path(config.output), (row for record in judged for row in in_dialect(record, config.format)))
    print(f"{stats}\n{config.output} holds {len(table):,} rows with {config.scores} scores of {config.judge}")


if __name__ == "__main__":
    run(main)
