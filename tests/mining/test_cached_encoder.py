"""Embeddings in the cache: when they are encoded again, how a killed run continues, how ranks divide the work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file

import nestling.mining.cached_encoder
import nestling.models.encoding
from nestling.mining.array_cache import ArrayCache
from nestling.mining.cached_encoder import CachedEncoder
from nestling.mining.fingerprints import embedder_fingerprint
from nestling.mining.vectors import Vectors
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats
from nestling.records import text_id
from nestling.records.store import CacheError, default_cache
from tiny import tiny_bert

TEXTS = [f"{word} files number {i}" for i in range(11) for word in ("list", "count")]  # 22


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shorten(8)
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    yield
    shorten(8192)


def shorten(texts: int) -> None:
    nestling.models.encoding.WINDOW = nestling.mining.cached_encoder.TEXTS_PER_SHARD = texts


def encode(
    embedder: Embedder, texts: list[str] = TEXTS, prefix: str = "", max_length: int = 16
) -> tuple[Vectors, EncodingStats]:
    identities = np.array([text_id(text) for text in texts])
    fingerprint = embedder_fingerprint(embedder)
    encoder = CachedEncoder(embedder, fingerprint=fingerprint, prefix=prefix, max_length=max_length)
    return encoder.encode(texts, identities)


@pytest.fixture
def embedder(bert: Path) -> Embedder:
    return Embedder.from_pretrained(bert)


def test_embeddings_are_those_of_the_embedder_and_encoded_once(embedder: Embedder) -> None:
    expected = embedder.encode(TEXTS, kind="document", max_length=16)
    vectors, stats = encode(embedder)
    assert (len(vectors), [len(shard) for shard in vectors.shards], stats.encoded) == (22, [8, 8, 6], 22)
    everything = vectors.span(0, 22, torch.device("cpu"))
    torch.testing.assert_close(everything, expected, atol=5e-4, rtol=0)
    assert torch.equal(vectors.span(5, 18, torch.device("cpu")), everything[5:18])
    positions = np.array([21, 0, 7, 8, 21])
    assert torch.equal(vectors.take(positions), everything[positions])
    again, stats = encode(embedder)
    assert stats.texts == 0
    assert all(np.array_equal(one, other) for one, other in zip(again.shards, vectors.shards, strict=True))


def test_a_changed_text_encodes_only_its_shard(embedder: Embedder) -> None:
    encode(embedder)
    texts = [*TEXTS[:9], "another one", *TEXTS[10:], "one more"]
    vectors, stats = encode(embedder, texts)
    assert stats.texts == 8 + 7
    expected = embedder.encode(texts, kind="document", max_length=16)
    torch.testing.assert_close(vectors.span(0, 23, torch.device("cpu")), expected, atol=5e-4, rtol=0)


def test_prompt_length_and_model_have_separate_shards(embedder: Embedder, bert: Path, tmp_path: Path) -> None:
    encode(embedder)
    assert encode(embedder, prefix="query: ")[1].texts == 22
    assert encode(embedder, max_length=5)[1].texts == 22
    other = shutil.copytree(bert, tmp_path / bert.name)
    assert encode(Embedder.from_pretrained(other))[1].texts == 22  # under its own name
    weights = load_file(other / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][3] += 1e-6
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert encode(Embedder.from_pretrained(other))[1].texts == 22
    assert encode(embedder)[1].texts == 0


def test_a_damaged_or_truncated_shard_is_encoded_again(embedder: Embedder) -> None:
    first, _ = encode(embedder)
    kept = [np.array(shard) for shard in first.shards]
    files = sorted((default_cache() / "arrays").rglob("*.npy"))
    content = bytearray(files[0].read_bytes())
    content[140] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    again, stats = encode(embedder)
    assert stats.texts in (16, 14)
    assert all(np.array_equal(one, other) for one, other in zip(again.shards, kept, strict=True))


class Killed(BaseException):
    pass


def test_a_killed_run_continues_after_the_last_complete_shard(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ArrayCache.write
    written: list[str] = []

    def write_once(self: ArrayCache, key: str, array: np.ndarray) -> None:
        if written:
            raise Killed
        written.append(key)
        write(self, key, array)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayCache, "write", write_once)
        with pytest.raises(Killed):
            encode(embedder)
    assert encode(embedder)[1].texts == 14
    assert [path.name for path in (default_cache() / "arrays").rglob(".building*")] == []


def test_a_full_disk_is_a_cache_error(embedder: Embedder, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "filler").write_bytes(bytes(2 * 2**20 - 3 * 4096))
    monkeypatch.setenv("NESTLING_CACHE", str(small_disk / "cache"))
    with pytest.raises(CacheError, match=r"cannot write the cache folder .*: No space left on device; free space"):
        encode(embedder, [f"{text} {i}" for text in TEXTS for i in range(20)])


def test_embeddings_that_are_not_finite_are_refused(embedder: Embedder) -> None:
    with torch.no_grad():
        next(embedder.parameters())[:] = torch.nan
    with pytest.raises(ValueError, match=r"gave NaN or infinity for 8 of 8 texts; its weights may have diverged"):
        encode(embedder)


def encode_as_rank(rank: int, folder: Path) -> None:
    shorten(8)
    vectors, stats = encode(Embedder.from_pretrained(folder / "bert"))
    (folder / f"{rank}.json").write_text(json.dumps([[shard.tolist() for shard in vectors.shards], stats.texts]))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_a_single_process(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "bert")
    run_ranks(world, encode_as_rank, tmp_path)
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "alone"))
    encode_as_rank(world, tmp_path)
    alone = json.loads((tmp_path / f"{world}.json").read_text())
    assert alone[1] == 22
    assert all(json.loads((tmp_path / f"{rank}.json").read_text()) == alone for rank in range(world))
