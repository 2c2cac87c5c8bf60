"""Reading safetensors files in slices, and matching of tensor names."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merging.in_memory import MemoryTensors, random_tensors, save
from nestling.merging.inputs import Inputs
from nestling.merging.names import align, with_names_of
from nestling.merging.sources import open_weights, stored_tensors
from nestling.models.safetensors_writer import DTYPES
from nestling.models.weights import write_weights


def test_slices_of_every_dtype_are_what_the_file_holds(tmp_path: Path) -> None:
    tensors = {name: (100 * torch.randn(37, 41)).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    source = stored_tensors([tmp_path / "model.safetensors"], "it")
    assert source.specs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        spec, flat = source.specs[name], tensor.view(-1)
        assert (spec.shape, spec.dtype, spec.numel) == (tuple(tensor.shape), tensor.dtype, tensor.numel())
        for start, stop in ((0, len(flat)), (5, 5), (1, 2), (700, 1500)):
            stop = min(stop, len(flat))
            assert torch.equal(source.read(name, start, stop), flat[start:stop]), name


def test_slices_far_inside_a_file(tmp_path: Path) -> None:
    tensors = random_tensors(0, torch.bfloat16)
    source = open_weights(save(tmp_path, tensors))
    for name, tensor in tensors.items():
        for start in range(0, tensor.numel(), 9999):
            values = source.read(name, start, min(start + 9999, tensor.numel()))
            assert torch.equal(values, tensor.view(-1)[start : start + 9999])


def test_a_model_in_shards(tmp_path: Path) -> None:
    tensors = random_tensors(0)
    write_weights(tensors, tmp_path, shard_bytes=300_000)
    (tmp_path / "config.json").write_text("{}")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = open_weights(str(tmp_path))
    assert {name: spec.shape for name, spec in source.specs.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert all(torch.equal(source.read(n, 0, t.numel()), t.view(-1)) for n, t in tensors.items())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights"):
        open_weights(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"pickled \(pytorch_model.bin\).*writes safetensors"):
        open_weights(str(tmp_path / "pickled"))


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (
        b"",
        b"abc",
        b"version https://git-lfs.github.com/spec/v1\noid",
        struct.pack("<Q", 9) + b"[1, 2, 3]",
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"model.safetensors: not a whole safetensors file .*; fetch the model again"
        ):
            stored_tensors([path], "it")
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"not a whole safetensors file .*incomplete metadata"):
        stored_tensors([path], "it")


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a is F8_E4M3.*merge models before they are quantised"):
        stored_tensors([tmp_path / "model.safetensors"], "it")


def test_a_tied_output_layer_is_left_out(tmp_path: Path) -> None:
    words = torch.randn(50, 8)
    tensors = {"model.embed_tokens.weight": words, "lm_head.weight": words.clone(), "model.norm.weight": torch.ones(8)}
    tied = {"tie_word_embeddings": True}
    once = ["model.embed_tokens.weight", "model.norm.weight"]
    assert sorted(open_weights(save(tmp_path / "tied", tensors, tied)).specs) == once
    without = {name: tensors[name] for name in once}
    assert sorted(open_weights(save(tmp_path / "once", without, tied)).specs) == once
    assert len(open_weights(save(tmp_path / "untied", tensors, {"tie_word_embeddings": False})).specs) == 3
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"ties word embeddings, but lm_head.weight differs from model.embed_tokens"):
        open_weights(save(tmp_path / "neither", tensors, tied))


def test_names_with_and_without_the_prefix() -> None:
    bare = ["embed_tokens.weight", "layers.0.mlp.weight", "norm.weight"]
    prefixed = [f"model.{name}" for name in bare]
    assert align(bare, prefixed) == dict(zip(bare, prefixed, strict=True))
    assert align(prefixed, bare) == dict(zip(prefixed, bare, strict=True))
    assert align(bare, bare) == {name: name for name in bare}
    head = "lm_head.weight"
    assert align([*bare, head], [*prefixed, head]) == {**dict(zip(bare, prefixed, strict=True)), head: head}
    # A first part that all names have is a prefix only if the reference lacks it.
    encoder = ["encoder.layer.0.weight", "encoder.layer.1.weight"]
    assert align(encoder, [f"bert.{name}" for name in encoder]) == {name: f"bert.{name}" for name in encoder}
    # Two names are never mapped to the same one.
    assert align(["a.x", "x"], ["x"]) == {"x": "x"}


def test_models_under_the_names_of_the_first_or_the_base() -> None:
    tensors = random_tensors(0)
    prefixed = MemoryTensors("prefixed", {f"model.{name}": tensor for name, tensor in tensors.items()})
    bare = MemoryTensors("bare", tensors)
    assert list(Inputs.of([bare, prefixed]).specs) == list(tensors)
    inputs = Inputs.of([bare], prefixed)
    assert list(inputs.specs) == list(prefixed.tensors)
    values = inputs.models[0].read("model.layers.0.bias", 3, 9)
    assert torch.equal(values, tensors["layers.0.bias"][3:9])


def test_mismatches_name_the_tensor_and_both_models() -> None:
    whole = MemoryTensors("whole", random_tensors(0))
    lacks = MemoryTensors("lacks", {name: t for name, t in whole.tensors.items() if name != "layers.0.bias"})
    with pytest.raises(ValueError, match=r"^whole has 1 tensors that lacks lacks: layers.0.bias$"):
        with_names_of(lacks, whole)
    with pytest.raises(ValueError, match=r"^whole has 1 tensors that lacks lacks: layers.0.bias$"):
        Inputs.of([lacks, whole])
    wider = MemoryTensors("wider", {**whole.tensors, "embed.weight": torch.zeros(701, 301)})
    with pytest.raises(ValueError, match=r"^embed.weight is \[700, 301\] in whole and \[701, 301\] in wider$"):
        Inputs.of([whole, whole, wider])
    numbers = MemoryTensors("numbers", {**whole.tensors, "norm.weight": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"^norm.weight is torch.float32 in whole and torch.int64 in numbers$"):
        Inputs.of([numbers], whole)
    with pytest.raises(ValueError, match=r"no models"):
        Inputs.of([])


def test_tensors_of_integers_must_be_the_same() -> None:
    models = [MemoryTensors(str(i), {"weight": torch.randn(3), "ids": torch.arange(70_000)}) for i in range(2)]
    assert Inputs.of(models).integer_tensors == ["ids"]
    models[1].tensors["ids"][-1] = 0
    with pytest.raises(ValueError, match=r"^ids of 0 and 1 differs; it holds torch.int64"):
        Inputs.of(models)


def test_integers_that_one_model_lacks_are_left_out() -> None:
    """MiniLM's base has position_ids from an old release, which exports do not have."""
    counted = MemoryTensors("counted", {"weight": torch.randn(3), "ids": torch.arange(5)})
    plain = MemoryTensors("plain", {"weight": torch.randn(3)})
    for inputs in (Inputs.of([plain], counted), Inputs.of([counted], plain), Inputs.of([counted, plain])):
        assert list(inputs.specs) == ["weight"]
        assert all(list(model.specs) == ["weight"] for model in inputs.models)


def test_heads_of_a_base_that_no_model_has_are_left_out() -> None:
    """Embedders made of BERT or of Qwen3's larger base models are without the output layer of their base."""
    embedder = MemoryTensors("embedder", {"embed.weight": torch.randn(3), "layers.0.bias": torch.randn(2)})
    heads = {"cls.predictions.bias": torch.randn(3), "lm_head.weight": torch.randn(3)}
    base = MemoryTensors("base", {**{f"bert.{name}": t for name, t in embedder.tensors.items()}, **heads})
    assert list(Inputs.of([embedder, embedder], base).specs) == ["bert.embed.weight", "bert.layers.0.bias"]
    language_model = MemoryTensors("language model", {**base.tensors})
    assert list(Inputs.of([language_model], base).specs) == list(base.tensors)
    with pytest.raises(ValueError, match=r"^base has 2 tensors that embedder lacks: cls.predictions.bias, lm_head"):
        Inputs.of([embedder, language_model], base)
    with pytest.raises(ValueError, match=r"^language model has 2 tensors that embedder lacks: cls.pred"):
        Inputs.of([language_model, embedder])
    deeper = MemoryTensors("deeper", {**base.tensors, "bert.layers.1.bias": torch.randn(2)})
    with pytest.raises(ValueError, match=r"^deeper has 1 tensors that embedder lacks: bert.layers.1.bias$"):
        Inputs.of([embedder], deeper)


def test_a_pooler_that_one_model_lacks_is_left_out() -> None:
    """Some files of encoders have none, and an export has the one that transformers made at random."""
    plain = MemoryTensors("plain", {"weight": torch.randn(3)})
    pooled = MemoryTensors("pooled", {**plain.tensors, "pooler.dense.weight": torch.randn(3)})
    for inputs in (Inputs.of([plain], pooled), Inputs.of([pooled], plain), Inputs.of([pooled, plain])):
        assert list(inputs.specs) == ["weight"]
    assert list(Inputs.of([pooled, pooled]).specs) == ["weight", "pooler.dense.weight"]
    classifier = MemoryTensors("classifier", {"bert.weight": torch.randn(3), "bert.pooler.dense.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"^classifier has 1 tensors that plain lacks: bert.pooler.dense.weight$"):
        Inputs.of([classifier, plain])


def test_header_with_metadata_and_any_order(tmp_path: Path) -> None:
    header = {
        "late": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        "__metadata__": {"format": "pt"},
        "early": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes([7, 8]) + struct.pack("<2f", 1.5, -2.5)
    (tmp_path / "model.safetensors").write_bytes(content)  # floats at an odd offset
    source = stored_tensors([tmp_path / "model.safetensors"], "it")
    assert source.read("late", 0, 2).tolist() == [1.5, -2.5]
    assert source.read("early", 1, 2).tolist() == [8]
