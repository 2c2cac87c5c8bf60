"""Have a language model write queries for each document of a corpus that has none.

    vllm serve Qwen/Qwen3-8B
    python scripts/make_queries.py --data corpus.jsonl --model Qwen/Qwen3-8B --endpoint.url http://localhost:8000/v1 \\
        --output pairs.jsonl
    python scripts/make_queries.py --data my-beir --model MODEL_DIR --limit 1000 --output pairs.jsonl
    python scripts/make_queries.py --data corpus.jsonl --model m --dry_run true
    python scripts/make_queries.py --data corpus.jsonl --model MODEL_DIR --num_queries 3 --min_grade 4 \\
        --sample sample.html --output pairs.jsonl

The model works in two steps: it chooses a persona, a type of query and a difficulty for a document, then writes this
persona's query; with --min_grade it judges the query in a third. Its answers are kept in a journal beside the output
(pairs.journal.jsonl), so a run that was stopped or killed resumes with the same command and sends no request twice.
docs/synthesis.md explains the settings, and how the pairs are filtered.
"""

import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import MakeQueriesConfig, new_outputs, parse_config, require, run
from nestling.gpu import best_device

if TYPE_CHECKING:
    from nestling.models.embedder import Embedder
    from nestling.synthesis.chat_models import ChatModel, RecordedConversation
    from nestling.synthesis.duplicates import Duplicates
    from nestling.synthesis.journal import Journal
    from nestling.synthesis.passages import Passages
    from nestling.synthesis.summary import Prices, Summary
    from nestling.synthesis.task import SynthesisTask

SAMPLE = 50  # queries
PERSONAS = Path(__file__).resolve().parents[1] / "data" / "personas.txt"


def main() -> None:
    config = parse_config(MakeQueriesConfig, __doc__)
    with new_outputs(("--output", None if config.dry_run else config.output), ("--sample", config.sample)):
        check(config)
        make_queries(config)


def make_queries(config: MakeQueriesConfig) -> None:
    from nestling.synthesis.journal import open_journal
    from nestling.synthesis.summary import Prices, Summary, usage_text

    # 1. The documents and the properties of their queries.
    task = open_task(config)
    print(task.passages, flush=True)
    if config.multi_hop:
        print(task.passage_sets, flush=True)
    if config.dry_run:
        show(config, task)
        return

    # 2. The model's answers, into the journal.
    assert config.output is not None
    output = Path(config.output)
    prices = Prices(config.endpoint.price_in, config.endpoint.price_out)
    with open_journal(output.with_suffix(".journal.jsonl"), settings_of(config, task)) as journal:
        ask(config, task, journal, prices, min(len(task), SAMPLE) if config.sample else len(task))
        if config.sample is not None:
            write_sample(Path(config.sample), task, journal, prices)
            return

        # 3. The queries, from the answers in the journal, each meaning once.
        duplicates, summary = look_for_duplicates(config, task, journal), Summary(config.num_queries)
        write(config, task, journal, duplicates, summary)
        print(*summary.lines(), *duplicates.examples, usage_text(journal, prices), sep="\n")
        print(f"{output} holds {summary.made:,} pairs")
        if journal.unanswered:
            what = "documents" if config.num_queries == 1 else "queries"
            unanswered = f"{len(journal.unanswered):,} {what} got no answer"
            print(f"{unanswered}; to ask about them again, remove {output} and give the same command")


def check(config: MakeQueriesConfig) -> None:
    """Raise ValueError for settings that would fail later, before anything is loaded."""
    require(int(os.environ.get("WORLD_SIZE", "1")) == 1, "queries are made by one process; start it with python")
    if config.dry_run:
        return
    from nestling.synthesis.chat_models.opening import check_chat_model

    check_chat_model(config.model, config.endpoint)


def open_task(config: MakeQueriesConfig) -> "SynthesisTask":
    """Read the documents and the personas, and draw the documents that get a query of several passages."""
    from nestling.synthesis.passage_sets import PassageSets, find_passage_sets
    from nestling.synthesis.personas import nearest_personas, read_personas
    from nestling.synthesis.query_spec import QueryOptions
    from nestling.synthesis.task import SynthesisTask

    personas = read_personas(PERSONAS if config.personas is None else Path(config.personas))
    passages, progress = open_passages(config), sys.stderr.isatty()
    embedder, persona_rows, passage_sets = None, None, PassageSets({})
    if config.embedder is not None:
        embedder = open_embedder(config)
        persona_rows = nearest_personas(embedder, personas, passages, config.num_personas, progress=progress)
    if config.multi_hop:
        passage_sets = find_passage_sets(passages, config.multi_hop, config.seed, embedder, progress=progress)
    return SynthesisTask(
        passages=passages,
        passage_sets=passage_sets,
        num_queries=config.num_queries,
        options=QueryOptions(config.question_types, config.difficulties, config.lengths, config.languages),
        personas=personas,
        candidates=min(config.num_personas, len(personas)),
        persona_rows=persona_rows,
        attempts=config.attempts,
        min_grade=config.min_grade,
        seed=config.seed,
    )


def open_passages(config: MakeQueriesConfig) -> "Passages":
    from nestling.synthesis.passages import Passages

    return Passages.open(
        Path(config.data),
        limit=config.limit,
        min_characters=config.min_characters,
        max_characters=config.max_characters,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )


def open_embedder(config: MakeQueriesConfig) -> "Embedder":
    from nestling.models.embedder import Embedder
    from nestling.models.remote_code import trust_code

    assert config.embedder is not None
    if config.trust_remote_code:
        trust_code(config.embedder)
    return Embedder.from_pretrained(config.embedder).to(best_device())


def settings_of(config: MakeQueriesConfig, task: "SynthesisTask") -> dict[str, Any]:
    """Everything that the requests and answers depend on, except documents, by whose texts the journal keeps them."""
    from nestling.synthesis.prompts import prompt_digest
    from nestling.synthesis.task import lines_digest

    names = ("model", "embedder", "num_queries", "question_types", "difficulties", "lengths", "languages")
    settings = {name: getattr(config, name) for name in (*names, "max_characters", "temperature", "max_tokens", "seed")}
    texts = {"personas": lines_digest(task.personas), "prompts": prompt_digest()}
    return {**settings, "candidates": task.candidates, "endpoint": {"body": config.endpoint.body}, **texts}


def show(config: MakeQueriesConfig, task: "SynthesisTask") -> None:
    """Print the prompts of two queries, one more of several passages, and an estimate of requests, tokens and cost."""
    from nestling.synthesis.estimate import estimate, prompts_of

    several = (number for number in range(len(task)) if len(task.passages_of(number)) > 1)
    for number in dict.fromkeys([*range(min(2, len(task))), *islice(several, 1)]):
        for step, prompt in enumerate(prompts_of(task, number), start=1):
            print(f"\n--- document {task.passages.ids[task.document(number)]}, step {step}\n{prompt}")
    expected = estimate(task)
    print(
        f"\n{expected.requests:,} requests with about {expected.tokens:,} tokens of prompts, if all answers are valid"
    )
    if config.endpoint.price_in:
        cost = expected.tokens * config.endpoint.price_in / 1e6
        print(f"the prompts cost about {cost:,.2f} at the given price, without the answers")


def ask(config: MakeQueriesConfig, task: "SynthesisTask", journal: "Journal", prices: "Prices", count: int) -> None:
    """Ask the model for those of the first `count` queries for which the journal has no result."""
    pending = [index for index in range(count) if task.result(index, journal) is None]
    finished = count - len(pending)
    if journal.completions:
        what = "documents" if config.num_queries == 1 else "queries"
        print(f"{journal.path}: {journal.completions:,} answers; {finished:,} {what} are done", flush=True)
    if not pending:
        return
    model, started, before = open_model(config), time.perf_counter(), journal.completions

    def affordable() -> bool:
        return config.budget is None or prices.cost(journal.tokens_in, journal.tokens_out) < config.budget

    try:
        run_conversations(model, task.conversations(pending, journal, affordable), journal, prices, finished, count)
    except KeyboardInterrupt:
        holds = f"{journal.path} holds {journal.completions:,} answers"
        print(f"stopped; {holds}; the same command resumes", file=sys.stderr)
        raise
    seconds = time.perf_counter() - started
    print(f"{journal.completions - before:,} answers to {model.requests:,} requests in {seconds:,.0f} s")
    if config.budget is not None:
        check_budget(config.budget, task, journal, pending)


def run_conversations(
    model: "ChatModel",
    conversations: "Iterator[RecordedConversation]",
    journal: "Journal",
    prices: "Prices",
    finished: int,
    total: int,
) -> None:
    """Run conversations with a progress bar that shows tokens and cost."""
    from tqdm import tqdm

    from nestling.synthesis.summary import usage_text

    with tqdm(total=total, initial=finished, unit=" queries", disable=None) as bar:

        def done() -> None:
            bar.set_postfix_str(usage_text(journal, prices), refresh=False)
            bar.update()

        model.run_conversations(conversations, done)


def check_budget(budget: float, task: "SynthesisTask", journal: "Journal", pending: list[int]) -> None:
    """Raise ValueError if queries have no result; they are the last ones of `pending`."""
    unfinished = (index for index in pending if task.result(index, journal) is None)
    missing = [index for index in unfinished if task.query_id(index) not in journal.unanswered]
    left = len({task.document(index) for index in missing})
    require(
        not missing,
        f"the budget of {budget} is spent, {left:,} of {len(task.passages):,} documents are left; use a higher "
        f"--budget, or write the queries so far with --limit {task.document(min(missing, default=0))}",
    )


def open_model(config: MakeQueriesConfig) -> "ChatModel":
    """The model behind the endpoint, or without one the local model."""
    from nestling.synthesis.chat_models.opening import open_chat_model

    return open_chat_model(
        config.model,
        config.endpoint,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
    )


def write_sample(path: Path, task: "SynthesisTask", journal: "Journal", prices: "Prices") -> None:
    """Write the page of the first queries, and what the others take."""
    from nestling.files import replace_text
    from nestling.synthesis.sample import render_sample, rest_text, sample_results
    from nestling.synthesis.summary import usage_text

    results = list(sample_results(task, journal, min(len(task), SAMPLE)))
    lines = [usage_text(journal, prices), rest_text(task, journal, len(results), prices)]
    replace_text(path, render_sample(f"Sample of {len(results)} queries", task, results, lines))
    print(*lines, sep="\n")
    print(f"{path} shows {len(results)} queries; the same command without --sample goes on, and asks for none twice")


def look_for_duplicates(config: MakeQueriesConfig, task: "SynthesisTask", journal: "Journal") -> "Duplicates":
    """The queries that equal another, and with an embedder those that mean the same."""
    from nestling.config.queries import MAX_SIMILARITY
    from nestling.synthesis.duplicates import Similarity, find_duplicates

    similarity = None
    if config.embedder is not None:
        # Loaded again: while queries are written, for hours, it would take memory from a model that writes them here.
        similarity = Similarity(open_embedder(config), config.max_similarity or MAX_SIMILARITY)
    return find_duplicates(task, task.results(journal), similarity, progress=sys.stderr.isatty())


def write(
    config: MakeQueriesConfig, task: "SynthesisTask", journal: "Journal", duplicates: "Duplicates", summary: "Summary"
) -> None:
    """Write a row for each query that remains, in the order of the corpus."""
    from nestling.files import write_jsonl
    from nestling.synthesis.summary import counts_text

    def rows() -> Iterator[dict[str, Any]]:
        for index, result in duplicates.applied(task.results(journal)):
            summary.add(result, task.spec(index), len(task.passages_of(index)))
            if result.query is not None:
                positives = task.positives(index, duplicates.merged.get(index, ()))
                row = task.row(result, positives, config.instruction)
                yield row | {"made": task.metadata(index, result, positives)} if config.explain else row
        failures = counts_text(summary.failed)
        require(summary.made > 0, f"no query was made{failures}; the answers are in {journal.path}")

    assert config.output is not None
    write_jsonl(Path(config.output), rows())


if __name__ == "__main__":
    run(main)
