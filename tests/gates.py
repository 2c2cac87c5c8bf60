"""The gates of exports without their processes, which cost seconds to start; other tests run the real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestling.export.embedder_gate import check_directory
from nestling.export.gate import require_passed
from nestling.export.reranker_gate import check_reranker


def run_in_process(patch: pytest.MonkeyPatch) -> None:
    """Let exports of embedders and rerankers verify their folders here."""
    patch.setattr("nestling.export.embedder.verify_export", verifying(check_directory))
    patch.setattr("nestling.export.reranker.verify_reranker", verifying(check_reranker))


def verifying(check: Callable[[Path, Any], Any]) -> Callable[[Path, Any], Any]:
    def verify(directory: Path, expectation: Any) -> Any:
        report = check(directory, expectation)
        require_passed(report, directory)
        return report

    return verify
