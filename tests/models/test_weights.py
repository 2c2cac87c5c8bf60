"""Weights on disk."""

from pathlib import Path
from typing import Any

import pytest

from nestling.models import weights
from nestling.models.weights import StoredWeights


def test_stored_weights_do_not_ask_the_hub(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new revision of the base there must not be what a trained model is compared with."""
    asked: list[bool] = []
    original = weights.cached_file

    def recorded(*arguments: Any, **named: Any) -> Any:
        asked.append(not named["local_files_only"])
        return original(*arguments, **named)

    monkeypatch.setattr(weights, "cached_file", recorded)
    assert "embed_tokens.weight" in StoredWeights(str(qwen3))
    assert asked
    assert not any(asked)
