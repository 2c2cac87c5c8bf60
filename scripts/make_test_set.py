"""Have a language model judge what several rankings find for your queries: a test set of your own.

    vllm serve Qwen/Qwen3-8B
    python scripts/make_test_set.py --data my-set --retrievers bm25,BAAI/bge-small-en-v1.5,runs/mine/final \\
        --model Qwen/Qwen3-8B --endpoint.url http://localhost:8000/v1 --output my-test
    python scripts/make_test_set.py --data my-set --model MODEL_DIR --output my-test-2 --corrections corrections.json

The first documents of each ranking, and those that the data calls relevant, are graded from 0 to 3; some are graded
twice. The output is a BEIR folder, with every judgement in judgements.jsonl and a page for a person to correct them,
judgements.html. Answers are kept in a journal beside it (my-test.journal.jsonl): a run that was killed goes on with the
same command. docs/evaluation.md explains the grades.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import MakeTestSetConfig, new_outputs, parse_config, require, run
from nestling.gpu import best_device

if TYPE_CHECKING:
    from nestling.records import RetrievalSet
    from nestling.retrieval import Candidates
    from nestling.synthesis.chat_models import ChatModel
    from nestling.synthesis.judging import JudgingTask

PAGE = "judgements.html"


def main() -> None:
    config = parse_config(MakeTestSetConfig, __doc__)
    with new_outputs(("--output", None if config.dry_run else config.output)):
        check(config)
        make_test_set(config)


def check(config: MakeTestSetConfig) -> None:
    """Raise ValueError for settings that would fail later, before anything is loaded."""
    require(int(os.environ.get("WORLD_SIZE", "1")) == 1, "documents are judged by one process; start it with python")
    if config.dry_run:
        return
    from nestling.synthesis.chat_models.opening import check_chat_model

    check_chat_model(config.model, config.endpoint)


def make_test_set(config: MakeTestSetConfig) -> None:
    from nestling.synthesis.journal import open_journal
    from nestling.synthesis.judged_set import JudgedSet, read_corrections, require_plain_ids, require_some
    from nestling.synthesis.judging import judge_all

    # 1. The documents to judge.
    corrections = {} if config.corrections is None else read_corrections(Path(config.corrections))
    task = open_task(config)
    require_plain_ids(task)
    require_some(corrections, task, f"--corrections {config.corrections}")
    if config.dry_run:
        show(task)
        return

    # 2. The model's grades, into the journal.
    assert config.output is not None
    output = Path(config.output)
    journal_path = Path(config.journal or output.with_name(f"{output.name}.journal.jsonl"))
    with open_journal(journal_path, settings_of(config)) as journal:
        judge_all(task, journal, open_model(config))

        # 3. The test set, from the grades in the journal and the corrections.
        judged = JudgedSet.read(task, journal, config.model, corrections, config.relevant_from)
    print(*judged.lines(), sep="\n")
    write(config, judged, output)
    if journal.unanswered:
        print(f"{unanswered_text(journal.unanswered)}; to ask again, remove {output} and give the same command")


def unanswered_text(unanswered: "Mapping[int, str]") -> str:
    """How many requests got no answer, and why."""
    from nestling.synthesis.summary import counts_text

    return f"{len(unanswered):,} judgements got no answer{counts_text(Counter(unanswered.values()))}"


def write(config: MakeTestSetConfig, judged: Any, output: Path) -> None:
    """Write the folder in one move."""
    from nestling.export.serving_files import new_directory
    from nestling.files import replace_text
    from nestling.synthesis.judgement_page import judgement_page

    with new_directory(output) as partial:
        judged.write(partial, config.split)
        page = judgement_page(judged, title=output.name, queries=config.page_queries, seed=config.seed)
        replace_text(partial / PAGE, page)
    print(f"{output} holds the test set; {output / PAGE} shows judgements to correct")


def open_task(config: MakeTestSetConfig) -> "JudgingTask":
    """The queries, and what the rankings find for them."""
    from nestling.records import load_retrieval_set
    from nestling.synthesis.judging import JudgingTask, pool

    data = load_retrieval_set(config.data, config.split)
    pools = pool([candidates(config, each, data).positions for each in config.retrievers], data)
    sizes = [len(each) for each in pools]
    print(
        f"{data.name}: {sum(sizes):,} documents of {len(sizes):,} queries to judge, {min(sizes):,} to {max(sizes):,} "
        f"each, found by {', '.join(config.retrievers)}",
        flush=True,
    )
    return JudgingTask(data, pools, config.second_share, config.max_characters, config.attempts, config.seed)


def candidates(config: MakeTestSetConfig, retriever: str, data: "RetrievalSet") -> "Candidates":
    """The first documents of one ranking."""
    from nestling.models.embedder import Embedder
    from nestling.models.remote_code import trust_code
    from nestling.retrieval import Candidates, encode_set, open_candidates, search_top

    if retriever == "bm25" or Path(retriever).is_file():
        return open_candidates(retriever, data, config.depth, progress=True)
    if config.trust_remote_code:
        trust_code(retriever)
    embedder = Embedder.from_pretrained(retriever).to(best_device())
    encoded = encode_set(embedder, data, progress=sys.stderr.isatty())
    return Candidates.from_run(search_top(encoded, data, config.depth), data, config.depth)


def settings_of(config: MakeTestSetConfig) -> dict[str, Any]:
    """Everything that a grade depends on, except its query and document, by whose texts the journal keeps it."""
    from nestling.synthesis.judging import prompt_digest

    names = ("model", "max_characters", "temperature", "max_tokens", "seed")
    settings = {name: getattr(config, name) for name in names}
    return {**settings, "endpoint": {"body": config.endpoint.body}, "prompt": prompt_digest()}


def show(task: "JudgingTask") -> None:
    """Print a prompt, and an estimate of requests and tokens."""
    from nestling.synthesis.estimate import BYTES_PER_TOKEN

    print(f"\n{task.prompt(0)}\n")
    sample = range(0, len(task.pairs), max(1, len(task.pairs) // 200))
    size = sum(len(task.prompt(pair).encode()) for pair in sample) / len(sample)
    tokens = round(size / BYTES_PER_TOKEN * task.requests)
    print(f"{task.requests:,} requests with about {tokens:,} tokens of prompts, if all answers can be used")


def open_model(config: MakeTestSetConfig) -> "ChatModel":
    from nestling.synthesis.chat_models.opening import open_chat_model

    return open_chat_model(
        config.model,
        config.endpoint,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
    )


if __name__ == "__main__":
    run(main)
