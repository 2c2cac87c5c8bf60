"""Safetensors files that are written in slices."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from merging.in_memory import MemoryTensors, family, merged, random_tensors, recipe
from nestling.merging.inputs import Inputs
from nestling.merging.merge import write_merged
from nestling.merging.sources import stored_tensors
from nestling.merging.workers import BLOCK_SIZE
from nestling.models.safetensors_writer import SafetensorsWriter, Spec, split_into_shards
from nestling.models.weights import StoredWeights

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(BITS[tensor.dtype.itemsize])


def test_slices_in_any_order_make_a_file_that_safetensors_loads(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.randn(5).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "wide": torch.randn(3, 7, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "ids": torch.arange(9),
    }
    specs = {name: Spec(tuple(each.shape), each.dtype) for name, each in tensors.items()}
    with SafetensorsWriter(tmp_path, specs, 10**9) as files:
        for name, tensor in reversed(tensors.items()):
            flat = tensor.view(-1)
            for start in reversed(range(0, len(flat), 2)):
                files.write(name, start, flat[start : start + 2])
    actual = load_file(tmp_path / "model.safetensors")
    assert actual.keys() == tensors.keys()
    assert all(torch.equal(bits(actual[name]), bits(tensor)) for name, tensor in tensors.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    stored = stored_tensors([tmp_path / "model.safetensors"], "it")
    assert all(at % stored.specs[name].dtype.itemsize == 0 for name, (_, at) in stored.locations.items())


def test_shards_and_their_index(tmp_path: Path) -> None:
    base, models = family(2)
    how = recipe("slerp", 0.3, 0.7)
    for name, size in (("one", 10**9), ("several", 300_000)):
        (tmp_path / name).mkdir()
        write_merged(Inputs.of(models), how, tmp_path / name, shard_bytes=size, threads=1)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    files = sorted(path.name for path in (tmp_path / "several").iterdir())
    assert files == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)] + ["model.safetensors.index.json"]
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == list(base.tensors)
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in base.tensors.values())}
    one, several = StoredWeights(str(tmp_path / "one")), StoredWeights(str(tmp_path / "several"))
    assert one.keys() == several.keys() == base.tensors.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_a_tensor_that_is_larger_than_a_shard_has_one_of_its_own() -> None:
    specs = {name: Spec((size,), torch.int8) for name, size in (("a", 3), ("b", 9), ("c", 2), ("d", 3), ("e", 1))}
    assert list(split_into_shards(specs, 5)) == [["a"], ["b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_computed_exactly_and_rounded_once(tmp_path: Path, dtype: torch.dtype | None) -> None:
    base, models = family(3, dtype=torch.bfloat16)
    models[1].tensors["norm.weight"] = models[1].tensors["norm.weight"].float()  # the reference's dtypes count
    inputs = Inputs.of(models, base)
    how = recipe("task_arithmetic", 0.3, 0.2, 0.4)
    write_merged(inputs, how, tmp_path, dtype=dtype, threads=2)
    actual = StoredWeights(str(tmp_path))
    for name, exact in merged(inputs, how).items():
        expected = base.tensors[name].double()
        for weight, model in zip((0.3, 0.2, 0.4), models, strict=True):
            expected = expected + weight * (model.tensors[name].double() - base.tensors[name].double())
        torch.testing.assert_close(exact, expected, rtol=1e-13, atol=1e-15)
        assert actual[name].dtype == (dtype or torch.bfloat16)
        assert torch.equal(actual[name], exact.to(dtype or torch.bfloat16)), name


def test_rounding_once_is_closer_than_rounding_twice(tmp_path: Path) -> None:
    """Inputs of higher precision than the output: rounding them before the merge gives a larger error."""
    models = [MemoryTensors(str(seed), random_tensors(seed)) for seed in (1, 2)]
    write_merged(Inputs.of(models), recipe("linear", 1, 1), tmp_path, dtype=torch.bfloat16, threads=1)
    name = "embed.weight"
    one, other = (model.tensors[name] for model in models)
    exact = (one.double() + other.double()) / 2
    once = (StoredWeights(str(tmp_path))[name].double() - exact).abs()
    twice = (((one.bfloat16() + other.bfloat16()) / 2).double() - exact).abs()
    assert once.max() <= 2**-7 < twice.max()  # half a unit in the last place of numbers below 4
    assert once.mean() < 0.8 * twice.mean()


def test_integers_are_copied_in_their_own_dtype(tmp_path: Path) -> None:
    ids = torch.randint(0, 2**40, (BLOCK_SIZE + 3,))
    models = [
        MemoryTensors(str(seed), {**random_tensors(seed), "ids": ids, "on": torch.tensor([True])}) for seed in (1, 2)
    ]
    report = write_merged(Inputs.of(models), recipe("linear", 1, 1), tmp_path, dtype=torch.bfloat16, threads=1)
    actual = load_file(tmp_path / "model.safetensors")
    assert torch.equal(actual["ids"], ids) and actual["on"].tolist() == [True]
    assert (report.tensors, report.copied) == (5, 2)


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    models = [MemoryTensors(str(i), {"a": torch.tensor([1.0, 70_000.0])}) for i in range(2)]
    with pytest.raises(ValueError, match=r"^a has numbers that are too large for float16"):
        write_merged(Inputs.of(models), recipe("linear", 1, 1), tmp_path, dtype=torch.float16)
    write_merged(Inputs.of(models), recipe("linear", 1, 1), tmp_path, dtype=torch.bfloat16)


def test_a_full_disk_is_named(small_disk: Path) -> None:
    models = [MemoryTensors(str(seed), {"a": torch.randn(1024, 1024)}) for seed in (1, 2)]
    with pytest.raises(OSError, match=r"cannot write .*model.safetensors: No space left on device"):
        write_merged(Inputs.of(models), recipe("linear", 1, 1), small_disk, threads=2)
