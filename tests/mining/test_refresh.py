"""Hard negatives mined again by the model in training."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

import nestling.mining.cached_encoder
import nestling.models.encoding
from mining.small import random_rows, write_corpus, write_rows
from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.config import RefreshConfig
from nestling.mining.refresh_dataset import RefreshDataset
from nestling.mining.refresh_schedule import Refresher, spans
from nestling.models.embedder import Embedder
from nestling.records import Record, RecordTable, load_records
from nestling.records.words import folded_text_id

LENGTHS = {"query_max_length": 24, "document_max_length": 16}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", random_rows(40))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(
        tmp_path / "pairs.jsonl", [{**row, "negatives": []} for row in random_rows(24, seed=1) if row["positives"]]
    )


def refresher(
    embedder: Embedder, folder: Path, paths: list[Path], rules: RefreshConfig, *, equal_forwards: bool = False
) -> tuple[Refresher, list[str]]:
    """A refresher of some datasets, and the list of the lines that it prints."""
    sources = [Source(load_records(path, progress=False)) for path in paths]
    row_sampler = RowSampler(positives=1, negatives=3, seed=0)
    batch_sampler = BatchSampler(sources, 4, row_sampler, seed=0)
    datasets = [
        RefreshDataset.open(source.table, str(path), rules.corpus, progress=False)
        for source, path in zip(sources, paths, strict=True)
    ]
    lengths = {"chunk_tokens": 256, **LENGTHS}
    collator = EmbedCollator(sources, row_sampler, embedder.text_tokenizer, embedder.prompts, **lengths)
    said: list[str] = []
    made = Refresher(
        folder,
        rules,
        batch_sampler,
        collator,
        datasets,
        embedder,
        equal_forwards=equal_forwards,
        progress=False,
        say=said.append,
        log=lambda step, figures: None,
    )
    return made, said


def records(table: RecordTable) -> list[Record]:
    return [table[i] for i in range(len(table))]


def nearest_below(embedder: Embedder, table: RecordTable, texts: list[str], max_score_ratio: float) -> list[list[str]]:
    """The 3 nearest texts of each record that remain after the rules, in float64."""
    documents = embedder.encode(texts, kind="document", max_length=16).half().double()
    place = {text: i for i, text in enumerate(texts)}
    rows, nearest = records(table), []
    for row in rows:
        query = embedder.encode([row.query], kind="query", max_length=24, instruction=row.instruction).half().double()
        scores = (documents @ query[0]).tolist()
        same = (other for other in rows if (other.query, other.instruction) == (row.query, row.instruction))
        positives = {text for other in same for text in other.positives}
        of_positives = embedder.encode(list(positives), kind="document", max_length=16).half().double() @ query[0]
        lowest = of_positives.min().item()
        taken, own = {folded_text_id(text) for text in (*positives, row.query)}, []
        for text in sorted(texts, key=lambda text: -scores[place[text]]):
            if folded_text_id(text) not in taken and scores[place[text]] < lowest - abs(lowest) * (1 - max_score_ratio):
                own.append(text)
            taken.add(folded_text_id(text))
        nearest.append(own[:3])
    return nearest


@pytest.mark.parametrize("source", ["records", "corpus"])
def test_negatives_equal_a_naive_loop_and_all_else_is_kept(
    source: str, qwen3: Path, rows: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", [row["positives"][0] + " more" for row in random_rows(60, seed=3)])
    rules = RefreshConfig(
        steps=2, depth=500, max_score_ratio=0.9, among=3, corpus=str(corpus) if source == "corpus" else None
    )
    embedder = Embedder.from_pretrained(qwen3)
    made, said = refresher(embedder, tmp_path / "refresh", [rows], rules)
    before = made.batch_sampler.sources[0].table
    texts = {text: None for row in records(before) for text in row.positives}
    texts |= {text: None for row in records(before) for text in row.negatives}
    if source == "corpus":
        texts = {row["positives"][0] + " more": None for row in random_rows(60, seed=3)}
    expected = nearest_below(embedder, before, list(texts), 0.9)
    batches = made.batches(range(4), workers=0)
    next(batches)
    assert made.tables == [before], "rows begin with the negatives that they have"
    next(batches), next(batches)
    after = made.tables[0]
    assert [sorted(row.negatives) for row in records(after)] == [sorted(each) for each in expected]
    assert after.max_negatives == max(map(len, expected)) == 3
    assert after.summary.negatives == sum(map(len, expected))
    assert not after.has_scores
    for i, (old, new) in enumerate(zip(records(before), records(after), strict=True)):
        assert (old.query, old.positives, old.instruction) == (new.query, new.positives, new.instruction)
        assert set(after.known_positives(i)) == set(before.known_positives(i))
        assert set(after.negative_ids(i)).isdisjoint(after.known_positives(i))
    assert made.collator.sources[0].table is after
    assert len(said) == 1
    queries = {(row.query, row.instruction): row.negatives for row in records(after)}
    assert said[0].startswith(f"step 2: rows: {sum(map(len, queries.values()))} hard negatives mined again, cosine ")
    assert [path.name for path in (tmp_path / "refresh").iterdir()] == ["step-2"], "embeddings are gone"


def test_datasets_without_negatives_are_mined_at_step_0_and_all_of_them_later(
    bert: Path, rows: Path, pairs: Path, tmp_path: Path
) -> None:
    embedder = Embedder.from_pretrained(bert)
    made, _ = refresher(embedder, tmp_path / "refresh", [rows, pairs], RefreshConfig(steps=3))
    batches = made.batches(range(5), workers=0)
    next(batches)
    own, mined = made.tables
    assert own is made.batch_sampler.sources[0].table
    assert mined.max_negatives == 3
    list(batches)
    assert sorted(path.relative_to(tmp_path / "refresh").as_posix() for path in tmp_path.rglob("refresh/*/*")) == [
        "step-0/pairs.arrow",
        "step-3/pairs.arrow",
        "step-3/rows.arrow",
    ]
    assert made.tables[0] is not own


def test_names_in_other_scripts_have_files_of_their_own(bert: Path, tmp_path: Path) -> None:
    paths = [
        write_rows(tmp_path / f"{name}.jsonl", [{**row, "negatives": []} for row in random_rows(24, seed=seed)])
        for seed, name in enumerate(("\u6cd5\u5f8b", "\u533b\u7597", "plain"))
    ]
    made, said = refresher(Embedder.from_pretrained(bert), tmp_path / "refresh", paths, RefreshConfig(steps=3))
    next(made.batches(range(5), workers=0))
    assert len(said) == 3
    for table, dataset in zip(made.tables, made.datasets, strict=True):
        assert dataset is not None
        assert [each.query for each in records(table)] == [each.query for each in records(dataset.table)]
    names = sorted(path.name for path in (tmp_path / "refresh" / "step-0").iterdir())
    assert names == ["_~0.arrow", "_~1.arrow", "plain.arrow"]


def test_a_resumed_run_has_the_same_batches(bert: Path, rows: Path, pairs: Path, tmp_path: Path) -> None:
    """The model changes between refreshes; what the first part mined is taken from the folder."""
    rules = RefreshConfig(steps=3)

    def run(folder: Path, steps: range) -> list[list[list[int]]]:
        embedder, batches = Embedder.from_pretrained(bert), []
        made, _ = refresher(embedder, folder, [rows, pairs], rules)
        for step, batch in zip(steps, made.batches(steps, workers=0), strict=True):
            batches.append(batch.tokens.ids())
            with torch.no_grad():
                next(embedder.parameters()).mul_(1 + (step + 1) / 10)
            if step + 1 == steps.stop:
                break
        return batches

    whole = run(tmp_path / "whole", range(12))
    first = run(tmp_path / "parts", range(7))
    assert whole[:7] == first
    (tmp_path / "parts" / "step-9").mkdir()
    (tmp_path / "parts" / "step-9" / "rows.arrow").write_bytes(b"of weights that are lost")
    made, said = refresher(Embedder.from_pretrained(bert), tmp_path / "parts", [rows, pairs], rules)
    rest = made.batches(range(7, 9), workers=0)
    assert [batch.tokens.ids() for batch in rest] == whole[7:9]
    assert not (tmp_path / "parts" / "step-9").exists()
    assert said == [], "nothing was due"
    (tmp_path / "parts" / "step-3" / "rows.arrow").unlink()
    made, _ = refresher(Embedder.from_pretrained(bert), tmp_path / "parts", [rows, pairs], rules)
    with pytest.raises(ValueError, match=r"step-3/rows.arrow is missing, and the run cannot go on as it began"):
        next(made.batches(range(7, 9), workers=0))


def test_batches_change_from_a_refresh_on_and_no_record_is_lost(bert: Path, rows: Path, tmp_path: Path) -> None:
    made, _ = refresher(Embedder.from_pretrained(bert), tmp_path / "refresh", [rows], RefreshConfig(steps=5, among=3))
    batch_sampler = made.batch_sampler
    before = list(islice(batch_sampler.batches(), 25))
    list(made.batches(range(6), workers=0))
    plans = list(islice(batch_sampler.batches(), 25))
    assert plans[:5] == before[:5]
    assert list(islice(batch_sampler.batches(skip=11), 14)) == plans[11:]
    visits = Counter(visit for indices in plans for visit in zip(indices.rows, indices.row_epochs, strict=True))
    assert set(visits.values()) == {1}
    first_pass = {
        row
        for indices in plans
        for row, row_epoch in zip(indices.rows, indices.row_epochs, strict=True)
        if row_epoch == 0
    }
    assert first_pass == set(range(len(batch_sampler.sources[0].table)))


def test_spans_end_at_multiples_of_the_interval() -> None:
    assert list(spans(range(12), 5)) == [range(5), range(5, 10), range(10, 12)]
    assert list(spans(range(5, 8), 5)) == [range(5, 8)]
    assert list(spans(range(7, 7), 5)) == []


def refresh_as_rank(rank: int, folder: Path) -> None:
    """Shards of 8 texts, so that ranks have different numbers of shards."""
    nestling.models.encoding.WINDOW = nestling.mining.cached_encoder.TEXTS_PER_SHARD = 8
    embedder = Embedder.from_pretrained(folder / "bert")
    paths = [folder / "rows.jsonl", folder / "pairs.jsonl"]
    for equal_forwards in (False, True):
        rules = RefreshConfig(steps=1)
        made, _ = refresher(
            embedder, folder / f"equal_forwards-{equal_forwards}", paths, rules, equal_forwards=equal_forwards
        )
        list(made.batches(range(2), workers=0))


def test_ranks_equal_a_single_process(
    bert: Path, rows: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bert").symlink_to(bert)
    run_ranks(2, refresh_as_rank, tmp_path)
    monkeypatch.setattr(nestling.models.encoding, "WINDOW", 8)
    monkeypatch.setattr(nestling.mining.cached_encoder, "TEXTS_PER_SHARD", 8)
    made, _ = refresher(Embedder.from_pretrained(bert), tmp_path / "alone", [rows, pairs], RefreshConfig(steps=1))
    list(made.batches(range(2), workers=0))
    written = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.arrow")]
    assert len(written) == 3
    for path in written:
        for folder in ("equal_forwards-False", "equal_forwards-True"):
            assert (tmp_path / folder / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
