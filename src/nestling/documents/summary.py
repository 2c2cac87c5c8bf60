"""What became of a folder, as tables."""

from collections import Counter
from collections.abc import Iterator

from nestling.console import table
from nestling.documents.corpus import Counts


def lines(counts: Counts) -> Iterator[str]:
    """Lines to print: documents by kind, encodings, near duplicates, and what was dropped and why."""
    kinds = [
        [kind, f"{number:,}", f"{counts.chunks[kind]:,}", f"{counts.tokens[kind]:,}"]
        for kind, number in counts.documents.most_common()
    ]
    of_all = [f"{each.total():,}" for each in (counts.documents, counts.chunks, counts.tokens)]
    yield table(["kind", "documents", "chunks", "tokens"], [*kinds, ["all", *of_all]])
    encodings = ", ".join(f"{name} {number:,}" for name, number in counts.encodings.most_common())
    yield f"\nencodings of texts: {encodings or 'none'}"
    yield f"near duplicates: {counts.grouped:,} chunks in {counts.groups:,} groups"
    if counts.dropped:
        yield "\n" + table(["dropped", "number", "files", "the first"], list(_dropped(counts)))


def _dropped(counts: Counts) -> Iterator[list[object]]:
    numbers, files, first = Counter[str](), Counter[str](), dict[str, str]()
    for each in counts.dropped:
        numbers[each.reason] += each.count
        files[each.reason] += 1
        first.setdefault(each.reason, f"{each.path}: {each.detail}" if each.detail else each.path)
    for reason, number in numbers.most_common():
        yield [reason, f"{number:,}", f"{files[reason]:,}", first[reason][:80]]
