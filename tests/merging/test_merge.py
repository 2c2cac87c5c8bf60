"""Whole merges: the same bits for any slices and threads, their reports, their memory."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from merging.in_memory import MemoryTensors, equal_recipe, family, merged, near, random_tensors, recipe, save
from nestling.config.merge_methods import Recipe, Weights, default_method
from nestling.distributed.launch import outside_launch
from nestling.merging.inputs import Inputs
from nestling.merging.merge import GROUP_SIZE, merge_into, write_merged
from nestling.merging.sources import open_weights
from nestling.merging.workers import BLOCK_SIZE, worker_threads
from nestling.models.weights import StoredWeights

METHODS = [
    recipe("linear", 0.2, 0.5, 0.3),
    recipe("karcher", 0.2, 0.5, 0.3),
    recipe("task_arithmetic", 0.2, 0.5, 0.3, scale=0.9),
    recipe("ties", 0.2, 0.5, 0.3, density=0.4),
    recipe("dare_linear", 0.2, 0.5, 0.3, density=0.4, seed=5),
    recipe("dare_ties", 0.2, 0.5, 0.3, density=0.4, seed=5),
    equal_recipe("model_stock", 3),
]


def with_base(how: Recipe) -> bool:
    return how.method not in ("linear", "slerp", "karcher")


@pytest.mark.parametrize("how", METHODS, ids=lambda how: how.method)
def test_neither_slices_nor_threads_nor_groups_change_a_bit(how: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(3, dtype=torch.bfloat16)

    def inputs() -> Inputs:
        return Inputs.of(models, base if with_base(how) else None)

    expected = merged(inputs(), how, threads=1, slice_size=BLOCK_SIZE)
    for threads, blocks, group in ((3, 1, GROUP_SIZE), (2, 3, 1), (1, 16, 100_000)):
        monkeypatch.setattr("nestling.merging.merge.GROUP_SIZE", group)
        actual = merged(inputs(), how, threads=threads, slice_size=blocks * BLOCK_SIZE)
        assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_files_in_and_files_out(tmp_path: Path) -> None:
    models = [MemoryTensors(str(seed), random_tensors(seed, torch.bfloat16)) for seed in (1, 2)]
    opened = [open_weights(save(tmp_path / model.label, model.tensors)) for model in models]
    (tmp_path / "merged").mkdir()
    how = recipe("slerp", 0.4, 0.6)
    write_merged(Inputs.of(opened), how, tmp_path / "merged", threads=2)
    expected, actual = merged(Inputs.of(models), how), StoredWeights(str(tmp_path / "merged"))
    assert all(torch.equal(actual[name], tensor.bfloat16()) for name, tensor in expected.items())


def test_weights_of_layers_by_pattern() -> None:
    _, (one, other) = family(2)
    weights = Weights((0.5, 0.5), ((r"layers\.0\.", (1.0, 0.0)), (r"layers\.|norm", (0.0, 3.0)), ("embed", (3.0, 1.0))))
    actual = merged(Inputs.of([one, other]), Recipe("linear", weights))
    for name in ("layers.0.weight", "layers.0.bias"):  # the first pattern that matches counts
        assert torch.equal(actual[name].float(), one.tensors[name])
    for name in ("layers.1.weight", "norm.weight"):
        assert torch.equal(actual[name].float(), other.tensors[name])
    expected = 0.75 * one.tensors["embed.weight"].double() + 0.25 * other.tensors["embed.weight"].double()
    torch.testing.assert_close(actual["embed.weight"], expected)


def test_wrong_patterns_are_refused() -> None:
    models = [MemoryTensors(str(seed), random_tensors(seed)) for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"weights of 'layer\.0': no tensor has such a name; names are like embed"):
        merged(Inputs.of(models), Recipe("linear", Weights((1, 1), (("layer.0", (1, 0)),))))
    with pytest.raises(ValueError, match=r"not a regular expression"):
        Weights((1, 1), (("layers[", (1, 0)),))
    with pytest.raises(ValueError, match=r"weights of 'a': 1 numbers, expected 2"):
        Weights((1, 1), (("a", (1,)),))
    with pytest.raises(ValueError, match=r"weights of 'a': \[1, -1\], expected a sum above 0"):
        Recipe("linear", Weights((1, 1), (("a", (1, -1)),)))


def test_a_second_merge_of_the_same_inputs_does_not_compute_grams_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, models = family(2)
    inputs = Inputs.of(models)
    first = merged(inputs, recipe("slerp", 1, 1))
    monkeypatch.setattr("nestling.merging.inputs.block_gram", None)
    again = merged(inputs, recipe("slerp", 1, 3))
    assert torch.equal(merged(inputs, recipe("slerp", 1, 1))["embed.weight"], first["embed.weight"])
    monkeypatch.undo()
    assert torch.equal(merged(Inputs.of(models), recipe("slerp", 1, 3))["embed.weight"], again["embed.weight"])


@pytest.mark.parametrize("which", ["one", "other", "base"])
def test_nan_and_infinity_are_refused_with_the_model(which: str) -> None:
    base = MemoryTensors("base", random_tensors(0))
    models = [MemoryTensors(label, near(base.tensors, seed=i)) for i, label in enumerate(("one", "other"), 1)]
    broken = {"one": models[0], "other": models[1], "base": base}[which]
    broken.tensors["layers.1.weight"].view(-1)[77] = torch.inf if which == "other" else torch.nan
    with pytest.raises(ValueError, match=f"^layers.1.weight of {which} holds infinite numbers or none"):
        merged(Inputs.of(models, base), recipe("ties", 1, 1, density=0.5))


class Tied(nn.Module):
    """A module like a causal language model: a prefix, an output layer tied to the embeddings, buffers."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed = nn.Embedding(*words.shape)
        self.lm_head = nn.Linear(*words.shape[::-1], bias=False)
        self.lm_head.weight = self.model.embed.weight
        self.model.register_buffer("ids", torch.zeros(3, dtype=torch.int64))
        self.model.register_buffer("scratch", torch.zeros(3), persistent=False)


def test_a_model_in_memory_gets_the_weights_that_would_be_written(tmp_path: Path) -> None:
    tensors = [{"embed.weight": torch.randn(300, 301), "ids": torch.arange(3), "extra": torch.randn(2)} for _ in "ab"]
    inputs = Inputs.of([MemoryTensors(str(i), each) for i, each in enumerate(tensors)])
    how = recipe("slerp", 0.2, 0.8)
    model = Tied(torch.empty(300, 301)).bfloat16()
    address = model.model.embed.weight.data_ptr()
    report = merge_into(inputs, how, model, threads=2)
    write_merged(inputs, how, tmp_path, dtype=torch.bfloat16)
    assert torch.equal(model.model.embed.weight, StoredWeights(str(tmp_path))["embed.weight"])
    assert model.lm_head.weight.data_ptr() == model.model.embed.weight.data_ptr() == address
    assert model.model.ids.tolist() == [0, 1, 2]
    assert report.tensors == 1
    lacking = Inputs.of([MemoryTensors("it", {"embed.weight": torch.randn(300, 301)})])
    with pytest.raises(ValueError, match=r"the model has 1 tensors that it lacks: \['model.ids'\]"):
        merge_into(lacking, recipe("linear", 1), model)
    smaller = Inputs.of([MemoryTensors("it", {"embed.weight": torch.randn(300, 300), "ids": torch.arange(3)})])
    with pytest.raises(ValueError, match=r"model.embed.weight is \[300, 301\] in the model and \[300, 300\] in it"):
        merge_into(smaller, recipe("linear", 1), model)


def flat(model: MemoryTensors) -> Tensor:
    return torch.cat([each.double().flatten() for each in model.tensors.values()])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double().flatten() @ b.double().flatten() / (a.double().norm() * b.double().norm()))


def test_what_a_merge_reports() -> None:
    base = MemoryTensors("base", random_tensors(0))
    models = [MemoryTensors(label, near(base.tensors, i)) for i, label in enumerate("abc", start=1)]
    for name in ("layers.0.weight", "layers.0.bias"):
        models[1].tensors[name] = models[2].tensors[name] = 1.5 * models[0].tensors[name]
    state: dict[str, Tensor] = {}
    inputs = Inputs.of(models, base)

    class StateOnly(nn.Module):
        def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
            return {name: state.setdefault(name, torch.empty_like(each)) for name, each in base.tensors.items()}

    report = merge_into(inputs, recipe("task_arithmetic", 1, 1, 1), StateOnly(), threads=1)
    assert (report.tensors, report.parameters, report.copied) == (5, sum(t.numel() for t in base.tensors.values()), 0)
    assert report.norms == pytest.approx([float(flat(model).norm()) for model in models], rel=1e-12)
    changes = [flat(model) - flat(base) for model in models]
    assert report.change_norms == pytest.approx([float(each.norm() / flat(base).norm()) for each in changes], rel=1e-12)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for (i, j), cosines, changed in zip(pairs, report.likeness, report.change_likeness, strict=True):
        one, other = models[i].tensors, models[j].tensors
        assert cosines.models == changed.models == ("abc"[i], "abc"[j])
        assert cosines.cosine == pytest.approx(cosine(flat(models[i]), flat(models[j])), rel=1e-12)
        assert changed.cosine == pytest.approx(cosine(changes[i], changes[j]), rel=1e-12)
        each = {name: cosine(one[name], other[name]) for name in one}
        assert cosines.least == pytest.approx(min(each.values()), rel=1e-12)
        assert each[cosines.where] == min(each.values())
        assert cosines.median == pytest.approx(median(each.values()), rel=1e-12)
    assert "\n1 and 2: cosine 0." in "\n".join(report.lines())

    parallel = merge_into(Inputs.of(models), recipe("karcher", 1, 1, 1), StateOnly(), threads=1)
    assert parallel.parallel == 3  # the two, and the single number of the norm
    assert "3 of 5 tensors are near parallel" in parallel.lines()[-1]
    assert parallel.change_norms == parallel.change_likeness == []


def test_two_models_are_merged_by_slerp_and_more_by_karcher() -> None:
    assert [default_method(count) for count in (2, 3, 8)] == ["slerp", "karcher", "karcher"]


def test_a_merge_leaves_torch_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    with worker_threads(3) as workers:
        assert set(workers.map(lambda _: torch.get_num_threads(), range(9))) == {1}
    with worker_threads() as workers:
        assert workers.pool._max_workers == before
    assert torch.get_num_threads() == before


PEAK = """
import json, re, sys
from pathlib import Path
import torch
from nestling.merging.inputs import Inputs
from nestling.merging.merge import write_merged
from nestling.config.merge_methods import Recipe, equal_weights
from nestling.merging.sources import open_weights

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

method, output, base, *models = sys.argv[1:]
torch.ones(2**20).double() @ torch.ones(2**20).double()  # what torch allocates for itself
before, most = anonymous(), 0
import nestling.models.safetensors_writer as writing
write = writing.SafetensorsWriter.write
def watched(*given):
    global most
    write(*given)
    most = max(most, anonymous())
writing.SafetensorsWriter.write = watched
inputs = Inputs.of([open_weights(each) for each in models], open_weights(base) if base else None)
write_merged(inputs, Recipe(method, equal_weights(len(models))), Path(output), threads=2)
print(json.dumps({"before": before, "most": most}))
"""


@pytest.mark.parametrize(
    ("method", "count"),
    [pytest.param("slerp", 2, marks=pytest.mark.slow), ("karcher", 8), pytest.param("ties", 2, marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_the_models(tmp_path: Path, method: str, count: int) -> None:
    """The models have 300 MB together; the largest tensor of each is two thirds of it."""
    rows = 100_000 // count
    shapes = {"embed": (rows, 1024), "a": (rows // 4, 1024), "b": (rows // 4, 1024)}
    for i in range(count):
        torch.manual_seed(i)
        drawn = {name: torch.randint(14_000, 16_000, shape, dtype=torch.int16) for name, shape in shapes.items()}
        save(tmp_path / str(i), {name: each.view(torch.bfloat16) for name, each in drawn.items()})
    (tmp_path / "merged").mkdir()
    models = [str(tmp_path / str(i)) for i in range(count)]
    arguments = [method, str(tmp_path / "merged"), models[0] if method == "ties" else "", *models]
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(
        command, env=outside_launch({"PATH": "", "OMP_NUM_THREADS": "1"}), capture_output=True, check=True
    )
    memory = json.loads(done.stdout)
    assert memory["most"] - memory["before"] < 120e6  # 30, 65 and 80 MB here; most of it of the library for matrices
    assert sum(path.stat().st_size for path in (tmp_path / "merged").iterdir()) > 300e6 / count
