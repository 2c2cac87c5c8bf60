"""Rows that `dev_share` holds out of training data: which they are, what they are searched in, what a run keeps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.batches.sampling import Source
from nestling.config import CandidateData, DevData, EmbedConfig, RerankConfig, TrainData
from nestling.records import load_retrieval_set
from nestling.training import held_out
from nestling.training.data import read_sources
from nestling.training.dev_sets import load_dev_set, load_rerank_dev_set, with_held_out
from nestling.training.held_out import hold_out, keep_held_out

TASK = "Given a task, find the command"


def write(path: Path, count: int = 60) -> Path:
    """Pairs of rows of one query, with a hard negative of their own."""
    rows = [
        {"query": f"task number {i // 2}", "positives": [f"{i} says how"], "negatives": [f"{i} does not"]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(path: Path, **settings: object) -> EmbedConfig:
    data = TrainData(str(path), instruction=TASK)
    return EmbedConfig(model="m", output_dir="run", train=[data], dev_share=0.2, **settings)  # type: ignore[arg-type]


def read(config: EmbedConfig) -> Source:
    (source,) = read_sources(config, lambda *_: None, show=True)
    return source


def trained(source: Source) -> set[str]:
    return {source.table[i].query for i in range(len(source.table))}


def test_groups_are_held_out_and_the_rest_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(held_out, "SEARCHED", 40)
    settings = config(write(tmp_path / "pairs.jsonl"))
    source = read(settings)
    (dev,) = with_held_out(settings, [source]).dev
    assert (dev.split, dev.instruction) == ("dev", TASK)
    found = load_dev_set(dev, [source], show=True)
    assert found.name == "pairs/dev"
    rows = 60 - len(source.table)
    assert 4 <= len(found.queries) == rows // 2 <= 12
    assert f"pairs: {rows} of 60 rows are held out as a dev set" in capsys.readouterr().out
    assert trained(source).isdisjoint(found.queries)
    assert trained(source) | set(found.queries) == {f"task number {i}" for i in range(30)}
    for query, relevant in zip(found.queries, found.relevant, strict=True):
        number = 2 * int(query.split()[-1])
        assert {found.documents[i] for i in relevant.tolist()} == {f"{number} says how", f"{number + 1} says how"}
    own = {f"{2 * int(query.split()[-1]) + i} {what}" for query in found.queries for i in (0, 1) for what in KINDS}
    assert own <= set(found.documents)
    assert len(found.documents) == 40, "filled up with documents of other rows"


KINDS = ("says how", "does not")


def test_the_same_again_and_another_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl")
    first, again = read(config(path)), read(config(path))
    assert first.held_out == again.held_out
    assert first.table.fingerprint == again.table.fingerprint
    assert trained(read(config(path, seed=7))) != trained(first)
    before = trained(first)
    write(path, 80)  # more rows
    assert {each for each in trained(read(config(path))) if int(each.split()[-1]) < 30} == before


def test_a_run_keeps_it_and_rerankers_read_candidates(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl")
    source = read(config(path))
    for _ in range(2):  # and again in a run that is resumed
        keep_held_out(tmp_path, [source])
    kept = tmp_path / "held_out" / "pairs"
    assert sorted(each.name for each in kept.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]
    settings = RerankConfig(model="m", output_dir="run", train=[TrainData(str(path))], dev_share=0.2)
    (dev,) = with_held_out(settings, [source]).dev
    assert isinstance(dev, CandidateData)
    dev_set = load_rerank_dev_set(dev, [source], show=False)
    assert dev_set.retrieval_set.queries[:] == load_retrieval_set(kept, "dev").queries[:]
    assert min(map(len, dev_set.candidates.positions)) > 0


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", 2)
    with pytest.raises(ValueError, match=r"dev_share 0\.2 holds out . of 1 groups of rows that share texts"):
        hold_out(config(few), TrainData(str(few)), show=False)
    graded = tmp_path / "graded.jsonl"
    graded.write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n')
    with pytest.raises(ValueError, match=r"graded.jsonl: dev_share holds out queries .* are graded pairs"):
        hold_out(config(graded), TrainData(str(graded)), show=False)
    with pytest.raises(ValueError, match="dev_share is 1, expected a share"):
        EmbedConfig(model="m", output_dir="run", train=[TrainData("x")], dev_share=1)


def test_some_rows_of_a_large_dataset_are_held_out_where_there_is_no_dev_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(held_out, "FEWEST", 60)
    path = write(tmp_path / "pairs.jsonl")
    data = TrainData(str(path))
    plain = EmbedConfig(model="m", output_dir="run", train=[data])
    found = hold_out(plain, data, show=True)
    assert found is not None
    assert 0 < (~found.keep).sum() <= 12
    assert "of 60 rows are held out as a dev set (--dev_share)" in capsys.readouterr().out
    assert hold_out(replace(plain, dev_share=0.0), data, show=True) is None
    assert hold_out(replace(plain, dev=[DevData("set")]), data, show=True) is None
    assert hold_out(RerankConfig(model="m", output_dir="run", train=[data]), data, show=True) is None
    monkeypatch.setattr(held_out, "FEWEST", 61)
    assert hold_out(plain, data, show=True) is None
    assert capsys.readouterr().out == ""


def test_why_nothing_is_held_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(held_out, "FEWEST", 1)
    path = write(tmp_path / "few.jsonl", 2)
    plain = EmbedConfig(model="m", output_dir="run", train=[TrainData(str(path))])
    assert hold_out(plain, plain.train[0], show=True) is None
    assert "no rows are held out as a dev set" in capsys.readouterr().out
    monkeypatch.setattr(held_out, "MOST", 1)
    assert hold_out(plain, plain.train[0], show=True) is None
    assert "there are more than 1; give a dev set with --dev" in capsys.readouterr().out
    monkeypatch.setattr(held_out, "NEEDED", ("no_such_module",))
    assert hold_out(plain, plain.train[0], show=True) is None
    assert "that needs no_such_module, of the extra hygiene; or give a dev set" in capsys.readouterr().out
