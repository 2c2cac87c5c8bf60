"""Mine hard negatives for training records, filtered so that few of them are relevant after all.

    python scripts/mine.py --data pairs.jsonl --retrievers MODEL_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers bm25,MODEL_DIR,run.trec --max_score_ratio 0.95 --output out.jsonl
    accelerate launch scripts/mine.py --data my-beir --retrievers MODEL_DIR --judge RERANKER_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers MODEL_DIR --sweep true
    python scripts/mine.py --judge RERANKER_DIR --data mined.jsonl --output judged.jsonl

The last form mines nothing: it adds a reranker's scores to the positives and negatives of records. Embeddings and a
judge's scores are cached ($NESTLING_CACHE), so a run with other thresholds, or after a kill, computes only what is
missing. docs/mining.md explains the settings.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import MineConfig, new_outputs, parse_config, require, require_extra, require_model, run
from nestling.gpu import best_device, computing_dtype, resolve_precision

if TYPE_CHECKING:
    from nestling.mining.candidates import Candidates
    from nestling.mining.mined_records import MinedRecords
    from nestling.mining.relevance_judgements import RelevanceJudgements
    from nestling.mining.result import MiningResult
    from nestling.mining.retrievers import Retriever
    from nestling.mining.rules import Positives
    from nestling.mining.selection import CandidateFilter
    from nestling.mining.task import MiningTask


def main() -> None:
    config = parse_config(MineConfig, __doc__)
    with new_outputs(("--output", config.output), ("--audit", config.audit)):
        check(config)
        if config.retrievers:
            mine(config)
        else:
            judge_records(config)


def check(config: MineConfig) -> None:
    """Raise ValueError for what cannot work, before data and models are read."""
    output = config.output
    require(output is None or output.endswith(".jsonl"), f"--output {output}: expected a name in .jsonl")
    embedders = models_of([*config.retrievers, config.scorer])
    models = [*embedders, *models_of([config.judge])]
    for model in models:
        check_model(model)
    if config.trust_remote_code:
        from nestling.models.remote_code import trust_code

        trust_code(*models)
    for model in embedders:
        check_embedder(config, model)
    if config.judge is not None:
        from nestling.mining.judge import require_judge

        require_judge(config.judge)
    require(config.ceiling is None or bool(embedders), "ceiling needs an embedder, whose cosines it bounds")
    run_files = [each for each in config.retrievers if Path(each).is_file()]
    require(config.scores != "ensemble" or not run_files, "scores: ensemble: a run file does not score every document")
    if config.index is not None:
        check_index(config.index, config.index_search, models_of([*config.retrievers]))


def mine(config: MineConfig) -> None:
    import numpy as np

    from nestling.distributed.ranks import on_rank_zero
    from nestling.mining import steps
    from nestling.mining.lists import Lists
    from nestling.mining.result import MiningResult
    from nestling.mining.rules import drop_known_and_repeated, drop_ranks
    from nestling.mining.selection import CandidateFilter
    from nestling.mining.task import open_retrievers, open_task, read_judgements
    from nestling.records.load import require_splits

    config = replace(config, precision=resolve_precision(config.precision))

    # 1. Records, their queries, the pool of documents.
    if config.judgements is None:  # which have splits too
        require_splits(config.data, config.split)
    task = open_task(config)
    judgements = read_judgements(config, task)

    # 2. Candidates, with the scorer's scores of all of them and of the positives.
    retrievers = open_retrievers(config, task)
    scorer = steps.choose_scorer(config, retrievers)
    candidates, positives = steps.find_candidates(config, task, retrievers, scorer)
    order = next(iter(retrievers)) if scorer == "judge" else scorer

    # 3. Rules that drop candidates; of several that apply to a candidate, the first counts.
    candidate_filter = CandidateFilter(len(candidates))
    drop_known_and_repeated(candidate_filter, task.query_set, task.pool, positives.lists, candidates)
    if config.sweep:
        sweep(config, task, retrievers, candidates, positives, candidate_filter, order, judgements)
        return
    drop_ranks(candidate_filter, candidates, config.rank_from, config.rank_to)
    if scorer != "judge":
        steps.drop_by_score(config, candidates, positives, candidate_filter, retrievers, scorer)
    relevant = np.zeros(len(candidates), dtype=bool)
    if config.judge is not None:
        candidates, positives = steps.score_with_judge(config, task, candidates, positives, candidate_filter, order)
        if scorer == "judge":
            steps.drop_by_score(config, candidates, positives, candidate_filter, retrievers, scorer)
        relevant = steps.drop_relevant(config, candidates, candidate_filter)

    # 4. Negatives, drawn from the remaining candidates; with relabel, positives that the judge found.
    added = np.flatnonzero(relevant) if config.relabel else np.zeros(0, np.int64)
    result = MiningResult(
        query_set=task.query_set,
        pool=task.pool,
        positives=positives,
        candidates=candidates,
        candidate_filter=candidate_filter,
        scorer=scorer,
        negatives=steps.draw_negatives(config, task, candidates, candidate_filter, scorer),
        relabelled=Lists.grouped(candidates.queries[added], added, len(task.query_set)),
    )
    on_rank_zero(lambda: report(config, task, result, judgements))


def models_of(settings: "list[str | None]") -> list[str]:
    """Those of some values of settings that name models: neither keywords nor files."""
    keywords = ("bm25", "given", "judge")
    named = [each for each in settings if each is not None and each not in keywords]
    return [each for each in named if each.endswith(".gguf") or not Path(each).is_file()]


def check_model(model: str) -> None:
    require_model(model, f"{model}: no such file or directory; expected bm25, a model or a run file")


def check_embedder(config: MineConfig, model: str) -> None:
    """Raise ValueError, before weights are read, for a model of another kind, or a length above what it reads."""
    from nestling.models.embedder import read_model_files, require_lengths
    from nestling.models.model_sources import require_embedder
    from nestling.models.token_model import read_config

    files = read_model_files(model)
    require_embedder(model, read_config(model, files.subfolder), pooled=files.pooling is not None)
    require_lengths(model, query_max_length=config.query_max_length, document_max_length=config.document_max_length)


def check_index(factory: str, search: str | None, models: list[str]) -> None:
    """Raise ValueError, before a model is loaded, for an index that FAISS cannot build for one of the embedders."""
    require(bool(models), "index needs an embedder among the retrievers, whose candidates are found in it")
    require_extra("index", "faiss", "faiss")
    from nestling.mining.faiss_index import FaissIndex
    from nestling.models.embedder import read_width

    for model in models:
        FaissIndex(factory, search).empty(read_width(model))


def sweep(
    config: MineConfig,
    task: "MiningTask",
    retrievers: "dict[str, Retriever]",
    candidates: "Candidates",
    positives: "Positives",
    candidate_filter: "CandidateFilter",
    order: str,
    judgements: "RelevanceJudgements | None",
) -> None:
    """Print a table that compares many settings of the rules."""
    from nestling.mining.judge import probabilities
    from nestling.mining.steps import dense_retrievers, score_with_judge
    from nestling.mining.sweep import table_lines, try_settings

    judged = None
    if config.judge is not None:
        # A copy, since settings without the judge start from the candidates that it does not read too.
        candidates, positives = score_with_judge(config, task, candidates, positives, candidate_filter.copy(), order)
        judged = probabilities(candidates.scores["judge"])
    outcomes = try_settings(
        candidates,
        positives,
        candidate_filter,
        order,
        negatives=config.num_negatives,
        cosines=order in dense_retrievers(retrievers),
        probabilities=judged,
        judgements=judgements,
    )
    task.say(f"the {config.num_negatives} highest by {order} of what each rule leaves:")
    task.say(*table_lines(list(outcomes), judged=judgements is not None))


def report(
    config: MineConfig, task: "MiningTask", result: "MiningResult", judgements: "RelevanceJudgements | None"
) -> None:
    """Write the records and the audit page, and print a summary."""
    from nestling.files import replace_text, write_jsonl
    from nestling.mining.audit import audit_page
    from nestling.mining.judge import probabilities
    from nestling.mining.mined_records import MinedRecords
    from nestling.mining.result import summary_lines

    assert config.output is not None
    scorer = "judge" if config.judge is not None else result.scorer
    scorer = "ensemble" if config.scores == "ensemble" else scorer
    scores = [result.positives.scores[scorer], result.candidates.scores[scorer]]
    if scorer == "judge" and config.scores == "probability":
        scores = [probabilities(each) for each in scores]
    records = MinedRecords(task.table, result, *scores)
    write_jsonl(Path(config.output), json_objects(config, records))
    lines = list(summary_lines(result, config.num_negatives))
    if judgements is not None:
        lines.append(f"  {judgements.count(result.candidates, result.negatives.values)}")
    lines.append(f"{config.output}: {records.written}, with scores of {scorer}")
    task.say(*lines)
    if config.audit is not None:
        settings = {name: value for name, value in asdict(config).items() if value not in (None, False)}
        title = f"Negatives for {task.table.name}"
        replace_text(Path(config.audit), audit_page(result, scorer=scorer, title=title, settings=settings, lines=lines))
        task.say(f"{config.audit} shows the most suspicious negatives")


def json_objects(config: MineConfig, records: "MinedRecords") -> "Iterator[dict[str, Any]]":
    from nestling.mining.mined_records import in_dialect

    for record, details in records:
        for json_object in in_dialect(record, config.format):
            yield json_object | {"mined": details} if config.explain else json_object


def judge_records(config: MineConfig) -> None:
    """Write the records with the judge's scores of their positives and negatives."""
    require(
        int(os.environ.get("WORLD_SIZE", "1")) == 1,
        "--judge without --retrievers runs in one process; start it with python rather than a launcher",
    )
    from nestling.records.load import load_records, require_splits

    require_splits(config.data, config.split)
    table = load_records(
        config.data,
        split=config.split,
        instruction=config.instruction,
        columns=config.columns,
        allow_no_positives=True,
        progress=True,
    )
    print(table.summary)
    require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")

    from nestling.files import write_jsonl
    from nestling.mining.judge import judged_records
    from nestling.mining.mined_records import in_dialect
    from nestling.models.reranker import Reranker
    from nestling.models.scoring import ScoringStats

    assert config.judge is not None
    assert config.output is not None
    precision = computing_dtype(config.precision)
    reranker = Reranker.from_pretrained(
        config.judge, precision=precision, attn_implementation=config.attn_implementation
    ).to(best_device())
    stats = ScoringStats()
    as_probabilities = config.scores == "probability"
    judged = judged_records(reranker, table, stats, probabilities=as_probabilities, progress=sys.stderr.isatty())
    write_jsonl(Path(config.output), (each for record in judged for each in in_dialect(record, config.format)))
    cached = table.summary.positives + table.summary.negatives - stats.documents
    print(stats, *[f"{cached:,} pairs were in the cache"] * bool(cached), sep="\n")
    print(f"{config.output} holds {len(table):,} rows with {config.scores} scores of {config.judge}")


if __name__ == "__main__":
    run(main)
