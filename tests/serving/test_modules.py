"""Servers that leave out the modules behind the pooling are told from others."""

from pathlib import Path

import numpy as np
import pytest

from nestling.retrieval.metrics import Floats
from nestling.serving.embedder_findings import encoding_findings, width_findings
from nestling.serving.embedder_reference import EmbedderReference, EncodingVariant, cosine_similarities
from tiny_modules import dense, flags, tiny_embedding_gemma, tiny_headed_bert

TEXTS = ["find all files by size", "short", "def f(x):\n    return x"]


def without_head(reference: EmbedderReference) -> Floats:
    states = [reference.states(reference.tokens(text)) for text in TEXTS]
    return np.stack([reference.pool(each, EncodingVariant(pooling="mean", head=False)) for each in states])


def test_a_server_without_the_modules(tmp_path: Path) -> None:
    reference = EmbedderReference.load(str(tiny_embedding_gemma(tmp_path / "as-wide")))
    served = without_head(reference)
    assert width_findings(reference, served) == []
    (finding,) = encoding_findings(reference, TEXTS, served, 0.999)
    assert finding.aspect == "modules"
    assert "before the modules behind the pooling (Dense, say), which the server leaves out" in finding.what
    expected = reference.expected_embeddings(TEXTS)
    assert encoding_findings(reference, TEXTS, expected, 0.999) == []
    ours = reference.embedder.encode(TEXTS, kind="document", max_length=64).numpy()
    prompted = reference.expected_embeddings([reference.embedder.prompts.document + text for text in TEXTS])
    assert cosine_similarities(ours, prompted).min() > 0.999999


def test_the_width_tells_of_missing_modules(tmp_path: Path) -> None:
    reference = EmbedderReference.load(str(tiny_headed_bert(tmp_path, [dense(48, 32)])))
    (finding,) = width_findings(reference, without_head(reference))
    assert "have 48 numbers, as they are before the modules" in finding.what
    assert width_findings(reference, reference.expected_embeddings(TEXTS)) == []
    (finding,) = width_findings(reference, np.zeros((3, 20)))
    assert finding.what == "embeddings have 20 numbers, the directory's have 32"


def test_no_server_leaves_out_prompts(tmp_path: Path) -> None:
    folder = tiny_headed_bert(tmp_path, [("Normalize", {})], flags("mean_tokens", include_prompt=False))
    with pytest.raises(ValueError, match="no request to a server says where that ends"):
        EmbedderReference.load(str(folder))
