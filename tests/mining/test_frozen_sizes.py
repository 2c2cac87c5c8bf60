"""What a dry run says of a guide and a teacher, and what it has in their places."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nestling.backends.sizes import full_bytes
from nestling.mining.frozen_sizes import frozen_width, stand_ins, weight_bytes
from nestling.models.embedder import Embedder


@pytest.mark.parametrize("fixture", ["bert", "qwen3"])
def test_the_weights_are_those_of_the_loaded_model(fixture: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(fixture)
    loaded = Embedder.from_pretrained(model)
    assert weight_bytes(str(model)) == full_bytes(loaded.parameters())
    assert frozen_width(str(model)) == loaded.dim


def test_stand_ins_have_the_width_of_stored_vectors(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in "ab"))
    np.save(tmp_path / "vectors.npy", np.eye(2, 5, dtype=np.float32))
    found = stand_ins(str(tmp_path), (3, 4))
    assert found is not None
    queries, documents = found
    assert (queries.shape, documents.shape) == ((3, 5), (4, 5))
    torch.testing.assert_close(documents.norm(dim=1), torch.ones(4))
    again = stand_ins(str(tmp_path), (3, 4))
    assert again is not None
    assert torch.equal(again[1], documents), "other ranks have the same"
    assert stand_ins(None, (3, 4)) is None
