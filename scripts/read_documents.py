"""Make a corpus.jsonl of a folder of documents: chunks of their texts that tell where they stand.

    python scripts/read_documents.py --folder my-documents --output my-corpus
    python scripts/read_documents.py --folder my-documents --output my-corpus --model BAAI/bge-m3 --max_tokens 512
    python scripts/make_queries.py --data my-corpus/corpus.jsonl --model MODEL_DIR --output pairs.jsonl

Reads text, Markdown, HTML, PDF, Word, CSV, JSON lines and source code, also inside of archives. What is left out is
told, and listed in dropped.jsonl. The same command reads again what has changed, and continues after a kill.
docs/documents.md explains the chunks and their metadata.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import ReadDocumentsConfig, parse_config, require, require_extra, run

if TYPE_CHECKING:
    from nestling.documents.chunks import Chunker
    from nestling.documents.tokens import Tokens

JOURNAL = "documents.journal.jsonl"
LIBRARIES = ("pypdf", "python-docx", "markdown-it-py", "charset-normalizer", "nestling")


def main() -> None:
    config = parse_config(ReadDocumentsConfig, __doc__)
    require_extra(
        "reading documents", "documents", "pypdf", "docx", "markdown_it", "charset_normalizer", "rensa", "regex"
    )
    check(config)

    from nestling.documents.chunks import Chunker
    from nestling.documents.journal import open_journal

    output = Path(config.output)
    output.mkdir(exist_ok=True)
    tokens = open_tokens(config)
    chunker = Chunker(tokens, config.max_tokens, config.overlap)
    with open_journal(output / JOURNAL, settings_of(config, tokens)) as journal:
        if journal.began_anew:
            print("other settings or libraries than before: all files are read again", flush=True)
        read(config, chunker, journal)


def check(config: ReadDocumentsConfig) -> None:
    """Raise ValueError for folders that are not there, or one inside the other."""
    folder, output = Path(config.folder), Path(config.output)
    require(folder.is_dir(), f"--folder {folder}: no such folder")
    require(output.absolute().parent.is_dir(), f"--output {output}: the folder {output.parent} does not exist")
    require(not output.is_file(), f"--output {output} is a file; give a folder")
    foreign = output.is_dir() and any(output.iterdir()) and not (output / JOURNAL).exists()
    require(not foreign, f"--output {output} holds other files; choose another name")
    one, other = folder.resolve(), output.resolve()
    require(
        one not in (other, *other.parents), f"--output {output} is inside --folder, and would be read; choose another"
    )


def open_tokens(config: ReadDocumentsConfig) -> "Tokens":
    """What counts tokens."""
    from nestling.documents.tokens import ModelTokens, Words

    return Words() if config.model is None else ModelTokens(config.model)


def settings_of(config: ReadDocumentsConfig, tokens: "Tokens") -> dict[str, Any]:
    """Everything that the chunks of a file depend on besides its content."""
    from importlib.metadata import version

    sizes = {name: getattr(config, name) for name in ("max_tokens", "overlap", "max_size")}
    return {**sizes, "tokens": tokens.digest, "libraries": {name: version(name) for name in LIBRARIES}}


def read(config: ReadDocumentsConfig, chunker: "Chunker", journal: Any) -> None:
    """Read what has changed, and write the corpus."""
    from tqdm import tqdm

    from nestling.data_checks.near_duplicates import NearDuplicateCriterion
    from nestling.documents.corpus import write_corpus
    from nestling.documents.files import list_folder, read_files
    from nestling.documents.journal import compact
    from nestling.documents.summary import lines

    listing, output = list_folder(Path(config.folder)), Path(config.output)
    with tqdm(total=len(listing.files), unit=" files", disable=None) as bar:
        changed = read_files(listing, journal, chunker, config.max_size << 20, bar.update)
    print(f"{config.folder}: {len(listing.files):,} files with documents, {changed:,} of them read now", flush=True)
    criterion = NearDuplicateCriterion(config.threshold, config.shingle)
    counts = write_corpus(output, listing, journal, criterion, progress=sys.stderr.isatty())
    if sum(entry.end - entry.offset for entry in map(journal.entries.get, listing.files) if entry) < journal.size // 2:
        compact(output / JOURNAL, journal, listing.files)
    print(*lines(counts), sep="\n")
    print(f"\n{output / 'corpus.jsonl'} holds {counts.chunks.total():,} chunks; dropped.jsonl lists what it does not")


if __name__ == "__main__":
    run(main)
