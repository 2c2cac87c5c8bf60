"""scripts/bench/answer_sentences.py: questions, the sentences that answer them, and splits by article."""

import importlib
import json
from pathlib import Path

import pytest

from nestling.records import load_retrieval_set
from recipes.runs import run_main

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
TEXT = 'Fig. 2 shows hard wind. "Nobody saw the tower fall." It fell at noon.\nA heading\nThen it rained.'


def test_the_sentence_of_an_answer_is_relevant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    starts = [TEXT.index("hard"), TEXT.index("noon")]
    asked = [
        {"question": f"What of  {i}?", "answers": [{"answer_start": start, "text": ""}]}
        for i, start in enumerate(starts)
    ]
    short = {"question": "Why?", "answers": asked[0]["answers"]}
    articles = [{"paragraphs": [{"context": TEXT, "qas": [*asked, short]}]} for _ in range(10)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    main, output = importlib.import_module("answer_sentences").main, tmp_path / "out"
    flags = ["--data", str(tmp_path / "squad.json"), "--output", str(output)]
    done = run_main(main, *flags)
    assert done.returncode == 0, done.stderr
    assert "14 train, 4 dev, 2 test questions of 10 articles, 4 sentences to find" in done.stdout

    found = load_retrieval_set(output, "dev")
    assert list(found.documents) == [
        "Fig. 2 shows hard wind.",
        '"Nobody saw the tower fall.',
        "It fell at noon. A heading",  # a short sentence goes on
        "Then it rained.",
    ]
    assert list(found.queries)[:2] == ["What of 0?", "What of 1?"]
    assert [list(rows) for rows in found.relevant] == [[0], [2]] * 2
    assert found.groups is not None and len(set(found.groups)) == 2
    again = run_main(main, *flags)
    assert again.returncode == 2 and "exists" in again.stderr
    shares = run_main(main, *flags[:2], "--output", str(tmp_path / "other"), "--train", "0.9", "--dev", "0.1")
    assert shares.returncode == 2 and "train 0.9, dev 0.1: expected shares that leave some" in shares.stderr
