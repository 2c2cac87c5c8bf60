"""Reading documents: files a second, peak memory, and what is left out, of a folder or of one that is made up.

python scripts/bench/documents.py --output runs/bench-documents --files 10000
python scripts/bench/documents.py --output runs/bench-documents --folder my-documents --model MODEL_DIR
python scripts/bench/documents.py --output runs/bench-documents --corpus my-beir-folder/corpus.jsonl

Rates are of processor time, which other work on the machine hardly changes. The files are read by a process of its
own, twice: all of them, and again with one in a hundred changed. The made-up
ones are of all kinds, some of them damaged, empty, or copies of others. A corpus is written as a folder of text files,
one for each of its documents.
"""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nestling.config import parse_config, require_new, run
from nestling.console import table

ROOT = Path(__file__).parents[2]
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprstvz"
CHANGED = 100  # one in so many files changes before the second run
KINDS = {
    "txt": 24,
    "md": 20,
    "html": 20,
    "py": 8,
    "csv": 5,
    "jsonl": 5,
    "pdf": 8,
    "docx": 4,
    "gz": 2,
    "zip": 1,
    "bad": 3,
}


@dataclass(frozen=True)
class DocumentsBenchConfig:
    """Settings of scripts/bench/documents.py.

    Args:
        output: Folder to write into; must not exist.
        files: So many files are made up.
        folder: Documents to read instead.
        corpus: A corpus.jsonl to write as text files and read instead.
        model: Directory of a model whose tokens are counted; by default words are.
        seed: Of what is made up.
    """

    output: str
    files: int = 10_000
    folder: str | None = None
    corpus: str | None = None
    model: str | None = None
    seed: int = 0


def main() -> None:
    config = parse_config(DocumentsBenchConfig, __doc__)
    require_new("--output", config.output)
    output = Path(config.output)
    output.mkdir()
    folder = documents(config, output)
    rows = []
    for name in ("all", "again"):
        seconds, busy, mebibytes, said = read(folder, output / "corpus", config.model)
        read_now = int(said.split(" with documents, ")[1].split()[0].replace(",", ""))
        rows.append([name, read_now, seconds, busy, read_now / busy, mebibytes])
        if name == "all":
            print(said, flush=True)
            change(folder, config)
    print(table(["run", "files read", "seconds", "of processor", "files/s of it", "peak MiB"], rows, digits=1))


def documents(config: DocumentsBenchConfig, output: Path) -> Path:
    """The folder to read."""
    folder = output / "documents"
    if config.folder is not None:
        return Path(config.folder)
    if config.corpus is not None:
        folder.mkdir()
        with Path(config.corpus).open(encoding="utf-8") as lines:
            for number, row in enumerate(map(json.loads, lines)):
                (folder / f"{number:06d}.txt").write_text(
                    f"{row.get('title', '')}\n\n{row['text']}\n", encoding="utf-8"
                )
        return folder
    for name, data in made_up(config.files, config.seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read(folder: Path, output: Path, model: str | None) -> tuple[float, float, float, str]:
    """Seconds, those of the processor, peak resident memory in MiB and output of a process that reads the folder."""
    command = [
        sys.executable,
        str(ROOT / "scripts/read_documents.py"),
        "--folder",
        str(folder),
        "--output",
        str(output),
    ]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, *(["--model", model] if model else [])], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"{' '.join(command)} failed")
    busy = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - begun, busy, usage.ru_maxrss / 1024, said


def change(folder: Path, config: DocumentsBenchConfig) -> None:
    """Change one in a hundred of the text files that are this script's own."""
    if config.folder is None:
        for path in sorted(folder.rglob("*.txt"))[::CHANGED]:
            path.write_bytes(path.read_bytes() + b"\nAnd a sentence more.\n")


def made_up(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files of all kinds."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(draw.randint(1, 4))) for _ in range(5000)
    ]
    kept: list[str] = []
    for number in range(count):
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        paragraphs = [sentences(draw, words, draw.randint(20, 120)) for _ in range(draw.randint(1, 12))]
        if kept and draw.random() < 0.02:
            paragraphs = [draw.choice(kept)]
        kept = [*kept[-99:], paragraphs[0]]
        name = f"{number % 97:02d}/{number:06d}"
        yield MAKERS[kind](name, paragraphs, draw)


def sentences(draw: random.Random, words: list[str], count: int) -> str:
    """So many words in sentences of ten."""
    chosen = draw.choices(words, k=count)
    return " ".join(" ".join(chosen[at : at + 10]).capitalize() + "." for at in range(0, count, 10))


Maker = Callable[[str, list[str], random.Random], tuple[str, bytes]]


def text_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    encoding = draw.choice(["utf-8"] * 8 + ["cp1252", "utf-16"])
    text = "\n\n".join([*paragraphs, "Über größere Gebäude fährt später niemand mehr zurück, müde und überrascht."])
    return f"{name}.txt", text.encode(encoding)


def markdown_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    return f"{name}.md", "\n\n".join(
        f"{'#' * draw.randint(1, 3)} {each[:30]}\n\n{each}" for each in paragraphs
    ).encode()


def web_page(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    menu = "".join(f'<li><a href="/{number}">{each[:20]}</a></li>' for number, each in enumerate(paragraphs))
    body = "".join(f"<h2>{each[:30]}</h2><div><p>{each.replace('.', '.</b> <b>')}</p></div>" for each in paragraphs)
    page = (
        f"<html><head><title>{name}</title></head><body><nav><ul>{menu}</ul></nav>{body}<footer>Contact</footer></body>"
    )
    return f"{name}.html", page.encode()


def python_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    functions = (
        f'def function_{number}(value):\n    """{each}"""\n    return value' for number, each in enumerate(paragraphs)
    )
    return f"{name}.py", "\n\n\n".join(functions).encode()


def table_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    return f"{name}.csv", "\n".join(["title,text", *(f'"{each[:20]}","{each}"' for each in paragraphs)]).encode()


def lines_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    return f"{name}.jsonl", "\n".join(json.dumps({"title": each[:20], "text": each}) for each in paragraphs).encode()


def pdf_of(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    pages = [["Journal of words", *(each[at : at + 80] for at in range(0, len(each), 80))] for each in paragraphs]
    return f"{name}.pdf", pdf_file([*pages, []])


def word_of(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    from docx import Document

    document, file = Document(), io.BytesIO()
    for each in paragraphs:
        document.add_heading(each[:30], 2)
        document.add_paragraph(each)
    document.save(file)
    return f"{name}.docx", file.getvalue()


def gzip_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    return f"{name}.txt.gz", gzip.compress("\n\n".join(paragraphs).encode())


def zip_of(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, each in enumerate(paragraphs):
            archive.writestr(f"{number}.md", f"# {each[:30]}\n\n{each}")
    return f"{name}.zip", file.getvalue()


def bad_file(name: str, paragraphs: list[str], draw: random.Random) -> tuple[str, bytes]:
    other, data = draw.choice([pdf_of, word_of, zip_of, gzip_file])(name, paragraphs, draw)
    picture = (f"{name}.png", draw.randbytes(1000)), (f"{name}.txt", b"\0" + draw.randbytes(1000)), (f"{name}.md", b"")
    return draw.choice([(other, data[: len(data) // 2]), *picture])


def pdf_file(pages: list[list[str]]) -> bytes:
    """A PDF file of pages of lines of ASCII; a line that is empty leaves a gap."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for lines in pages:
        shown = "".join(f"({line}) Tj T*\n" if line else "T* T*\n" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 50 750 Td\n{shown}ET" if lines else ""
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
        place = f"/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>/Contents {len(objects)} 0 R"
        objects.append(f"<</Type/Page/Parent 2 0 R{place}>>")
    kids = " ".join(f"{number} 0 R" for number in range(5, len(objects) + 1, 2))
    objects[1] = f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>"
    body, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj{each}endobj\n".encode()
    listed = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{listed}trailer<</Size {len(offsets) + 1}/Root 1 0 R>>\n"
    return body + f"{end}startxref\n{len(body)}\n%%EOF".encode()


MAKERS: dict[str, Maker] = {
    "txt": text_file,
    "md": markdown_file,
    "html": web_page,
    "py": python_file,
    "csv": table_file,
    "jsonl": lines_file,
    "pdf": pdf_of,
    "docx": word_of,
    "gz": gzip_file,
    "zip": zip_of,
    "bad": bad_file,
}


if __name__ == "__main__":
    run(main)
