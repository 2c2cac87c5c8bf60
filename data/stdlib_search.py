"""Python's own standard library as a code-search collection in the BEIR layout.

    python data/stdlib_search.py --output data/stdlib-search

A query is the first paragraph of a docstring, its document the source of that function or class without docstrings:

- Methods are documents of their own. A class's document is its header, its attributes and the signatures of its
  methods, whose bodies are replaced by `...`.
- Definitions inside functions stay in the document of the outer function.
- Documents have no title: names stand in their identifiers only and in the source itself.

Modules, not definitions, are split into train, dev and test by a hash of their names, so that no test module is ever
trained on. Every split searches among all documents. The same Python builds the same files, byte for byte.
"""

import ast
import hashlib
import json
import os
import re
import sysconfig
import tempfile
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nestling.config import parse_config, require, run

# Test suites, applications and bundled third-party code that live beside the library.
TESTS = {"test", "tests", "idle_test"}
NOT_LIBRARY = {"_bundled", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "turtledemo"}
MIN_QUERY_WORDS = 4  # below that ("Constructor.", "Internal function.") a docstring says nothing to search for
SPLITS = ("train", "dev", "test")
TEST_AND_DEV = {6: "test", 14: "test", 7: "dev"}  # by hash of the module; under CPython 3.11 as hard as the whole
REST_OF_LINE = re.compile(rb"[ \t]*(?:#[^\n]*)?\n(?:[ \t]*\n)*|[ \t]*\Z")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Pair:
    """A docstring's first paragraph and the code that it describes."""

    module: str
    name: str  # dotted, within the module; made unique by #2, #3 … where a name is defined again
    query: str
    document: str

    @property
    def identifier(self) -> str:
        return f"{self.module}:{self.name}"


@dataclass(frozen=True)
class StdlibSearchConfig:
    """Build the standard library's code-search collection.

    Args:
        output: Folder to write corpus.jsonl, queries.jsonl and qrels/ into; a folder with this very build is reused.
        library: Folder of modules and packages to read; the running Python's standard library by default.
    """

    output: Path
    library: Path | None = None


def main() -> None:
    config = parse_config(StdlibSearchConfig, __doc__)
    library = config.library or Path(sysconfig.get_path("stdlib"))
    pairs, counts = collect_pairs(library)
    written = write_collection(config.output, collection_files(pairs))
    print(summary(counts, pairs))
    print(f"{'wrote' if written else 'unchanged:'} {config.output}")


def collect_pairs(library: Path) -> tuple[list[Pair], Counter[str]]:
    """The pairs of all modules under `library` that are worth searching, and what became of each definition.

    Raises:
        ValueError: if `library` holds no module with a usable docstring.
    """
    counts: Counter[str] = Counter()
    pairs = []
    for module, path in module_files(library, counts):
        pairs += read_module(module, path, counts)
    pairs = drop_repeated(pairs, counts)
    if not pairs:
        raise ValueError(f"{library}: no functions or classes with docstrings; expected a folder of Python modules")
    counts["kept: pairs"] = len(pairs)
    return pairs, counts


def module_files(library: Path, counts: Counter[str]) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of each module, a package's own modules before its subpackages'."""
    for folder, subfolders, names in os.walk(library):
        packages = [name for name in subfolders if name.isidentifier() and name not in TESTS | NOT_LIBRARY]
        counts["skipped: folders of tests, applications, third-party code and data"] += len(subfolders) - len(packages)
        subfolders[:] = sorted(packages)  # os.walk descends into these only
        for path in sorted(Path(folder, name) for name in names if name.endswith(".py")):
            counts["read: modules"] += 1
            yield ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__"), path


def read_module(module: str, path: Path, counts: Counter[str]) -> list[Pair]:
    """The pairs of one module, in the order of its source."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():  # honours the coding cookie
            warnings.simplefilter("ignore", SyntaxWarning)
            source = file.read()
            tree = ast.parse(source, filename=str(path))
    except (SyntaxError, UnicodeDecodeError):
        counts["skipped: modules that this Python cannot parse"] += 1
        return []
    seen: Counter[str] = Counter()
    pairs = []
    for name, node in definitions(tree):
        seen[name] += 1
        pair = make_pair(module, name if seen[name] == 1 else f"{name}#{seen[name]}", node, source, counts)
        pairs += [pair] if pair else []
    return pairs


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions and classes with their dotted names, at any depth but not inside functions."""
    for node in members(tree):
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")


def members(tree: ast.AST) -> Iterator[Definition]:
    """Definitions directly in a module or class, those under an `if` or `try` included, in the order of the source."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield node
        else:
            yield from members(node)


def make_pair(module: str, name: str, node: Definition, source: str, counts: Counter[str]) -> Pair | None:
    """The pair of one definition, or None, counted, where there is nothing to search for or nothing to find."""
    counts["read: functions and classes"] += 1
    query = first_paragraph(ast.get_docstring(node) or "")
    if not query:
        counts["dropped: no docstring"] += 1
    elif len(query.split()) < MIN_QUERY_WORDS:
        counts[f"dropped: docstring under {MIN_QUERY_WORDS} words"] += 1
    elif all(is_stub(statement) for statement in node.body[1:]):
        counts["dropped: no code beside the docstring"] += 1
    else:
        return Pair(module, name, query, code_without_docstrings(node, source))
    return None


def first_paragraph(docstring: str) -> str:
    """Text up to the first empty line, in one line."""
    return " ".join(re.split(r"\n[ \t]*\n", docstring.strip(), maxsplit=1)[0].split())


def is_stub(statement: ast.stmt) -> bool:
    """Whether a statement only marks code as missing: `pass`, `...` or `raise NotImplementedError`."""
    if isinstance(statement, ast.Raise):
        return any(isinstance(n, ast.Name) and n.id == "NotImplementedError" for n in ast.walk(statement))
    return isinstance(statement, ast.Pass) or ast.unparse(statement) == "..."


def code_without_docstrings(node: Definition, source: str) -> str:
    """Source of a definition, decorators included, without docstrings and indentation; of methods the headers only."""
    text = source.encode()  # columns of the syntax tree count UTF-8 bytes
    starts = [0, *(match.end() for match in re.finditer(rb"\n", text))]
    origin, end = starts[first_line(node) - 1], end_offset(node, starts)
    code = text[origin:end]
    for statements, whole in reversed(list(omissions(node))):  # from the back, so that earlier offsets stay true
        begin = starts[first_line(statements[0]) - 1] + statements[0].col_offset - origin
        code = cut(code, begin, end_offset(statements[-1], starts) - origin, whole)
    indentation = text[origin : origin + node.col_offset].decode()
    return re.sub(f"(?m)^{indentation}", "", code.decode())


def omissions(node: Definition) -> Iterator[tuple[list[ast.stmt], bool]]:
    """Statements to cut from a definition's source, in its order; True where they are all that a header governs."""
    if isinstance(node, ast.ClassDef):
        if ast.get_docstring(node) is not None:
            yield node.body[:1], False
        for child in members(node):
            yield child.body, True
        return
    for inner in sorted((child for child in ast.walk(node) if isinstance(child, Definition)), key=lambda n: n.lineno):
        if ast.get_docstring(inner) is not None:
            yield inner.body[:1], len(inner.body) == 1


def cut(code: bytes, begin: int, end: int, whole: bool) -> bytes:
    """Remove code[begin:end] with its line and the empty lines after it, or put `...` where something must stand."""
    line = code.rfind(b"\n", 0, begin) + 1
    rest = REST_OF_LINE.match(code, end)
    if whole or rest is None or code[line:begin].strip():
        return code[:begin] + b"..." + code[end:]
    return code[:line] + code[rest.end() :]


def first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Definition) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def end_offset(node: ast.stmt, starts: list[int]) -> int:
    assert node.end_lineno is not None and node.end_col_offset is not None  # ast.parse always sets them
    return starts[node.end_lineno - 1] + node.end_col_offset


def drop_repeated(pairs: list[Pair], counts: Counter[str]) -> list[Pair]:
    """Drop queries that several definitions share, since they name none of them, and repeated documents."""
    shared = Counter(pair.query.casefold() for pair in pairs)
    documents: set[str] = set()
    kept = []
    for pair in pairs:
        if shared[pair.query.casefold()] > 1:
            counts["dropped: docstring shared with other definitions"] += 1
        elif pair.document in documents:
            counts["dropped: same code as another definition"] += 1
        else:
            documents.add(pair.document)
            kept.append(pair)
    return kept


def split_of(module: str) -> str:
    """The split of a module, by a hash of its name: about 13 of 16 modules train, 1 is dev and 2 are test."""
    return TEST_AND_DEV.get(hashlib.sha256(module.encode()).digest()[0] % 16, "train")


def collection_files(pairs: list[Pair]) -> dict[str, str]:
    """Contents of the BEIR folder's files by their paths within it."""
    files = {
        "corpus.jsonl": json_lines({"_id": f"code:{p.identifier}", "title": "", "text": p.document} for p in pairs),
        "queries.jsonl": json_lines(query_row(pair) for pair in pairs),
    }
    for split in SPLITS:
        rows = [f"docstring:{p.identifier}\tcode:{p.identifier}\t1" for p in pairs if split_of(p.module) == split]
        files[f"qrels/{split}.tsv"] = "\n".join(["query-id\tcorpus-id\tscore", *rows, ""])
    return files


def query_row(pair: Pair) -> dict[str, object]:
    """A row of queries.jsonl; queries of one module are alike, and tests of significance go by modules."""
    return {"_id": f"docstring:{pair.identifier}", "text": pair.query, "metadata": {"group": pair.module}}


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_collection(folder: Path, files: dict[str, str]) -> bool:
    """Write `files` into `folder`, all or nothing; False where it holds exactly them already.

    Raises:
        ValueError: if `folder` exists with anything else in it.
    """
    contents = {name: text.encode() for name, text in files.items()}
    if folder.exists():
        require(folder.is_dir(), f"{folder} is a file; give the name of a folder that does not exist yet")
        present = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        if present.keys() == contents.keys() and all(path.read_bytes() == contents[n] for n, path in present.items()):
            return False
        require(not present, f"{folder} holds other files than this build would write; remove it or give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        built = Path(aside) / "collection"
        for name, content in contents.items():
            path = built / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        os.replace(built, folder)  # an empty folder is replaced too
    return True


def summary(counts: Counter[str], pairs: list[Pair]) -> str:
    """What was read, dropped and kept, a line each."""
    lines = [f"{count:7,}  {what}" for what, count in counts.items()]
    for split in SPLITS:
        chosen = [pair for pair in pairs if split_of(pair.module) == split]
        lines.append(f"{len(chosen):7,}  {split} queries, from {len({pair.module for pair in chosen})} modules")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
