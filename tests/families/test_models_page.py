"""docs/models.md says what the table of architectures says."""

from architectures import EMBEDDERS, SAMPLE
from models_page import PAGE, page, without_versions


def test_the_page_is_that_of_the_table() -> None:
    assert without_versions(PAGE.read_text(encoding="utf-8")) == without_versions(page()), "run models_page.py"


def test_there_are_many_architectures_each_with_a_name_of_its_own() -> None:
    names = [each.name for each in EMBEDDERS]
    assert len(set(names)) == len(names) >= 40
    assert set(SAMPLE) <= set(names) and len(SAMPLE) == 10
