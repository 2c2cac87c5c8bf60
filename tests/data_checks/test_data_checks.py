"""nestling.data_checks against brute force over small random data, and known properties of the real sets."""

import json
import random
import re
import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from nestling.config.cleaning_rules import DEFAULT_RULES
from nestling.data_checks import labels
from nestling.data_checks.checks import Checks, run_checks
from nestling.data_checks.cleaning import clean, evaluation_rows, write_copy
from nestling.data_checks.findings import Finding, find_problems
from nestling.data_checks.language import SCRIPTS, languages, main_scripts
from nestling.data_checks.lengths import Truncation, length_distribution, measure, truncations
from nestling.data_checks.near_duplicates import (
    COMPARED_PER_BUCKET,
    MISS_PROBABILITY,
    PERMUTATIONS,
    NearDuplicateCriterion,
    NearDuplicatePairs,
    choose_bands,
    later_duplicates,
    minhash_texts,
    near_duplicates_between,
    near_duplicates_within,
)
from nestling.data_checks.normalise import jaccard, normalise, shingles
from nestling.data_checks.overlap import evaluation_queries, find_overlap
from nestling.data_checks.rows import SourceRows, open_rows
from nestling.data_checks.statistics import statistics
from nestling.data_checks.tokens import TokenCounter
from nestling.models.embedder import Embedder
from nestling.records import Record, RetrievalSet, load_records, load_retrieval_set
from nestling.records.selection import REPEATED_ROW
from sets import WORDS, write_beir

NEAR = NearDuplicateCriterion(threshold=0.8, shingle=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  How do I\tlist FILES?! ", "how do i list files"),
        ("ＡＢＣ １２", "abc 12"),
        ("ﬁle—naïve", "file naïve"),
        ("nai\u0308ve", "naïve"),
        ("Straße", "strasse"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("C++ > snake_case", "c++ > snake_case"),
        ("a，b。c", "a b c"),
        ("&&", "&&"),
        ("!!  ??", "!! ??"),
        ("\u200b", "\u200b"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_vowel_marks_are_part_of_words() -> None:
    assert normalise("किताब") != normalise("कीताब")
    assert len(shingles(normalise("किताब पढ़ना"), 1)) == 2


def test_shingles() -> None:
    assert shingles("a b c a b", 2) == {"a b", "b c", "c a"}
    assert shingles("a b", 3) == {"a b"}
    assert shingles("a", 1) == {"a"}
    assert shingles("高雄市 bus", 2) == {"高 雄", "雄 市", "市 bus"}
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands * rows <= PERMUTATIONS
    assert (1 - threshold**rows) ** bands < MISS_PROBABILITY or rows == 1
    if rows < PERMUTATIONS:
        assert (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) >= MISS_PROBABILITY


def varied(count: int, seed: int) -> list[str]:
    """Random texts, two thirds of which differ from an earlier one in one word or punctuation mark."""
    rng = random.Random(seed)
    vocabulary = [f"{word}{i}" for word in WORDS for i in range(20)]
    texts: list[str] = []
    for i in range(count):
        words = rng.choice(texts).split() if texts and i % 3 else rng.choices(vocabulary, k=rng.randint(1, 30))
        if i % 3 == 1:
            words[rng.randrange(len(words))] = rng.choice(vocabulary)
        elif i % 3 == 2:
            words = [word.upper() for word in words] + ["!"]
        texts.append(" ".join(words))
    return list(dict.fromkeys(texts))


def naive_similarity(first: str, second: str, size: int) -> float:
    """Jaccard of the shingles, by the definition, for texts of ASCII words and exclamation marks."""

    def parts(text: str) -> set[tuple[str, ...]]:
        words = text.lower().replace("!", " ").split()
        return {tuple(words)} if len(words) < size else set(zip(*(words[i:] for i in range(size)), strict=False))

    return len(parts(first) & parts(second)) / len(parts(first) | parts(second))


@pytest.mark.parametrize(
    "criterion", [NEAR, NearDuplicateCriterion(0.5, 1), NearDuplicateCriterion(1.0, 2), NearDuplicateCriterion(0.9, 3)]
)
def test_near_duplicates_equal_those_of_brute_force(criterion: NearDuplicateCriterion) -> None:
    texts = varied(400, seed=1)
    found = near_duplicates_within(texts, minhash_texts(texts, criterion), criterion)
    expected = {
        (a, b): similarity
        for a, b in combinations(range(len(texts)), 2)
        if (similarity := naive_similarity(texts[a], texts[b], criterion.shingle)) >= criterion.threshold
    }
    assert len(expected) > 50
    assert as_dict(found) == expected
    assert found.second.tolist() == sorted(found.second)


def test_near_duplicates_between_two_lists_equal_those_of_brute_force() -> None:
    texts = varied(300, seed=2)
    own, others = texts[::2], texts[1::2]
    found = near_duplicates_between(own, minhash_texts(own, NEAR), others, minhash_texts(others, NEAR), NEAR)
    every = product(range(len(own)), range(len(others)))
    expected = {(a, b): naive_similarity(own[a], others[b], 2) for a, b in every}
    expected = {pair: similarity for pair, similarity in expected.items() if similarity >= NEAR.threshold}
    assert len(expected) > 20
    assert as_dict(found) == expected


def as_dict(pairs: NearDuplicatePairs) -> dict[tuple[int, int], float]:
    return {(int(a), int(b)): float(c) for a, b, c in zip(pairs.first, pairs.second, pairs.similarity, strict=True)}


def test_one_of_many_equal_texts_is_kept() -> None:
    texts = ["the same text" + "!" * i for i in range(5 * COMPARED_PER_BUCKET)] + ["quite another"]
    pairs = near_duplicates_within(texts, minhash_texts(texts, NEAR), NEAR)
    assert len(pairs) < len(texts) * COMPARED_PER_BUCKET
    assert np.flatnonzero(~later_duplicates(pairs, np.ones(len(texts), dtype=bool))).tolist() == [0, len(texts) - 1]


def test_near_duplicates_are_not_transitive() -> None:
    chain = NearDuplicatePairs(np.array([0, 1, 2]), np.array([1, 2, 3]), np.ones(3))
    assert later_duplicates(chain, np.array([True, True, True, True])).tolist() == [False, True, False, True]
    assert later_duplicates(chain, np.array([False, True, True, True])).tolist() == [False, False, True, False]


def test_no_texts() -> None:
    empty = minhash_texts([], NEAR)
    assert len(near_duplicates_within([], empty, NEAR)) == 0
    assert len(near_duplicates_between(["a b"], minhash_texts(["a b"], NEAR), [], empty, NEAR)) == 0


def random_records(count: int, seed: int) -> list[Record]:
    """Rows over few texts, so that all kinds of repetitions and contradictions occur."""
    rng = random.Random(seed)
    texts = [f"text {word}" for word in WORDS[:7]]
    records = []
    for _ in range(count):
        positives = tuple(rng.choice(texts) for _ in range(rng.randint(1, 3)))
        negatives = tuple(rng.choice(texts) for _ in range(rng.randint(0, 3)))
        scores = tuple(float(rng.randint(0, 1)) for _ in positives) if rng.random() < 0.3 else None
        instruction = rng.choice([None, None, "task", "other task"])
        records.append(Record(rng.choice(texts), positives, negatives, scores, instruction=instruction))
    return records


def write_rows(path: Path, records: list[Record]) -> Path:
    rows = [{name: value for name, value in vars(record).items() if value is not None} for record in records]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def checked(rows: SourceRows, *sets: RetrievalSet) -> Checks:
    return run_checks(rows, NEAR, sets, min_characters=3)


@pytest.mark.parametrize("seed", range(4))
def test_label_errors_equal_those_of_brute_force(tmp_path: Path, seed: int) -> None:
    records = random_records(60, seed)
    rows = open_rows(write_rows(tmp_path / f"rows{seed}.jsonl", records), progress=False)
    flat = [(i, j, text) for i, each in enumerate(records) for j, text in enumerate(each.positives + each.negatives)]
    positive = [j < len(records[i].positives) for i, j, _ in flat]
    queries = [(each.query, each.instruction) for each in records]
    known = {(queries[i], text) for (i, _, text), good in zip(flat, positive, strict=True) if good}
    assert rows.is_positive.tolist() == positive
    assert labels.repeated_rows(rows).tolist() == [each in records[:i] for i, each in enumerate(records)]
    assert labels.repeated_queries(rows).tolist() == [query in queries[:i] for i, query in enumerate(queries)]
    lists = [(records[i].positives, j) if good else (records[i].negatives, j - len(records[i].positives))
             for (i, j, _), good in zip(flat, positive, strict=True)]  # fmt: skip
    assert labels.repeated_documents(rows).tolist() == [own[j] in own[:j] for own, j in lists]
    assert labels.documents_equal_to_query(rows).tolist() == [text == records[i].query for i, _, text in flat]
    assert labels.contradictions(rows).tolist() == [
        not good and (queries[i], text) in known for (i, _, text), good in zip(flat, positive, strict=True)
    ]
    rows_per_positive = dict(zip(rows.documents.texts, labels.rows_per_positive(rows).tolist(), strict=True))
    assert rows_per_positive == {text: sum(text in each.positives for each in records) for text in rows_per_positive}
    assert list(rows.records(np.ones(len(rows), dtype=bool), np.ones(len(flat), dtype=bool))) == records


@pytest.mark.parametrize("seed", range(4))
def test_default_rules_drop_what_training_drops(tmp_path: Path, seed: int) -> None:
    source = write_rows(tmp_path / f"rows{seed}.jsonl", random_records(60, seed))
    rows = open_rows(source, progress=False)
    copy, dropped = clean(rows, checked(rows), DEFAULT_RULES)
    write_copy(copy, tmp_path / "copy.jsonl")
    before, after = (load_records(path, progress=False) for path in (source, tmp_path / "copy.jsonl"))
    # Rows may have become equal; nothing else is left for the reader to drop.
    assert list(dict.fromkeys(before[i] for i in range(len(before)))) == [after[i] for i in range(len(after))]
    assert {drop.reason for drop in after.summary.drops} <= {REPEATED_ROW}
    assert sum(each.rows for each in dropped) == len(rows) - int(copy.keep_row.sum())
    assert sum(each.documents for each in dropped) > 0


def test_a_copy_without_rules_equals_the_data(tmp_path: Path) -> None:
    records = random_records(30, seed=9)
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    copy, dropped = clean(rows, checked(rows), [])
    assert all(each.rows == each.documents == 0 for each in dropped)
    assert list(rows.records(copy.keep_row, copy.keep_document)) == records


def test_near_duplicates_within_a_row(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve"
    records = [
        Record("a query", (long, "else"), (f"{long}!", "far from it", "Far, from it."), (1.0, 2.0), (3.0, 4.0, 5.0)),
        Record("b query", (long.upper(),), ("far from it",)),
    ]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    copy, _ = clean(rows, checked(rows), ["near_documents"])
    first, second = rows.records(copy.keep_row, copy.keep_document)
    assert first == Record("a query", (long, "else"), ("far from it",), (1.0, 2.0), (4.0,))
    assert second == records[1]
    assert named(find_problems(rows, checked(rows), examples=5), "near_in_row").count == 2


def named(findings: list[Finding], name: str) -> Finding:
    return next(each for each in findings if each.name == name)


def test_a_long_row_among_many_costs_no_more_than_its_own_pairs(tmp_path: Path) -> None:
    """Of 15,000 short rows and one of 1,000 documents; each document is like the next."""
    lengths = [1] * 15_000 + [1000]
    texts = (f"text {i}" for i in range(sum(lengths)))
    lines = [json.dumps({"query": str(i), "positives": [next(texts) for _ in range(n)]}) for i, n in enumerate(lengths)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = open_rows(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache", progress=False)
    following = np.arange(sum(lengths) - 1)
    pairs = NearDuplicatePairs(following, following + 1, np.ones(len(following)))
    start = time.process_time()
    earlier, after = labels.near_duplicates_in_row(rows, pairs, np.ones(sum(lengths), dtype=bool))
    assert time.process_time() - start < 1
    assert earlier.tolist() == list(range(15_000, 16_000, 2))
    assert after.tolist() == list(range(15_001, 16_000, 2))


def test_rows_that_lose_their_positives_are_counted(tmp_path: Path) -> None:
    records = [Record("same", ("same",), ("other",)), Record("query", ("fine",)), Record("only", (), ("only", "bad"))]
    records.append(Record("nothing", (), ("nothing",)))
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    copy, dropped = clean(rows, checked(rows), ["query_as_document"])
    kept = list(rows.records(copy.keep_row, copy.keep_document))
    assert kept == [Record("query", ("fine",)), Record("only", (), ("bad",))]
    assert [(each.rule, each.rows, each.documents) for each in dropped] == [
        ("query_as_document", 0, 3),
        ("no_positive_left", 1, 0),
        ("no_document_left", 1, 0),
    ]


def test_near_queries_have_the_same_instruction(tmp_path: Path) -> None:
    text = "which of these commands lists all of the files that changed in the last seven days"
    tasks = [None, "bash", "python", None, "bash", "python", None]
    texts = [text, text, text.upper(), f"{text}?", "another one", "another one", f"{text}!"]
    records = [Record(query, (f"p {i}",), instruction=tasks[i]) for i, query in enumerate(texts)]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    copy, _ = clean(rows, checked(rows), ["near_queries"])
    assert copy.keep_row.tolist() == [True, True, True, False, True, True, False]
    assert str(rows.summary).endswith("instructions of rows: 'bash' in 2, 'python' in 2 of 7 rows")


def test_overlap_equals_that_of_brute_force(tmp_path: Path) -> None:
    texts = varied(240, seed=3)
    train, documents, queries = texts[:120], texts[120:180], texts[180:] + texts[:5] + [texts[5].upper()]
    qrels = {f"q{i}": {f"d{i % 60}": 1} for i in range(len(queries))}
    held_out = write_beir(tmp_path / "set", documents, queries, qrels)
    records = [Record(query, (train[-i - 1],)) for i, query in enumerate(train)]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    checks = checked(rows, held_out)
    for kind, others in (("query", queries), ("document", documents[: len(queries)])):
        near_duplicates = {
            text: max(naive_similarity(text, other, 2) for other in others) >= NEAR.threshold for text in train
        }
        assert 5 < sum(near_duplicates.values()) < len(train)
        expected = [near_duplicates[each.query] or near_duplicates[each.positives[0]] for each in records]
        assert evaluation_rows(rows, checks, kind).tolist() == expected  # type: ignore[arg-type]
    overlap = checks.overlaps["query", "query"]
    plain = {normalise(query) for query in queries}
    assert overlap.equal.tolist() == [normalise(text) in plain for text in rows.queries.texts]
    matched = np.flatnonzero(overlap.match >= 0)
    assert overlap.similarity[matched].tolist() == [
        max(naive_similarity(rows.queries.texts[int(i)], other, 2) for other in queries) for i in matched
    ]
    where = checks.evaluation["query"].locations[int(overlap.match[0])]
    assert where == f"set/test: q{queries.index(train[0])}"


def test_conflicting_scores(tmp_path: Path) -> None:
    records = [Record("a", ("b",), score=score) for score in (1.0, 1.0, 2.0)] + [Record("c", ("c",), score=1.0)]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    assert labels.conflicting_scores(rows).tolist() == [False, False, True, False]
    findings = find_problems(rows, checked(rows), examples=5)
    assert named(findings, "other_scores").examples[0].note == "2 and 1"
    assert named(findings, "query_as_document").rule is None
    copy, _ = clean(rows, checked(rows), DEFAULT_RULES)
    assert copy.keep_row.tolist() == [True, False, True, True]


@pytest.mark.parametrize(("name", "train"), [("banking77", 8890), ("nl2bash", 10103)])
def test_splits_of_the_real_sets_do_not_overlap(shared_data: Path, name: str, train: int) -> None:
    """Their READMEs: no train question equals a test question, nor shares 0.9 of its words with one."""
    rows = open_rows(shared_data / name, progress=False)
    assert len(rows) == train
    assert not labels.repeated_rows(rows).any()
    criterion = NearDuplicateCriterion(0.9, 1)
    held_out = evaluation_queries([load_retrieval_set(shared_data / name, "test")], criterion)
    texts = rows.queries.texts
    overlap = find_overlap(texts, minhash_texts(texts, criterion), held_out, criterion)
    assert not overlap.equal.any()
    for i in np.flatnonzero(overlap.match >= 0):  # by our words, which keep `$` and `>`; not by those of the README
        own, other = (
            set(re.findall(r"\w+", text.lower())) for text in (texts[int(i)], held_out.texts[overlap.match[i]])
        )
        assert len(own & other) / len(own | other) < 0.9
    assert len(np.flatnonzero(overlap.match >= 0)) <= 5


def test_positives_of_banking77_belong_to_many_rows(shared_data: Path) -> None:
    rows = open_rows(shared_data / "banking77", progress=False)
    rows_per_positive = labels.rows_per_positive(rows)
    assert (len(rows_per_positive), rows_per_positive.sum()) == (77, 8890)
    assert not labels.contradictions(rows).any()


def test_lengths() -> None:
    texts = ["  two words ", "高雄市", "...", "a" * 9, "привет мир"]
    measures = measure(texts)
    assert measures.characters.tolist() == [9, 3, 3, 9, 10]
    assert measures.words.tolist() == [2, 1, 1, 1, 2]
    assert measures.wordless.tolist() == [False, False, True, False, False]
    assert [SCRIPTS[i] for i in measures.scripts] == ["Latin", "Han", "none", "Latin", "Cyrillic"]
    assert length_distribution(np.arange(1, 101)).quantiles == {
        "5%": 5,
        "25%": 25,
        "50%": 50,
        "75%": 75,
        "95%": 95,
        "99%": 99,
    }


def test_truncation() -> None:
    lengths = np.array([10, 100, 200, 300])
    assert truncations(lengths, 150) == [
        Truncation(64, 3, 0.75, (36 + 136 + 236) / 610),
        Truncation(128, 2, 0.5, (72 + 172) / 610),
        Truncation(150, 2, 0.5, (50 + 150) / 610),
        Truncation(256, 1, 0.25, 44 / 610),
        Truncation(512, 0, 0.0, 0.0),
    ]


def test_scripts_and_languages() -> None:
    texts = ["ok ひらがなだ", "カタカナ x", "한국어", "नमस्ते", "ελληνικά", "12 !"]
    assert [SCRIPTS[i] for i in main_scripts(texts)] == [
        "Hiragana",
        "Katakana",
        "Hangul",
        "Devanagari",
        "Greek",
        "none",
    ]
    found = languages(["Where is the nearest railway station, please?", "Wo ist bitte der nächste Bahnhof?", "xq"])
    assert found == {"en": 1, "de": 1, "und": 1}


@pytest.mark.parametrize("model", ["qwen3", "bert"])
def test_token_counts_equal_those_of_the_embedder(model: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(model))
    texts = ["list files", "高雄市 " * 50, "a much longer text " * 100]
    counter, embedder = TokenCounter.from_pretrained(folder), Embedder.from_pretrained(folder)
    for kind in ("query", "document"):
        read = embedder.text_tokenizer([embedder.prefix(kind) + text for text in texts], 100_000)
        assert counter(texts, kind).tolist() == [len(ids) for ids in read.ids]


@pytest.mark.parametrize("graded", [True, False])
def test_both_texts_of_graded_pairs_are_counted_as_queries(graded: bool, qwen3: Path, tmp_path: Path) -> None:
    """With the query's prompt and limit, as training reads them."""
    records = [Record(f"left {i}", (f"right side {i}",), score=i / 4 if graded else None) for i in range(4)]
    rows = open_rows(write_rows(tmp_path / "rows.jsonl", records), progress=False)
    counter = TokenCounter.from_pretrained(str(qwen3))
    found = statistics(rows, checked(rows), counter, {"query": 33, "document": 44}, sample=10)["document"].tokens
    assert found is not None
    texts = [f"right side {i}" for i in range(4)]
    assert found.distribution == length_distribution(counter(texts, "query" if graded else "document"))
    assert (33 if graded else 44) in [each.limit for each in found.truncations]
