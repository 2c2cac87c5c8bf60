"""scripts/make_queries.py as it is run, against a real server on this machine."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from ranks import environment

import scripts.mine
import warm
from mining.small import write_corpus, write_rows
from nestling.records import load_records
from nestling.synthesis.personas import read_personas
from recipes.runs import run_main
from scripts.make_queries import PERSONAS, main
from synthesis.served import Answer, Request, Served, serving, well
from tiny import tiny_qwen3

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_queries.py"
TEXTS = [f"subject{i} and theme{i} are what this passage tells about, in the {i}th place of all" for i in range(30)]
SETUP = '{"character": 1, "question_type": "question", "difficulty": "expert"}'

pytestmark = pytest.mark.usefixtures("workplace")

make_queries = partial(run_main, main)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def command(corpus: Path, server: Served, output: Path, *more: str) -> list[str]:
    settings = ["--data", str(corpus), "--model", "m", "--endpoint.url", server.url, "--output", str(output)]
    return [*settings, "--endpoint.timeout", "1.5", "--endpoint.retries", "1", *more]


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


def journal_of(output: Path) -> list[dict[str, object]]:
    return read(output.with_suffix(".journal.jsonl"))[1:]


def test_pairs_that_training_and_mining_read(corpus: Path, tmp_path: Path) -> None:
    output, mined = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    with serving() as server:
        done = make_queries(*command(corpus, server, output, "--instruction", "Find it", "--explain", "true"))
    assert done.returncode == 0, done.stderr
    rows = read(output)
    assert [row["positives"] for row in rows] == [[text] for text in TEXTS]
    assert rows[7]["query"] == "who tells about subject7 and?" and rows[7]["instruction"] == "Find it"
    made = rows[7]["made"]
    assert isinstance(made, dict) and made["character"] in read_personas(PERSONAS)
    assert {**made, "character": "", "length": ""} == {
        "document": "d7",
        "character": "",
        "question_type": "question",
        "difficulty": "student",
        "length": "",
        "language": "document",
    }
    for said in (
        "30 documents: 30 with a query, 0 without\n",
        "60 answers to 60 requests in",
        "question types: question 100%",
        "60 answers: 6,000 tokens in, 600 out",
        f"{output} holds 30 pairs",
    ):
        assert said in done.stdout
    table = load_records(output, progress=False)
    assert len(table) == 30 and table[3].instruction == "Find it" and table.summary.drops == ()

    options = ["--retrievers", "bm25", "--consistent", "1", "--max_score_ratio", "null", "--corpus", str(corpus)]
    done = run_main(scripts.mine.main, "--data", output, "--output", mined, *options)
    assert done.returncode == 0, done.stderr
    kept = read(mined)
    assert [row["positives"] for row in kept] == [[text] for text in TEXTS]
    assert all(row["negatives"] and TEXTS[i] not in row["negatives"] for i, row in enumerate(kept))  # type: ignore[operator]


def test_mining_takes_away_queries_that_find_another_document(corpus: Path, tmp_path: Path) -> None:
    def behaviour(request: Request) -> Answer:
        asks_for_another = request.step == "query" and request.passage == TEXTS[4]
        return Answer('{"query": "who explains theme9?"}') if asks_for_another else well(request)

    output, mined = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    with serving(behaviour) as server:
        assert make_queries(*command(corpus, server, output)).returncode == 0
    done = run_main(scripts.mine.main, "--data", output, "--retrievers", "bm25", "--consistent", "1", "--output", mined)
    assert done.returncode == 0, done.stderr
    assert [row["positives"] for row in read(mined)] == [[text] for text in TEXTS if text != TEXTS[4]]
    assert "1 positives not consistent, which left 1 rows" in done.stdout


def of_offered_type(request: Request) -> Answer:
    """Answers with the first type that is offered, and names it in the query."""
    if request.step == "configuration":
        prompt = request.body["messages"][0]["content"]
        offered = re.findall(r"^- (\w+): ", prompt.split('"question_type":')[1].split('"difficulty":')[0], re.M)
        return Answer(json.dumps({"character": 1, "question_type": offered[0], "difficulty": "student"}))
    if request.step == "query":
        kind = re.findall(r"Kind of query: (\w+)", request.body["messages"][0]["content"])[0]
        return Answer(json.dumps({"query": f"{kind} about {request.passage.split()[0]}"}))
    return well(request)


def test_several_queries_of_a_document_are_of_different_types(corpus: Path, tmp_path: Path) -> None:
    output, more = tmp_path / "pairs.jsonl", ("--num_queries", "3", "--limit", "10", "--explain", "true")
    with serving(of_offered_type) as server:
        done = make_queries(*command(corpus, server, output, *more))
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 60
        rows = read(output)
        assert "30 queries for 10 documents: 30 made, 0 not\n" in done.stdout
        documents = [row["positives"] for row in rows]
        assert documents[::3] == documents[1::3] == documents[2::3]
        assert [TEXTS.index(each[0]) for each in documents[::3]] == sorted(
            TEXTS.index(each[0]) for each in documents[::3]
        )
        for at in range(0, 30, 3):
            assert len({row["made"]["question_type"] for row in rows[at : at + 3]}) == 3  # type: ignore[index]
        assert len({row["query"] for row in rows}) == 30
        output.unlink()
        server.requests.clear()
        assert make_queries(*command(corpus, server, output, *more)).returncode == 0
        assert server.requests == [] and read(output) == rows


def test_queries_are_judged_and_the_grades_are_told(corpus: Path, tmp_path: Path) -> None:
    def behaviour(request: Request) -> Answer:
        if request.step == "judgement" and TEXTS.index(request.passage) < 6:
            return Answer('{"answerable": 2, "specific": 3, "natural": 5}')
        return well(request)

    output = tmp_path / "pairs.jsonl"
    with serving(behaviour) as server:
        assert make_queries(*command(corpus, server, output)).returncode == 0
        assert len(server.requests) == 60 and len(read(output)) == 30
        output.unlink()
        done = make_queries(*command(corpus, server, output, "--min_grade", "4", "--explain", "true"))
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 90, "the queries of before are judged, and not written again"
        assert [row["positives"] for row in read(output)] == [[text] for text in TEXTS[6:]]
        assert read(output)[0]["made"]["grades"] == {"answerable": 5, "specific": 4, "natural": 5}  # type: ignore[index]
        for said in (
            "30 documents: 24 with a query, 6 without; 6 not answerable and not specific enough",
            "  answerable: 1: 0%, 2: 20%, 3: 0%, 4: 0%, 5: 80% of 30 judged queries",
        ):
            assert said in done.stdout
        output.unlink()
        assert make_queries(*command(corpus, server, output, "--min_grade", "2")).returncode == 0
        assert len(server.requests) == 90 and len(read(output)) == 30, "another grade asks nothing"


def test_queries_that_say_the_same_are_one(corpus: Path, tmp_path: Path, bert: Path) -> None:
    def behaviour(request: Request) -> Answer:
        same = {TEXTS[3]: "where is it?", TEXTS[5]: "Where is it"}.get(request.passage)
        return Answer(json.dumps({"query": same})) if same and request.step == "query" else well(request)

    output, more = tmp_path / "pairs.jsonl", ["--embedder", str(bert), "--max_similarity"]
    with serving(behaviour) as server:
        done = make_queries(*command(corpus, server, output, *more, "1"))
        assert done.returncode == 0, done.stderr
        rows = read(output)
        assert [row["positives"] for row in rows if row["query"] == "where is it?"] == [[TEXTS[3], TEXTS[5]]]
        assert not any(row["query"] == "Where is it" for row in rows)
        assert "1 in the row of another document's equal query" in done.stdout
        output.unlink()
        server.requests.clear()
        done = make_queries(*command(corpus, server, output, *more, "0.01"))
        assert done.returncode == 0 and not server.requests, "another similarity asks nothing"
    assert "30 documents: 1 with a query, 29 without; 29 mean the same as another document's query" in done.stdout
    assert done.stdout.count(" dropped for ") == 5 and len(read(output)) == 1


def test_queries_of_several_passages(tmp_path: Path) -> None:
    """Of two files with four chunks each, six have a next chunk; the judge refuses the query of the last two."""
    ids = [f"{file}.md#{number}" for file in "ab" for number in range(4)]
    rows = [{"_id": each, "text": text} for each, text in zip(ids, TEXTS, strict=False)]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)

    def behaviour(request: Request) -> Answer:
        prompt = request.body["messages"][0]["content"]
        if "2 passages from" not in prompt:
            return well(request)
        if request.step == "configuration":
            return Answer(json.dumps({"character": 1, "question_type": "multi_hop", "difficulty": "student"}))
        if request.step == "query":
            return Answer(json.dumps({"query": f"what links {' and '.join(re.findall('subject[0-9]+', prompt))}?"}))
        grades = {"answerable": 5, "specific": 5, "natural": 5, "multi_hop": 1 if TEXTS[7] in prompt else 5}
        return Answer(json.dumps(grades))

    output, more = tmp_path / "pairs.jsonl", ("--min_grade", "4", "--explain", "true", "--num_queries", "2")
    with serving(behaviour) as server:
        assert make_queries(*command(corpus, server, output, *more)).returncode == 0
        assert len(server.requests) == 48 and len(read(output)) == 8, "both queries of a document are the same"
        output.unlink()
        done = make_queries(*command(corpus, server, output, *more, "--multi_hop", '{"2": 1}'))
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 48 + 18, "the other queries' answers are those of before"
        made = [row for row in read(output) if len(row["positives"]) == 2]  # type: ignore[arg-type]
        assert [row["positives"] for row in made] == [TEXTS[i : i + 2] for i in (0, 1, 2, 4, 5)]
        assert made[0]["query"] == "what links subject0 and subject1?"
        assert made[0]["made"]["positives"] == ["a.md#0", "a.md#1"]  # type: ignore[index]
        assert made[0]["made"]["question_type"] == "multi_hop"  # type: ignore[index]
        for said in (
            "multi-hop: 6 documents, 6 with the chunks that follow, 0 with the nearest documents; 2 more have",
            "  multi-hop, 2 passages: 5 of 6 queries made",
            "; 1 not multi_hop enough",
            "  multi_hop: 1: 17%, 2: 0%, 3: 0%, 4: 0%, 5: 83% of 6 judged queries",
        ):
            assert said in done.stdout, said
        whole, journal = output.read_bytes(), output.with_suffix(".journal.jsonl")
        answers = journal.read_bytes().splitlines(keepends=True)
        output.unlink()
        journal.write_bytes(b"".join(answers[:50]))  # as a kill leaves it
        server.requests.clear()
        assert make_queries(*command(corpus, server, output, *more, "--multi_hop", '{"2": 1}')).returncode == 0
        assert len(server.requests) == len(answers) - 50 and output.read_bytes() == whole


def test_a_sample_is_shown_before_the_rest_is_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.make_queries.SAMPLE", 8)
    output, page = tmp_path / "pairs.jsonl", tmp_path / "sample.html"
    more = ("--num_queries", "2", "--min_grade", "4", "--endpoint.price_in", "1000")
    with serving(of_offered_type) as server:
        done = make_queries(*command(corpus, server, output, *more, "--sample", str(page)))
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 24 and not output.exists()
        assert (
            "the other 52 queries take about 15,600 tokens in and 1,560 out, 15.60 at the given prices" in done.stdout
        )
        shown = page.read_text(encoding="utf-8")
        assert shown.count("answerable 5, specific 4, natural 5") == shown.count("<details open>") == 8
        assert shown.count(" are what this passage tells about, in the ") == 8
        done = make_queries(*command(corpus, server, output, *more))
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 180 and len(read(output)) == 60


FAULTS = {
    0: Answer("late", delay=2),
    1: Answer(status=429, headers={"Retry-After": "0.1"}),
    2: Answer(status=500, headers={"Retry-After": "0.1"}),
    3: Answer('{"character": 1, "question'),
    4: Answer(SETUP, finish="length"),
    5: Answer(SETUP, missing=25),
    6: Answer('{"character": 9, "question_type": "question", "difficulty": "expert"}'),
    7: Answer(raw='{"choices": [{"mess'),
    8: Answer(f"Sure!\n```json\n{SETUP}\n```"),
    9: Answer(""),
}


def test_faults_are_asked_again_and_counted(corpus: Path, tmp_path: Path) -> None:
    def behaviour(request: Request) -> Answer:
        number = TEXTS.index(request.passage)
        if number == 20:
            return Answer("I would rather not.")
        if number == 21 and request.step == "query":
            return Answer(json.dumps({"query": request.passage}))
        if number == 22:
            return Answer(status=400)
        faulty = request.step == "configuration" and request.number == 0
        return FAULTS.get(number, well(request)) if faulty else well(request)

    output = tmp_path / "pairs.jsonl"
    with serving(behaviour) as server:
        done = make_queries(*command(corpus, server, output, "--endpoint.concurrency", "3"))
        assert server.most_at_once <= 4, "three, and one that the client has given up on"
    assert done.returncode == 0, done.stderr
    assert [row["positives"] for row in read(output)] == [[t] for i, t in enumerate(TEXTS) if i not in (20, 21, 22)]
    for said in (
        "30 documents: 27 with a query, 3 without",
        "; 1 status 400",
        "; 1 no JSON object",
        "; 1 query copies the passage",
        "10 invalid answers; ",
        *("; 4 no JSON object", "; 3 query copies the passage", "; 1 empty answer", "; 1 answer cut off"),
        "; 1 unknown character",
        f"1 documents got no answer; to ask about them again, remove {output} and give the same command",
    ):
        assert said in done.stdout, said
    sent = Counter((each.step, TEXTS.index(each.passage)) for each in server.requests)
    assert sent["configuration", 20] == sent["query", 21] == 3
    assert all(sent["configuration", number] == (1 if number == 8 else 2) for number in FAULTS)
    told = [each.body["messages"] for each in server.requests if each.passage == TEXTS[6]][1]
    assert "expected a number from 1 to 5" in told[2]["content"]

    output.rename(tmp_path / "first.jsonl")
    with serving() as server:
        again = make_queries(*command(corpus, server, output))
    assert again.returncode == 0, again.stderr
    assert [each.passage for each in server.requests] == [TEXTS[22]] * 2, "failed answers are not asked for again"
    assert len(read(output)) == 28 and "28 with a query, 2 without" in again.stdout


def started(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return warm.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_answers(process: subprocess.Popen[str], output: Path, count: int) -> None:
    journal, deadline = output.with_suffix(".journal.jsonl"), time.monotonic() + 100
    while not (journal.exists() and journal.read_bytes().count(b"\n") > count):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def keys(requests: Iterable[Request]) -> set[tuple[str, str]]:
    return {(each.step, each.passage) for each in requests}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_and_asks_nothing_twice(
    number: signal.Signals, status: int, corpus: Path, tmp_path: Path
) -> None:
    asked, stopped = count(), Event()

    def until_stopped(request: Request) -> Answer:
        if next(asked) >= 20:
            stopped.wait(120)
        return well(request)

    whole, output = tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    with serving() as server:
        assert make_queries(*command(corpus, server, whole, "--endpoint.concurrency", "7")).returncode == 0
    with serving(until_stopped) as server:
        patient = ("--endpoint.concurrency", "2", "--endpoint.timeout", "100")
        process = started(command(corpus, server, output, *patient))
        wait_for_answers(process, output, 15)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        stopped.set()
        assert process.returncode == status, said
        assert not output.exists()
        if number == signal.SIGINT:
            answers = len(journal_of(output))
            assert said.endswith(f"holds {answers} answers; the same command resumes\n") and "Traceback" not in said
        first, answered = list(server.requests), len(journal_of(output))
        assert 15 <= answered < 60
        time.sleep(0.1)  # until the server has done with what was under way
        server.requests.clear()
        done = make_queries(*command(corpus, server, output, "--endpoint.concurrency", "5"))
        assert done.returncode == 0, done.stderr
    assert f"{answered} answers; " in done.stdout
    assert len(server.requests) == 60 - answered
    assert len(keys(first) & keys(server.requests)) == len(first) - answered <= 2, "only what was under way"
    assert output.read_bytes() == whole.read_bytes()


def test_a_larger_limit_goes_on_with_a_smaller_ones_answers(corpus: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "pairs.jsonl", tmp_path / "whole.jsonl"
    with serving() as server:
        assert make_queries(*command(corpus, server, whole)).returncode == 0
        for limit, asked in ((10, 20), (25, 30)):
            server.requests.clear()
            assert make_queries(*command(corpus, server, output, "--limit", str(limit))).returncode == 0
            assert len(server.requests) == asked
            rows = read(output)
            assert len(rows) == limit and all(row in read(whole) for row in rows)
            output.unlink()


def test_a_budget_ends_with_what_a_limit_gives(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    prices = ["--endpoint.price_in", "100", "--endpoint.price_out", "1000", "--endpoint.concurrency", "2"]
    with serving() as server:
        done = make_queries(*command(corpus, server, output, *prices, "--budget", "0.4"))
        assert done.returncode == 2 and not output.exists()
        found = re.search(
            r"error: the budget of 0.4 is spent, (\d+) of 30 documents are left; .*--limit (\d+)$", done.stderr
        )
        assert found is not None and int(found[1]) + int(found[2]) == 30
        assert 10 <= int(found[2]) <= 11, "0.04 a document, and one more under way"
        asked = len(server.requests)
        again = make_queries(*command(corpus, server, output, *prices, "--budget", "0.4"))
        assert again.stderr == done.stderr and len(server.requests) == asked
        done = make_queries(*command(corpus, server, output, *prices, "--limit", found[2]))
        assert done.returncode == 0 and len(server.requests) == asked
    assert len(read(output)) == int(found[2])
    assert f", {asked * 0.02:.2f} at the given prices" in done.stdout


def test_other_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    with serving() as server:
        assert make_queries(*command(corpus, server, output)).returncode == 0
        output.unlink()
        server.requests.clear()
        done = make_queries(*command(corpus, server, output, "--temperature", "0.1", "--languages", '{"German": 1}'))
        assert done.returncode == 2
        assert "  temperature: 0.7 then, 0.1 now" in done.stderr and "languages.German: (absent) then" in done.stderr
    assert server.requests == []


def test_of_a_corpus_that_has_changed_only_new_documents_are_asked_about(corpus: Path, tmp_path: Path) -> None:
    """The result is that of a run that has asked about all of them."""
    output, whole = tmp_path / "pairs.jsonl", tmp_path / "whole.jsonl"
    more = ("--num_queries", "2", "--min_grade", "4", "--multi_hop", '{"2": 0.5}', "--explain", "true")
    rows = [{"_id": f"guide.md#{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)]
    with serving(of_offered_type) as server:
        assert make_queries(*command(write_rows(corpus, rows), server, output, *more)).returncode == 0
        output.unlink()
        write_rows(corpus, [*rows[7:], {"_id": "other.md#1", "title": "", "text": f"{TEXTS[0]}, and of more"}])
        before = len(server.requests)
        done = make_queries(*command(corpus, server, output, *more))
        assert done.returncode == 0, done.stderr
        assert 0 < len(server.requests) - before <= 3 * 3, "of the new one, and of one that has lost its neighbour"
        assert make_queries(*command(corpus, server, whole, *more)).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


def test_a_key_comes_from_the_environment_and_stays_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "pairs.jsonl"
    with serving() as server:
        more = ["--endpoint.api_key_env", "TEST_KEY"]
        done = make_queries(*command(corpus, server, output, *more))
        assert (
            "error: endpoint.api_key_env TEST_KEY: the environment has no such variable" in done.stderr
            and not server.requests
        )
        monkeypatch.setenv("TEST_KEY", "sesame")
        done = make_queries(*command(corpus, server, output, *more))
    assert done.returncode == 0 and {each.key for each in server.requests} == {"Bearer sesame"}
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(written) == 3
    assert not any(b"sesame" in path.read_bytes() for path in written) and "sesame" not in done.stdout + done.stderr


def test_a_wrong_key_ends_it_at_once(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    with serving(lambda request: Answer(status=401)) as server:
        done = make_queries(*command(corpus, server, output))
    assert done.returncode == 2 and not output.exists() and len(server.requests) <= 8
    assert done.stderr.startswith(f"error: {server.url}: Error code: 401") and "check the key" in done.stderr


def test_a_model_that_never_answers_well_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    with serving(lambda request: Answer("no")) as server:
        done = make_queries(*command(corpus, server, output, "--attempts", "2"))
    assert done.returncode == 2 and len(server.requests) == 60
    assert "error: no query was made; 30 no JSON object; " in done.stderr
    assert names(tmp_path) == ["corpus.jsonl", "pairs.journal.jsonl"]


def test_a_model_without_an_endpoint_answers_here(corpus: Path, tmp_path: Path) -> None:
    """A random one, whose nonsense is kept and counted."""
    model, output = tiny_qwen3(tmp_path / "model", sentence_transformers=False), tmp_path / "pairs.jsonl"
    (model / "chat_template.jinja").write_text("{% for each in messages %}{{ each.content }}{% endfor %}")
    settings = ["--limit", "5", "--attempts", "2", "--max_tokens", "4", "--batch_size", "3"]
    done = make_queries("--data", corpus, "--model", model, "--output", output, *settings)
    assert done.returncode == 2 and not output.exists()
    assert "error: no query was made; 5 " in done.stderr and "10 answers to 10 requests" in done.stdout
    answers = journal_of(output)
    assert len(answers) == 10 and len({each["text"] for each in answers}) > 5
    assert {each["tokens_out"] for each in answers} <= {1, 2, 3, 4}


def test_a_dry_run_asks_nothing(corpus: Path, tmp_path: Path) -> None:
    with serving() as server:
        arguments = command(corpus, server, tmp_path / "pairs.jsonl", "--dry_run", "true", "--endpoint.price_in", "10")
        done = make_queries(*arguments)
    assert done.returncode == 0, done.stderr
    assert server.requests == [] and names(tmp_path) == ["corpus.jsonl"]
    assert done.stdout.count("step 1\n") == done.stdout.count("step 2\n") == 2
    assert any(f"<passage>\n{text}\n</passage>" in done.stdout for text in TEXTS)
    estimated = re.search(r"60 requests with about ([\d,]+) tokens of prompts", done.stdout)
    assert estimated is not None and 10_000 < int(estimated[1].replace(",", "")) < 25_000
    assert "at the given price, without the answers" in done.stdout


def test_an_embedder_chooses_the_candidates(corpus: Path, tmp_path: Path, bert: Path) -> None:
    outputs = [tmp_path / "drawn.jsonl", tmp_path / "near.jsonl"]
    shown = []
    with serving() as server:
        for output, more in zip(outputs, ([], ["--embedder", str(bert)]), strict=True):
            server.requests.clear()
            done = make_queries(*command(corpus, server, output, "--num_personas", "3", "--limit", "6", *more))
            assert done.returncode == 0, done.stderr
            prompts = {
                each.passage: each.body["messages"][0]["content"]
                for each in server.requests
                if each.step == "configuration"
            }
            shown.append({passage: set(re.findall(r"^\d\. (.*)$", text, re.M)) for passage, text in prompts.items()})
    drawn, near = shown
    assert drawn.keys() == near.keys() and drawn != near
    assert all(len(each) == 3 for each in [*drawn.values(), *near.values()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "corpus.jsonl"], "give an --output, or --dry_run true"),
        (["--data", "c", "--output", "pairs.json"], "expected a name that ends in .jsonl"),
        (["--data", "c", "--output", "no/pairs.jsonl"], "the folder no does not exist"),
        (["--data", "c", "--output", "corpus.jsonl"], "--output corpus.jsonl exists; choose another name"),
        (["--data", "c", "--output", "o.jsonl"], "--model m: no such directory; give one, or an --endpoint.url"),
        (
            ["--data", "c", "--output", "o.jsonl", "--endpoint.url", "localhost"],
            "endpoint.url: 'localhost' is not an address",
        ),
        (["--data", "c", "--output", "o.jsonl", "--lengths", '{"6-2": 1}'], "lengths: 6-2 is no range of words"),
        (["--data", "c", "--output", "o.jsonl", "--languages", '{"German": 0}'], "weight of German is 0"),
        (["--data", "c", "--output", "o.jsonl", "--min_grade", "6"], "min_grade is 6, expected 1 to 5"),
        (["--data", "c", "--output", "o.jsonl", "--max_similarity", "0.9"], "max_similarity needs an --embedder"),
        (["--data", "c", "--output", "o.jsonl", "--embedder", "e", "--max_similarity", "2"], "max_similarity is 2"),
        (["--data", "c", "--output", "o.jsonl", "--multi_hop", '{"4": 0.1}'], "4 passages; expected 2 or 3"),
        (["--data", "c", "--output", "o.jsonl", "--multi_hop", '{"2": 0.9, "3": 0.2}'], "the shares add up to 1.1"),
        (["--data", "corpus.jsonl", "--dry_run", "true", "--multi_hop", '{"2": 0.1}'], "no two documents of corpus"),
        (["--data", "c", "--output", "o.jsonl", "--sample", "s.txt"], "expected a name that ends in .html"),
        (["--data", "c", "--output", "o.jsonl", "--budget", "3"], "budget needs to be above 0, and endpoint.price_in"),
        (["--data", "c", "--dry_run", "true"], "c: file: there is no such file; expected a folder in the BEIR layout"),
        (["--data", "corpus.jsonl", "--dry_run", "true", "--personas", "p"], "p: file: there is no such file"),
        (["--data", "corpus.jsonl", "--dry_run", "true", "--min_characters", "5000"], "none of 30 documents has 5000"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    done = make_queries("--model", "m", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert names(tmp_path) == ["corpus.jsonl"]
