import json
from pathlib import Path

import numpy as np
import pytest

from mining.small import write_corpus, write_rows
from nestling.models.embedder import Embedder
from nestling.records import text_id
from nestling.synthesis.passages import Passages
from nestling.synthesis.personas import nearest_personas, read_personas

ROOT = Path(__file__).parents[2]
TEXTS = ["a long enough text", "short", "another long text", "a long enough text", "", "x" * 60, "the third long text"]


def passages(path: Path, **settings: int | None) -> Passages:
    return Passages.open(path, **{"limit": None, "min_characters": 10, "max_characters": 40, "seed": 1, **settings})  # type: ignore[arg-type]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def test_each_text_once_and_none_too_short(corpus: Path) -> None:
    found = passages(corpus)
    in_order = [found.texts[i] for i in np.argsort(found.positions)]
    assert in_order == [TEXTS[i] for i in (0, 2, 5, 6)]
    assert [found.ids[i] for i in np.argsort(found.positions)] == ["d0", "d2", "d5", "d6"]
    assert found.text_ids.tolist() == [text_id(text) for text in found.texts]
    assert (found.repeated, found.empty, found.short, found.truncated) == (1, 1, 1, 1)
    assert sorted(len(found.visible_text(i)) for i in range(4)) == [17, 18, 19, 40]
    assert str(found) == (
        f"{corpus}: 7 documents: 1 empty, 1 repeat another's text, 1 too short; queries for 4, of which 1 are longer "
        "than the 40 characters that the model sees"
    )


def test_a_folder_is_its_corpus(corpus: Path) -> None:
    assert list(passages(corpus.parent).usable_texts) == list(passages(corpus).usable_texts)


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", [f"text number {i} of many" for i in range(200)])
    whole, some, other = passages(corpus), passages(corpus, limit=20), passages(corpus, limit=20, seed=2)
    assert len(some) == 20 and list(some.texts) == list(whole.texts)[:20]
    assert set(other.ids) != set(some.ids)
    assert "180 not drawn; queries for 20" in str(some)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"_id": "1", "text": "short"}], "none of 1 documents has 10 characters or more"),
        ([{"_id": "1", "title": 3, "text": "short"}], "corpus.jsonl:1: title: expected a text, got int 3"),
    ],
)
def test_corpora_that_cannot_be_used(rows: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        passages(write_rows(tmp_path / "corpus.jsonl", rows))
    with pytest.raises(ValueError, match="there is no such file"):
        passages(tmp_path / "missing.jsonl")


def test_personas_are_different_lines(tmp_path: Path) -> None:
    file = tmp_path / "personas.txt"
    file.write_text("\ufeffA  nurse\n\nA cook\r\nA nurse\n", encoding="utf-8")
    assert read_personas(file) == ["A nurse", "A cook"]
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text; expected one persona per line"):
        read_personas(file)


def test_the_personas_that_come_with_it_are_varied() -> None:
    personas = read_personas(ROOT / "data" / "personas.txt")
    assert len(personas) == 40 and all(30 < len(each) < 100 for each in personas)
    assert len({each.split()[1] for each in personas}) >= 30


def test_nearest_personas_equal_those_of_a_loop(corpus: Path, bert: Path) -> None:
    found, personas = passages(corpus), read_personas(ROOT / "data" / "personas.txt")
    embedder = Embedder.from_pretrained(str(bert))
    rows = nearest_personas(embedder, personas, found, 5)
    texts = [found.texts[i] for i in range(len(found))]
    documents, personas = (
        embedder.encode(each, kind="document", max_length=100).half().float() for each in (texts, personas)
    )
    for row, scores in zip(rows, documents @ personas.T, strict=True):
        best = scores[row.tolist()]
        assert (best.diff() <= 1e-6).all() and best[-1] >= scores.sort(descending=True).values[4] - 1e-6
        assert len(set(row.tolist())) == 5
    assert len({json.dumps(row.tolist()) for row in rows}) > 1


def test_documents_are_read_as_far_as_the_embedder_reads(bert: Path, tmp_path: Path) -> None:
    """Some read fewer tokens than the 512 that tell a subject; longer ones ended in an error of torch."""
    embedder = Embedder.from_pretrained(str(bert))
    assert embedder.max_seq_length < 512
    path = write_rows(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "swallows build nests " * 400}])
    rows = nearest_personas(embedder, ["a cook", "a nurse"], passages(path), 2)
    assert sorted(rows[0].tolist()) == [0, 1]
