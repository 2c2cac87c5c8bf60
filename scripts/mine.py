"""Mine hard negatives for training records, filtered so that few of them are relevant after all.

    python scripts/mine.py --data pairs.jsonl --retrievers MODEL_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers bm25,MODEL_DIR,run.trec --percent 0.95 --output mined.jsonl
    accelerate launch scripts/mine.py --data my-beir --retrievers MODEL_DIR --judge RERANKER_DIR --output mined.jsonl
    python scripts/mine.py --data my-beir --retrievers MODEL_DIR --sweep
    python scripts/mine.py --judge RERANKER_DIR --data mined.jsonl --output judged.jsonl

The last form drops and moves nothing: it writes a reranker's scores beside the positives and negatives of records.
Embeddings and a judge's scores stay in the cache ($NESTLING_CACHE), so other thresholds, or a run that was killed, cost
little. docs/mining.md explains the settings.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import MineConfig, parse_config, require, run

if TYPE_CHECKING:
    import torch

    from nestling.mining.asked import Asked
    from nestling.mining.candidates import Candidates
    from nestling.mining.found import Found
    from nestling.mining.judgements import Judgements
    from nestling.mining.judging import Judge
    from nestling.mining.lists import Lists
    from nestling.mining.mined import Mined, Positives
    from nestling.mining.pool import Pool
    from nestling.mining.retrievers import Dense, Retriever
    from nestling.mining.rows import MinedRows
    from nestling.mining.selection import Verdicts
    from nestling.records import RecordTable


@dataclass(frozen=True)
class Task:
    """What is mined for, and where.

    Args:
        table: The records.
        asked: Their distinct queries.
        pool: The documents.
        device: Where models compute and ranks communicate.
        main: Whether this rank prints and writes.
    """

    table: "RecordTable"
    asked: "Asked"
    pool: "Pool"
    device: "torch.device"
    main: bool

    def say(self, *lines: object) -> None:
        if self.main:
            print(*lines, sep="\n", flush=True)


def main() -> None:
    config = parse_config(MineConfig, __doc__)
    for flag, name in (("--output", config.output), ("--audit", config.audit)):
        check_output(flag, name)
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

    from nestling.checkpoint.ranks import on_rank_zero
    from nestling.mining.judging import open_judge, probabilities
    from nestling.mining.lists import Lists
    from nestling.mining.mined import Mined, drop_beyond, drop_copies, drop_ranks
    from nestling.mining.selection import Verdicts

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


def check_output(flag: str, name: str | None) -> None:
    if name is not None:
        output = Path(name)
        require(not output.exists(), f"{flag} {output} exists; choose another name or remove it")
        require(output.parent.is_dir(), f"{flag} {output}: the folder {output.parent} does not exist")


def models_of(settings: "list[str | None]") -> list[str]:
    """Those of some settings that name models: neither files nor words of ours."""
    ours = ("bm25", "given", "judge")
    return [each for each in settings if each is not None and each not in ours and not Path(each).is_file()]


def check_model(model: str) -> None:
    """Refuse a mistyped path at once; to ask the hub for it would take half a minute of retries."""
    parts = Path(model).parts
    hub_id = len(parts) == 1 or (len(parts) == 2 and not Path(parts[0]).exists())
    require(Path(model).is_dir() or hub_id, f"{model}: no such file or directory; expected bm25, a model or a run file")


def check_index(factory: str, search: str | None, models: list[str]) -> None:
    """Refuse what FAISS cannot build for the models that search, before any is loaded."""
    require(bool(models), "index needs an embedder among the retrievers, whose candidates are found in it")
    require(find_spec("faiss") is not None, "index needs FAISS, which is not installed; pip install 'nestling[faiss]'")
    from nestling.embedder import read_width
    from nestling.mining.approximate import Index

    for model in models:
        Index(factory, search).empty(read_width(model))


def open_task(config: MineConfig) -> Task:
    """Start the ranks and read the data."""
    import numpy as np

    from nestling.mining.asked import Asked
    from nestling.mining.pool import flat_values, open_pool
    from nestling.records import load_records
    from nestling.records.beir import is_beir
    from nestling.training import start_ranks

    accelerator = start_ranks()
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        shown = accelerator.is_main_process
        table = load_records(config.data, split=config.split, instruction=config.instruction, progress=shown)
        require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")
        asked = Asked.of(table)
        own = Path(config.data) if is_beir(Path(config.data)) else None
        corpus = own if config.corpus is None else Path(config.corpus)
        given = [flat_values(table, "negative_ids")] if "given" in config.retrievers else []
        pool = open_pool(table, corpus, np.concatenate([asked.known.values, *given]), progress=shown)
    task = Task(table, asked, pool, accelerator.device, accelerator.is_main_process)
    task.say(table.summary, f"{len(asked):,} different queries", pool)
    replaced = table.summary.negatives
    if replaced and "given" not in config.retrievers:
        task.say(f"the {replaced:,} negatives that rows have are replaced; name the retriever given to judge them anew")
    return task


def open_retrievers(config: MineConfig, task: Task) -> "dict[str, Retriever]":
    """By name, those that search first, and the scorer if it is another."""
    from nestling.mining.mined import names_of

    specs = list(config.retrievers)
    if config.scorer not in (None, "judge", *specs):
        specs.append(str(config.scorer))
    return {name: open_retriever(config, task, spec, name) for spec, name in zip(specs, names_of(specs), strict=True)}


def open_retriever(config: MineConfig, task: Task, spec: str, name: str) -> "Retriever":
    from nestling.embedder import Embedder
    from nestling.mining.retrievers import Bm25, Dense, Given, RunFile, query_ids
    from nestling.records.beir import is_beir
    from nestling.retrieval import read_run

    if spec == "bm25":
        return Bm25(task.asked, task.pool, task.device)
    if spec == "given":
        return Given(task.asked, task.pool, task.table)
    if Path(spec).is_file():
        folder = Path(config.data)
        require(is_beir(folder), f"{spec}: a run file needs query ids; give --data as a folder in the BEIR layout")
        run_file = RunFile(name, read_run(spec), query_ids(folder, task.asked), task.pool)
        task.say(f"{name}: lists nothing for {run_file.missing:,} of {len(task.asked):,} queries")
        return run_file
    embedder = Embedder.from_pretrained(spec, precision=precision_of(config)).to(task.device)
    dense = Dense.encode(
        name,
        embedder,
        task.asked,
        task.pool,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        progress=task.main and sys.stderr.isatty(),
    )
    task.say(*(f"{name}: {note}" for note in dense.notes))
    if config.index is None:
        return dense
    from nestling.mining.approximate import Index

    return replace(dense, neighbours=Index(config.index, config.index_search))


def precision_of(config: MineConfig) -> "torch.dtype":
    import torch

    return torch.bfloat16 if config.compute == "bf16" else torch.float32


def choose_scorer(config: MineConfig, retrievers: "dict[str, Retriever]") -> str:
    """The name of the retriever whose scores are used, or judge."""
    if config.scorer == "judge":
        return "judge"
    names = list(retrievers)
    if config.scorer is not None:
        place = config.retrievers.index(config.scorer) if config.scorer in config.retrievers else -1
        chosen = names[place]
    else:
        chosen = next(iter([*dense_ones(retrievers), *names]))
    require(chosen != "given", "given has no scores; name a --scorer, an embedder, bm25 or judge, to filter them by")
    return chosen


def dense_ones(retrievers: "dict[str, Retriever]") -> "dict[str, Dense]":
    from nestling.mining.retrievers import Dense

    return {name: each for name, each in retrievers.items() if isinstance(each, Dense)}


def find_candidates(
    config: MineConfig, task: Task, retrievers: "dict[str, Retriever]", scorer: str
) -> "tuple[Candidates, Positives]":
    """The union of what the retrievers find, with the scorer's scores of all of it and of the positives."""
    import numpy as np

    from nestling.mining.candidates import unite
    from nestling.mining.consistency import among_first
    from nestling.mining.mined import Positives, known_rows, with_ensemble

    searching = list(retrievers)[: len(config.retrievers)]
    found = {name: retrievers[name].search(config.depth) for name in searching}
    if config.index is not None:
        say_recall(task, dense_ones({name: retrievers[name] for name in searching}), found)
    candidates, lists = unite(found), known_rows(task.asked, task.pool)
    trusted = np.ones(len(lists.values), dtype=bool)
    members = searching if config.scores == "ensemble" else []
    of_positives = {}
    for name in [each for each in retrievers if each in (scorer, *members)]:
        candidates = fill(candidates, retrievers[name])
        of_positives[name] = retrievers[name].score(lists.owners, lists.values)
    positives = Positives(lists, of_positives, trusted)
    if members:
        candidates, positives = with_ensemble(candidates, positives, members)
    if scorer == "judge":
        return candidates, positives
    scores = of_positives[scorer]
    if config.consistent is not None:
        own = found[scorer] if scorer in found else retrievers[scorer].search(config.depth)
        trusted &= among_first(own, lists, scores, config.consistent)
    if config.least_score is not None:
        trusted &= scores >= config.least_score
    return candidates, replace(positives, trusted=trusted)


def say_recall(task: Task, searching: "dict[str, Dense]", found: "dict[str, Found]") -> None:
    """Say what an index missed."""
    from nestling.mining.approximate import RECALL_QUERIES, recall

    for name, dense in searching.items():
        share = recall(found[name], dense.queries, dense.documents, dense.size, dense.device)
        depth, queries = min(found[name].rows.shape[1], dense.size), min(RECALL_QUERIES, len(task.asked))
        task.say(f"{name}: the index found {share:.1%} of the {depth:,} nearest documents of each of {queries} queries")


def fill(candidates: "Candidates", scorer: "Retriever") -> "Candidates":
    """Scores of those candidates too that others found."""
    import numpy as np

    scores = candidates.scores.get(scorer.name, np.full(len(candidates), np.nan, np.float32)).copy()
    missing = np.flatnonzero(np.isnan(scores))
    scores[missing] = scorer.score(candidates.queries[missing], candidates.rows[missing])
    return candidates.with_scores(scorer.name, scores)


def drop_by_score(
    config: MineConfig,
    candidates: "Candidates",
    positives: "Positives",
    verdicts: "Verdicts",
    retrievers: "dict[str, Retriever]",
    scorer: str,
) -> None:
    """Thresholds, and the ceiling of the similarity with positives."""
    from nestling.mining.mined import drop_high, drop_similar
    from nestling.mining.selection import Thresholds

    thresholds = Thresholds(config.absolute, config.margin, config.percent)
    drop_high(verdicts, candidates, positives, scorer, thresholds)
    if config.ceiling is not None:
        dense = next(iter(dense_ones(retrievers).values()))
        drop_similar(verdicts, candidates, positives, dense.similarities, config.ceiling)


def read_by_judge(
    task: Task, judge: "Judge", candidates: "Candidates", positives: "Positives", left: "Verdicts"
) -> "tuple[Candidates, Positives]":
    """The judge's logits of the candidates left and of the positives, as one more column of scores."""
    import numpy as np

    from nestling.mining.judging import judge_lists
    from nestling.mining.mined import left_lists

    shown = "judging" if task.main and sys.stderr.isatty() else None
    lists, places = left_lists(left, candidates)
    logits = np.full(len(candidates), np.nan, np.float32)
    logits[places] = judge_lists(judge, task.asked, task.pool, lists, progress=shown)
    of_positives = judge_lists(judge, task.asked, task.pool, positives.lists, progress=shown)
    scores = {**positives.scores, "judge": of_positives}
    return candidates.with_scores("judge", logits), replace(positives, scores=scores)


def draw_negatives(
    config: MineConfig, task: Task, candidates: "Candidates", verdicts: "Verdicts", scorer: str
) -> "Lists":
    """The negatives of each query, as positions of candidates."""
    from nestling.mining.selection import draw, make_noise

    noise = None
    if config.sampling == "random":
        queries, documents = task.asked.identities[candidates.queries], task.pool.identities[candidates.rows]
        noise = make_noise(config.seed, queries, documents)
    return draw(
        candidates.lists, candidates.scores[scorer], verdicts.left, config.negatives, noise=noise, among=config.among
    )


def read_judgements(config: MineConfig, task: Task) -> "Judgements | None":
    """What negatives are measured by, if anything."""
    from nestling.mining.judgements import Judgements

    if config.judgements is None:
        return None
    judgements = Judgements.read(config.judgements, config.split, task.asked, task.pool)
    task.say(f"{config.judgements} judges {judgements.queries.sum():,} of the queries")
    return judgements


def sweep(
    config: MineConfig,
    task: Task,
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
    from nestling.mining.sweep import table_lines, try_settings

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
        negatives=config.negatives,
        cosines=order in dense_ones(retrievers),
        probabilities=likely,
        judgements=judgements,
    )
    task.say(f"the {config.negatives} highest by {order} of what each rule leaves:")
    task.say(*table_lines(list(outcomes), judged=judgements is not None))


def report(config: MineConfig, task: Task, mined: "Mined", judgements: "Judgements | None") -> None:
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
    lines = list(summary_lines(mined, config.negatives))
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
    from nestling.reranker import Reranker
    from nestling.scoring import ScoreTally

    assert config.judge is not None
    assert config.output is not None
    reranker = Reranker.from_pretrained(config.judge, precision=precision_of(config))
    reranker.to("cuda" if torch.cuda.is_available() else "cpu")
    tally = ScoreTally()
    probable = config.scores == "probability"
    judged = judged_records(reranker, table, tally, probabilities=probable, progress=sys.stderr.isatty())
    write_jsonl(Path(config.output), (row for record in judged for row in in_dialect(record, config.format)))
    print(f"{tally}\n{config.output} holds {len(table):,} rows with {config.scores} scores of {config.judge}")


if __name__ == "__main__":
    run(main)
