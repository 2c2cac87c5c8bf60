"""scripts/make_test_set.py as it is run, against a real server on this machine."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import scripts.evaluate
from nestling.records import load_retrieval_set
from recipes.runs import SUBJECTS, run_main, write_dev
from scripts.make_test_set import main
from synthesis.served import Answer, Request, Served, serving

pytestmark = pytest.mark.usefixtures("workplace")

make_test_set = partial(run_main, main)
QUERY = re.compile(r"<query>\n(.*?)\n</query>", re.DOTALL)


class Judge:
    """3 for the document of the query's subject, 1 for others, and 2 for it where it is asked again."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, request: Request) -> Answer:
        found = QUERY.search(request.body["messages"][0]["content"])
        assert found is not None
        key = (found[1], request.passage)
        self.asked[key] += 1
        right = request.passage.endswith(f" {found[1].split()[1]}")
        return Answer(json.dumps({"grade": 4 - self.asked[key] if right else 1}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dev(tmp_path / "set")


def command(data: Path, server: Served, output: Path, *more: object) -> list[object]:
    settings = ["--data", data, "--split", "dev", "--model", "m", "--endpoint.url", server.url, "--output", output]
    return [*settings, "--depth", 3, "--endpoint.timeout", "5", "--endpoint.retries", "1", *more]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_judged_set_with_whose_judgements_and_how_they_agree(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged"
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, output, "--second_share", 1, "--endpoint.concurrency", 1))
        assert done.returncode == 0, done.stderr
        asked = len(server.requests)
        again = make_test_set(*command(data, server, tmp_path / "again", "--journal", f"{output}.journal.jsonl"))
        assert again.returncode == 0, again.stderr
        assert len(server.requests) == asked, "the journal has all answers"
    measured = run_main(scripts.evaluate.main, "--first_stage", "bm25", "--data", output, "--split", "dev")
    assert f"judged {asked // 2} by m" in measured.stdout, measured.stderr
    found = load_retrieval_set(output, "dev")
    assert list(found.queries) == [f"list {subject}" for subject in SUBJECTS]
    assert [found.documents[each[0]] for each in found.relevant] == [f"how to list the {each}" for each in SUBJECTS]
    assert all(each.tolist() == [2] for each in found.gains), "grade 3 is two above what is not relevant"
    judged = rows(output / "judgements.jsonl")
    assert asked == 2 * len(judged) > 2 * len(SUBJECTS)
    assert {each["by"] for each in judged} == {"m"}
    assert {(each["grade"], each["second"]) for each in judged} == {(3, 2), (1, 1)}
    right = len(SUBJECTS)
    assert f"{len(judged):,} documents of 8 queries judged, {len(judged):,} by m" in done.stdout
    assert f"grades 0: 0, 1: {len(judged) - right}, 2: 0, 3: {right}" in done.stdout
    assert "of 8 documents called relevant by the data, 100% got 2 or more" in done.stdout
    same = f"the same grade {(len(judged) - right) / len(judged):.0%}"
    assert (
        f"{len(judged)} judged twice: {same}, the same relevance 100%, Cohen's kappa of relevance 1.00" in done.stdout
    )


def test_a_person_corrects_what_the_page_shows(data: Path, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.json"
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, tmp_path / "judged"))
        assert done.returncode == 0, done.stderr
        page = (tmp_path / "judged" / "judgements.html").read_text(encoding="utf-8")
        assert page.count("<fieldset") == len(rows(tmp_path / "judged" / "judgements.jsonl"))
        names = [re.findall(r'type="radio" name="([^"]+)"', each) for each in page.split("<fieldset")[1:]]
        assert all(len(each) == 4 and len(set(each)) == 1 for each in names), "one grade can be chosen of four"
        assert len({each[0] for each in names}) == len(names)
        assert "const earlier = [];" in page
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
        wrong = [{"query-id": "q0", "corpus-id": "d0", "grade": 0}, {"query-id": "q1", "corpus-id": "d1", "grade": 3}]
        corrections.write_text(json.dumps({"corrections": wrong}))
        more = ["--journal", tmp_path / "judged.journal.jsonl", "--corrections", corrections]
        done = make_test_set(*command(data, server, tmp_path / "corrected", *more))
    assert done.returncode == 0, done.stderr
    assert "2 by person" in done.stdout
    corrected = (tmp_path / "corrected" / "judgements.html").read_text(encoding="utf-8")
    earlier = json.loads(re.findall(r"const earlier = (.*);", corrected)[0])
    assert {(each["query-id"], each["grade"]) for each in earlier} == {("q0", 0), ("q1", 3)}, "saved with the next ones"
    assert "1 queries have no relevant document and are left out" in done.stdout
    assert "2 graded by a person, who gave the model's grade to 50%" in done.stdout
    assert len(load_retrieval_set(tmp_path / "corrected", "dev").queries) == len(SUBJECTS) - 1
    corrections.write_text('{"corrections": [{"query-id": "q0", "corpus-id": "d0", "grade": 7}]}')
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, tmp_path / "more", "--corrections", corrections))
    assert "a grade is 7, expected 0 to 3" in done.stderr


def test_answers_of_no_use_are_asked_for_again_and_then_counted(data: Path, tmp_path: Path) -> None:
    def odd(request: Request) -> Answer:
        return Judge()(request) if request.passage.endswith("files") else Answer('{"grade": "good"}')

    with serving(odd) as server:
        done = make_test_set(*command(data, server, tmp_path / "judged", "--attempts", 2, "--second_share", 0))
        none = make_test_set(*command(data, server, tmp_path / "strict", "--relevant_from", 3, "--retrievers", "x"))
    assert done.returncode == 0, done.stderr
    assert "got no grade and count as not relevant" in done.stdout
    assert "7 queries have no relevant document" in done.stdout
    assert list(load_retrieval_set(tmp_path / "judged", "dev").queries) == ["list files"]
    assert none.returncode == 2


def test_a_server_without_answers_is_told_apart_from_grades(data: Path, tmp_path: Path) -> None:
    """What a limit of the server has cost would count as not relevant for ever."""
    judge, busy = Judge(), True

    def limited(request: Request) -> Answer:
        return Answer("slow down", status=429) if busy and request.passage.endswith("ports") else judge(request)

    more = ["--second_share", 0, "--endpoint.retries", 0, "--endpoint.concurrency", 100]
    with serving(limited) as server:
        done = make_test_set(*command(data, server, tmp_path / "judged", *more))
        assert done.returncode == 0, done.stderr
        found = re.search(r"(\d+) judgements got no answer; \1 status 429; to ask again, remove ", done.stdout)
        assert found is not None, done.stdout
        busy, asked = False, len(server.requests)
        journal = ["--journal", tmp_path / "judged.journal.jsonl"]
        done = make_test_set(*command(data, server, tmp_path / "again", *more, *journal))
        assert len(server.requests) - asked == int(found[1])
    assert "got no" not in done.stdout


def test_corrections_of_other_documents_are_told_or_refused(data: Path, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.json"
    other = {"query-id": "q0", "corpus-id": "gone", "grade": 3}
    corrections.write_text(json.dumps({"corrections": [other]}))
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, tmp_path / "none", "--corrections", corrections))
        assert done.returncode == 2
        assert "none of its 1 grades is of a document that is judged here (the first: query q0, document gone)" in (
            done.stderr
        )
        assert not server.requests, "nothing is paid for before"
        corrections.write_text(json.dumps({"corrections": [other, {**other, "corpus-id": "d0"}]}))
        done = make_test_set(*command(data, server, tmp_path / "judged", "--corrections", corrections))
    assert "1 grades of a person are of documents that are not judged here, and are left out" in done.stdout
    assert "1 by person" in done.stdout


def test_an_id_that_would_break_its_line_is_refused_before_anything_is_asked(data: Path, tmp_path: Path) -> None:
    """The set was written, and could not be read."""
    with (data / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "d\t1", "text": "how to list the files"}) + "\n")
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, tmp_path / "judged"))
        assert not server.requests
    assert done.returncode == 2
    assert "the id 'd\\t1' has a tab or a line end, which separate the ids of qrels" in done.stderr


def test_queries_keep_their_groups(data: Path, tmp_path: Path) -> None:
    """Else a verdict takes queries of one manual for as many that are alone."""
    queries = rows(data / "queries.jsonl")
    for number in (0, 1, 2):
        queries[number]["metadata"] = {"group": f"manual {number // 2}"}
    (data / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    with serving(Judge()) as server:
        done = make_test_set(*command(data, server, tmp_path / "judged"))
    assert done.returncode == 0, done.stderr
    before, after = load_retrieval_set(data, "dev"), load_retrieval_set(tmp_path / "judged", "dev")
    assert before.groups == after.groups
    assert rows(tmp_path / "judged" / "queries.jsonl")[0]["metadata"] == {"group": "manual 0"}
    assert "metadata" not in rows(tmp_path / "judged" / "queries.jsonl")[3]


def test_a_dry_run_asks_nothing(data: Path) -> None:
    done = make_test_set("--data", data, "--split", "dev", "--model", "m", "--dry_run", "true")
    assert done.returncode == 0, done.stderr
    assert "<query>\nlist files\n</query>" in done.stdout
    assert "tokens of prompts, if all answers can be used" in done.stdout
