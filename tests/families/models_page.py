"""docs/models.md, from the table of architectures that the tests of this folder hold to be true.

python tests/families/models_page.py     tries every architecture, and writes the page if all is as the table says
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from architectures import EMBEDDERS, Architecture

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADERS = ("architecture", "published models", "chunks", "all weights", "LoRA")
LIBRARIES = ("transformers", "sentence-transformers", "peft", "torch")
INTRODUCTION = """\
# Models

Embedders of these architectures of transformers were tried with tiny random models ({versions}). Each text gets the
embedding that transformers gives it alone, to 1e-5, whether it runs alone, padded, packed or in another order, and that
of sentence-transformers. The gradient of a step is that of transformers. After two steps the exported directory passes
its gates and gives the same in sentence-transformers. "Packed" means that `attn_implementation: varlen` reads texts
without padding; otherwise they are padded. What is refused is refused in one line when the model is loaded.

The table is made by `tests/families/models_page.py`, and a new architecture is a line in
`tests/families/architectures.py`. An architecture that is not listed has not been tried; what a model does with texts
beside each other is tried whenever one is loaded.
"""
REFUSED = """
## Refused

| architecture | why |
|---|---|
"""


def page() -> str:
    """The whole page, for the installed versions."""
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in LIBRARIES)
    usable = [each for each in EMBEDDERS if each.refused is None]
    rows = [HEADERS, ("---",) * len(HEADERS), *map(row, usable)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    refused = [f"| {each.name} | {each.refused} |\n" for each in EMBEDDERS if each.refused is not None]
    return f"{INTRODUCTION.format(versions=versions)}\n{table}\n{REFUSED}{''.join(refused)}"


def row(architecture: Architecture) -> tuple[str, ...]:
    lora = f"refused: {architecture.no_lora}" if architecture.no_lora else "yes"
    chunks = "packed or padded" if architecture.packs else "padded"
    return architecture.name, architecture.models, chunks, "yes", lora


def without_versions(text: str) -> str:
    """The page for any versions."""
    return re.sub(r"\(transformers [^)]*\)", "", text)


if __name__ == "__main__":
    here = Path(__file__).parent
    compared = str(here / "test_models_page.py")  # of a page that is to change
    failed = pytest.main([str(here), "-q", "-m", "slow or not slow", "--ignore", compared])
    if not failed:
        PAGE.write_text(page(), encoding="utf-8")
    sys.exit(failed)
