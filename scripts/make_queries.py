"""Have a language model write a query for each document of a corpus that has none.

    vllm serve Qwen/Qwen3-8B
    python scripts/make_queries.py --data corpus.jsonl --model Qwen/Qwen3-8B --endpoint.url http://localhost:8000/v1 \\
        --output pairs.jsonl
    python scripts/make_queries.py --data my-beir --model MODEL_DIR --limit 1000 --output pairs.jsonl
    python scripts/make_queries.py --data corpus.jsonl --model m --dry_run true

In two steps: the model decides who would look for a document, and how, then writes this searcher's query. Its answers
are kept in a journal beside the output (pairs.journal.jsonl), so a run that was stopped or killed goes on with the same
command and asks nothing twice. docs/synthesis.md explains the settings, and how the pairs are filtered.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import EndpointConfig, MakeQueriesConfig, parse_config, require, require_extra, require_new, run

if TYPE_CHECKING:
    from nestling.synthesis.journal import Journal
    from nestling.synthesis.passages import Passages
    from nestling.synthesis.summary import Prices, Summary
    from nestling.synthesis.task import Task
    from nestling.synthesis.writers import Writer

PERSONAS = Path(__file__).resolve().parents[1] / "data" / "personas.txt"


def main() -> None:
    config = parse_config(MakeQueriesConfig, __doc__)
    check(config)

    from nestling.synthesis.journal import open_journal
    from nestling.synthesis.summary import Prices, Summary, spent

    # 1. Documents, and what is asked about them.
    task = open_task(config)
    print(task.passages, flush=True)
    if config.dry_run:
        show(config, task)
        return

    # 2. Answers, into the journal.
    assert config.output is not None
    output = Path(config.output)
    prices = Prices(config.endpoint.price_in, config.endpoint.price_out)
    with open_journal(output.with_suffix(".journal.jsonl"), settings_of(config, task)) as journal:
        ask(config, task, journal, prices)

        # 3. Queries, out of the journal.
        summary = Summary()
        write(config, task, journal, summary)
        print(*summary.lines(), spent(journal, prices), sep="\n")
        print(f"{output} holds {summary.made:,} pairs")
        if journal.unanswered:
            print(
                f"{len(journal.unanswered):,} documents got no answer; to ask about them again, remove {output} and "
                "give the same command"
            )


def check(config: MakeQueriesConfig) -> None:
    """Refuse what would fail later, before anything is loaded."""
    require(int(os.environ.get("WORLD_SIZE", "1")) == 1, "queries are made by one process; start it with python")
    if config.dry_run:
        return
    require_new("--output", config.output)
    if config.endpoint.url is not None:
        require_extra("an endpoint", "synthesis", "openai", "aiolimiter")
        key_of(config.endpoint)
    else:
        require(
            Path(config.model).is_dir(),
            f"--model {config.model}: no such directory; give one, or an --endpoint.url that serves the model",
        )


def key_of(endpoint: EndpointConfig) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env)
    require(bool(key), f"endpoint.api_key_env: the environment has no {endpoint.api_key_env}; export the key there")
    return key


def open_task(config: MakeQueriesConfig) -> "Task":
    """Read the documents and the personas."""
    from nestling.synthesis.brief import Choices
    from nestling.synthesis.passages import Passages
    from nestling.synthesis.personas import read_personas
    from nestling.synthesis.task import Task

    personas = read_personas(PERSONAS if config.personas is None else Path(config.personas))
    passages = Passages.open(
        Path(config.data),
        limit=config.limit,
        min_characters=config.min_characters,
        max_characters=config.max_characters,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )
    return Task(
        passages=passages,
        choices=Choices(config.question_types, config.difficulties, config.lengths, config.languages),
        personas=personas,
        candidates=min(config.num_personas, len(personas)),
        suited=None if config.embedder is None else suited_personas(config, personas, passages),
        attempts=config.attempts,
        seed=config.seed,
    )


def suited_personas(config: MakeQueriesConfig, personas: list[str], passages: "Passages") -> Any:
    import torch

    from nestling.models.embedder import Embedder
    from nestling.synthesis.personas import nearest_personas

    assert config.embedder is not None
    embedder = Embedder.from_pretrained(config.embedder).to("cuda" if torch.cuda.is_available() else "cpu")
    return nearest_personas(embedder, personas, passages, config.num_personas, progress=sys.stderr.isatty())


def settings_of(config: MakeQueriesConfig, task: "Task") -> dict[str, Any]:
    """All that decides which questions are put and how they are answered, but not which documents are drawn."""
    from nestling.synthesis.prompts import wording
    from nestling.synthesis.task import digest

    names = ("model", "embedder", "question_types", "difficulties", "lengths", "languages", "max_characters")
    settings = {name: getattr(config, name) for name in (*names, "temperature", "max_tokens", "seed")}
    texts = {"corpus": task.passages.digest, "personas": digest(task.personas), "prompts": wording()}
    return {**settings, "candidates": task.candidates, "endpoint": {"body": config.endpoint.body}, **texts}


def show(config: MakeQueriesConfig, task: "Task") -> None:
    """Print prompts and what asking would take."""
    from nestling.synthesis.estimate import estimate, prompts_of

    for number in range(min(2, len(task))):
        for step, prompt in enumerate(prompts_of(task, number), start=1):
            print(f"\n--- document {task.passages.ids[number]}, step {step}\n{prompt}")
    expected = estimate(task)
    print(
        f"\n{expected.requests:,} requests with about {expected.tokens:,} tokens of prompts, if all answers can be used"
    )
    if config.endpoint.price_in:
        cost = expected.tokens * config.endpoint.price_in / 1e6
        print(f"the prompts cost about {cost:,.2f} by the price given; the answers come on top")


def ask(config: MakeQueriesConfig, task: "Task", journal: "Journal", prices: "Prices") -> None:
    """Ask about every document that the journal has no end of."""
    from tqdm import tqdm

    from nestling.synthesis.summary import spent

    pending = [number for number in range(len(task)) if task.outcome(number, journal) is None]
    if journal.replies:
        print(
            f"{journal.path}: {journal.replies:,} answers; {len(task) - len(pending):,} documents are done", flush=True
        )
    if not pending:
        return
    writer, started, before = open_writer(config), time.perf_counter(), journal.replies

    def affordable() -> bool:
        return config.budget is None or prices.cost(journal.tokens_in, journal.tokens_out) < config.budget

    with tqdm(total=len(task), initial=len(task) - len(pending), unit=" documents", disable=None) as bar:

        def done() -> None:
            bar.set_postfix_str(spent(journal, prices), refresh=False)
            bar.update()

        try:
            writer.hold(task.talks(pending, journal, affordable), done)
        except KeyboardInterrupt:
            bar.close()
            print(
                f"stopped; {journal.path} holds {journal.replies:,} answers; the same command goes on", file=sys.stderr
            )
            raise
    taken = time.perf_counter() - started
    print(f"{journal.replies - before:,} answers to {writer.requests:,} requests in {taken:,.0f} s")
    if config.budget is not None:
        check_budget(config.budget, task, journal, pending)


def check_budget(budget: float, task: "Task", journal: "Journal", pending: list[int]) -> None:
    """Raise ValueError if documents are left; they are the last of those to be asked about."""
    unfinished = (number for number in pending if task.outcome(number, journal) is None)
    left = [number for number in unfinished if task.document(number) not in journal.unanswered]
    require(
        not left,
        f"the budget of {budget} is spent, {len(left):,} of {len(task):,} documents are left; go on with a higher "
        f"--budget, or take what there is with --limit {min(left, default=0)}",
    )


def open_writer(config: MakeQueriesConfig) -> "Writer":
    endpoint = config.endpoint
    if endpoint.url is None:
        from nestling.synthesis.writers.local import LocalModel

        return LocalModel.from_pretrained(
            Path(config.model),
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
        )
    from nestling.synthesis.writers.endpoint import Endpoint

    return Endpoint(
        endpoint.url,
        config.model,
        key_of(endpoint),
        concurrency=endpoint.concurrency,
        requests_per_minute=endpoint.requests_per_minute,
        timeout=endpoint.timeout,
        retries=endpoint.retries,
        body={"temperature": config.temperature, "max_tokens": config.max_tokens, **endpoint.body},
    )


def write(config: MakeQueriesConfig, task: "Task", journal: "Journal", summary: "Summary") -> None:
    """Write a row for each document that has a query, in the order of the corpus."""
    from nestling.files import write_jsonl
    from nestling.synthesis.summary import listed

    def rows() -> Iterator[dict[str, Any]]:
        for number, outcome in task.outcomes(journal):
            summary.add(outcome, task.brief(number))
            if outcome.query is not None:
                row = task.row(number, outcome, config.instruction)
                yield row | {"made": task.facts(number, outcome)} if config.explain else row
        require(summary.made > 0, f"no query was made{listed(summary.failed)}; {journal.path} holds what was answered")

    assert config.output is not None
    write_jsonl(Path(config.output), rows())


if __name__ == "__main__":
    run(main)
