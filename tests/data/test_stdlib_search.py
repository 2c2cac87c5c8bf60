"""The quickstart's collection: what becomes a query, what a document, and which files are written."""

import ast
import email
import json
import sysconfig
import xml
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from data.stdlib_search import (
    collect_pairs,
    collection_files,
    first_paragraph,
    module_files,
    split_of,
    summary,
    write_collection,
)

SHAPES = '''
    """Shapes of the plane, a module docstring that is no query."""
    import math

    class Shape:
        """A closed figure in the plane.

        It has an area.
        """

        sides = None  # not known

        @property
        def area(self):
            """The surface that the figure covers."""
            # überdeckt
            return self.sides ** 2

        def name(self): return "shape"

        class Empty(Exception):
            """Raised for a figure without sides."""
            sides = 0

    @staticmethod
    def circle(radius):
        "Area of a circle\\n   of the given radius."

        def square(x):
            """x times x, what else."""
            return x * x

        return math.pi * square(radius)  # ünïcode

    def perimeter(shape):
        """The length of a figure's border."""
        raise NotImplementedError("perimeter")

    def short():
        """Too short."""
        return 0

    def undocumented():
        return 1
'''
TWINS = '''
    def first():
        """Return the number two, always."""
        return 2

    def second():
        """return the number TWO, always."""
        return 1 + 1

    try:
        def area(self):
            """What a function covers anyway."""
            return 3
    except ImportError:
        def area(self):
            """What it covers in the other case."""
            return 4
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    modules = {
        "shapes.py": SHAPES,
        "pkg/__init__.py": "",
        "pkg/twins.py": TWINS,
        "pkg/copy.py": 'def area(self):\n    """The same code under another docstring."""\n    return 3\n',
        "pkg/broken.py": "def (:\n",
        "test/test_shapes.py": TWINS,
        "site-packages/other.py": TWINS,
        "config-3.11/settings.py": TWINS,
    }
    for name, source in modules.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")
    return tmp_path / "library"


def test_pairs_are_what_the_docstring_of_the_module_says(library: Path) -> None:
    pairs, counts = collect_pairs(library)
    assert {pair.identifier: (pair.query, pair.document) for pair in pairs} == {
        "pkg.copy:area": ("The same code under another docstring.", "def area(self):\n    return 3"),
        "pkg.twins:area#2": ("What it covers in the other case.", "def area(self):\n    return 4"),
        "shapes:Shape": (
            "A closed figure in the plane.",
            "class Shape:\n"
            "    sides = None  # not known\n\n"
            "    @property\n    def area(self):\n        ...\n\n"
            "    def name(self): ...\n\n"
            "    class Empty(Exception):\n        ...",
        ),
        "shapes:Shape.area": (
            "The surface that the figure covers.",
            "@property\ndef area(self):\n    # überdeckt\n    return self.sides ** 2",
        ),
        "shapes:Shape.Empty": ("Raised for a figure without sides.", "class Empty(Exception):\n    sides = 0"),
        "shapes:circle": (
            "Area of a circle of the given radius.",
            "@staticmethod\ndef circle(radius):\n    def square(x):\n        return x * x\n\n"
            "    return math.pi * square(radius)",
        ),
    }
    assert counts == {
        "skipped: folders of tests, applications, third-party code and data": 3,
        "read: modules": 5,
        "skipped: modules that this Python cannot parse": 1,
        "read: functions and classes": 13,
        "dropped: no docstring": 2,
        "dropped: docstring under 4 words": 1,
        "dropped: no code beside the docstring": 1,
        "dropped: docstring shared with other definitions": 2,
        "dropped: same code as another definition": 1,
        "kept: pairs": 6,
    }
    assert "      6  kept: pairs\n" in summary(counts, pairs)


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("One line.", "One line."),
        ("\n   Two\n      lines.\n   \t\n   And more.", "Two lines."),
        ("", ""),
    ],
)
def test_first_paragraph(docstring: str, query: str) -> None:
    assert first_paragraph(docstring) == query


def test_one_line_definitions_keep_what_stands_on_the_line(tmp_path: Path) -> None:
    source = (
        'def f(): "A docstring on the line"; return 1\ndef g():\n    """With another statement after"""; return 2\n'
    )
    (tmp_path / "m.py").write_text(source)
    pairs, _ = collect_pairs(tmp_path)
    assert [pair.document for pair in pairs] == ["def f(): ...; return 1", "def g():\n    ...; return 2"]


def test_files_are_a_beir_folder_whose_splits_share_no_module(library: Path) -> None:
    pairs, _ = collect_pairs(library)
    files = collection_files(pairs)
    assert list(files) == ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"]
    documents = [json.loads(line) for line in files["corpus.jsonl"].splitlines()]
    assert documents[4] == {"_id": "code:pkg.copy:area", "title": "", "text": "def area(self):\n    return 3"}
    queries = [json.loads(line) for line in files["queries.jsonl"].splitlines()]
    row = {"_id": "docstring:pkg.copy:area", "text": "The same code under another docstring."}
    assert queries[4] == {**row, "metadata": {"group": "pkg.copy"}}

    judged = {}
    for split in ("train", "dev", "test"):
        header, *rows = files[f"qrels/{split}.tsv"].splitlines()
        assert header == "query-id\tcorpus-id\tscore"
        judged[split] = [row.split("\t") for row in rows]
        assert all(split_of(document.split(":")[1]) == split for _, document, _ in judged[split])
    assert sorted(row[0] for rows in judged.values() for row in rows) == sorted(query["_id"] for query in queries)


@pytest.mark.parametrize(("module", "split"), [("json.encoder", "train"), ("tarfile", "test"), ("datetime", "dev")])
def test_splits_stay_as_they_are(module: str, split: str) -> None:
    """Published numbers stand on these splits."""
    assert split_of(module) == split


def test_the_same_build_is_reused_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "collection"
    files = {"corpus.jsonl": "{}\n", "qrels/test.tsv": "ü\n"}
    assert write_collection(folder, files)
    assert (folder / "qrels/test.tsv").read_bytes() == b"\xc3\xbc\n"
    assert not write_collection(folder, files)
    with pytest.raises(ValueError, match="holds other files than this build"):
        write_collection(folder, {**files, "corpus.jsonl": "{ }\n"})
    assert (folder / "corpus.jsonl").read_text() == "{}\n"
    assert [path.name for path in folder.parent.iterdir()] == ["collection"]  # nothing is left beside it

    (tmp_path / "empty").mkdir()
    assert write_collection(tmp_path / "empty", files)
    with pytest.raises(ValueError, match="is a file"):
        write_collection(folder / "corpus.jsonl", files)


def test_a_folder_without_docstrings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no functions or classes with docstrings"):
        collect_pairs(tmp_path)


def test_real_modules_give_documents_that_parse() -> None:
    """Three packages with methods, nested functions and strings over several lines; the whole library takes 7 s."""
    for package in (json, email, xml):
        library = Path(package.__file__).parent
        pairs, counts = collect_pairs(library)
        assert len(pairs) == counts["kept: pairs"] > 5
        for pair in pairs:
            assert ast.get_docstring(ast.parse(pair.document).body[0]) is None  # type: ignore[arg-type]
            assert pair.query not in pair.document


def test_the_standard_library_is_where_it_is_looked_for() -> None:
    counts: Counter[str] = Counter()
    modules = [name for name, _ in module_files(Path(sysconfig.get_path("stdlib")), counts)]
    assert {"json", "json.decoder", "asyncio.tasks", "argparse"} <= set(modules)
    assert not any(set(name.split(".")) & {"test", "idlelib", "site-packages"} for name in modules)
    assert len(modules) == len(set(modules)) == counts["read: modules"] > 400
