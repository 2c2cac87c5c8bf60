"""The page of the architecture is true: its files and wings are there, and what it says to change is enough."""

import json
import re
from pathlib import Path

import pytest
import torch

from documents import ROOT
from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import pack
from nestling.models import pooling
from nestling.models.embedder import Embedder
from nestling.records import dialects, load_records
from nestling.records import fields as row_fields
from nestling.records.record import Record
from nestling.training.cached import ActivationBudget, cached_backward

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "nestling"


def section(title: str) -> str:
    """What stands below a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_files_that_it_names_are_there() -> None:
    named = [path for path in re.findall(r"`([\w/.*]+/[\w*]*\.py)`", PAGE) if not path.startswith("*")]
    assert len(named) > 25
    for path in named:
        assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), path


def test_wings_are_all_folders_in_the_order_that_the_linter_holds() -> None:
    rows = "\n".join(re.findall(r"^\|([^|]*)\|", section("Wings"), re.M))
    listed: list[str] = re.findall(r"`([\w.]+)/?`", rows)
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(listed) == folders | modules
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = project.split("layers = [")[1].split("]")[0].splitlines()
    height = [
        next(number for number, line in enumerate(layers) if re.search(rf"nestling\.{name.split('.')[0]}\b", line))
        for name in listed
    ]
    assert height == sorted(height, reverse=True)


def test_the_glossary_has_twenty_terms() -> None:
    assert len(re.findall(r"^\| (?!term|-)", section("Glossary"), re.M)) >= 20


def test_the_picture_has_a_light_and_a_dark_form() -> None:
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in picture
    for wing in set(re.findall(r'class="wing">([^<]*)<', picture)):
        for part in re.findall(r"\w+(?=/)", wing):
            assert (PACKAGE / part).is_dir(), part


def test_a_new_dialect_is_a_converter_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(row: row_fields.Row) -> Record:
        return Record(query=row_fields.text(row, "ask"), positives=(row_fields.text(row, "reply"),))

    added = dialects.Dialect("asked", ("ask", "reply"), (), convert)
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, added))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ask": "list files", "reply": "ls"}) + "\n", encoding="utf-8")
    table = load_records(file, progress=False)
    assert (table[0].query, tuple(table[0].positives)) == ("list files", ("ls",))


def test_a_new_pooling_is_a_function_and_its_packed_form(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def smallest(hidden: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack([row[:length].amin(dim=0) for row, length in zip(hidden, lengths, strict=True)])

    monkeypatch.setitem(pooling.POOL, "min", smallest)  # type: ignore[misc]
    embedder = Embedder.from_pretrained(bert, dtype=torch.float32)
    embedder.pooling = "min"
    batch = pack([[5, 6, 7], [8, 9]], 64, embedder.text_tokenizer.pad_id)
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    loss = cached_backward(backend, batch, lambda each: each.square().sum(), ActivationBudget(0.0, 1.0))
    assert loss.isfinite()
    assert backend.update(1e-3, 0.0, lambda norm: norm > 0) > 0
