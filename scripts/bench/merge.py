"""Time and memory of a merge of two models beside mergekit's, and of more models by ours.

pip install --no-deps mergekit==0.1.5 immutables
python scripts/bench/merge.py
python scripts/bench/merge.py --hidden 256 --layers 2 --vocabulary 8192 --repeats 1 --inputs 4

The models have the shape of Qwen3-0.6B by default, with random weights in bfloat16, 1.2 GB each; they are merged by
slerp, more than two by karcher. Each merge has a process of its own, and the sides take turns. Seconds are of the merge
after imports, with the files cached and without forcing the result onto the disk. Memory is the peak of what is
anonymous (RssAnon, Linux only), everything that the process has imported included.
"""

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from measure import machine, pick_device

from nestling.config import parse_config, require, run
from nestling.console import table

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

EVERY = 0.003  # seconds between two looks at a process's memory
HEAD = 128  # dimensions of a head


@dataclass(frozen=True)
class MergeBenchConfig:
    """Settings of scripts/bench/merge.py.

    Args:
        hidden: Hidden size of the models.
        layers: Their layers.
        vocabulary: Their words.
        inputs: Models that ours merges at last; 2 for none beside the comparison.
        repeats: Merges of each kind.
        peer: Merge with mergekit too.
        folder: Where the models are written, and removed at the end; a temporary folder of the system by default.
    """

    hidden: int = 1024
    layers: int = 28
    vocabulary: int = 151_936
    inputs: int = 8
    repeats: int = 5
    peer: bool = True
    folder: str | None = None

    def __post_init__(self) -> None:
        require(self.hidden > 0 and self.hidden % HEAD == 0, f"hidden has to be a multiple of {HEAD}")
        require(min(self.layers, self.vocabulary, self.repeats) > 0, "layers, vocabulary, repeats have to be above 0")
        require(self.inputs >= 2, f"inputs is {self.inputs}, expected at least 2")


@dataclass
class Retrieved:
    """Of each merge of a kind."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    imported: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


Merge = Callable[[list[Path], Path], None]


def main() -> None:
    config = parse_config(MergeBenchConfig, __doc__)
    print(machine(pick_device("cpu")), flush=True)
    with tempfile.TemporaryDirectory(prefix="nestling-merge-", dir=config.folder) as name:
        models = [write_model(Path(name) / f"model-{i}", i, config) for i in range(config.inputs)]
        size = models[0].joinpath("model.safetensors").stat().st_size
        print(f"{config.inputs} models of {size / 1e9:.3f} GB", flush=True)
        sides: dict[str, tuple[Callable[[], Merge], int]] = {"mergekit, 2": (theirs, 2)} if config.peer else {}
        sides["ours, 2"] = (partial(ours, "slerp"), 2)
        if config.inputs > 2:
            sides[f"ours, {config.inputs}"] = (partial(ours, "karcher"), config.inputs)
        found = {side: Retrieved() for side in sides}
        for _ in range(config.repeats):
            for side, (make, count) in sides.items():
                with merged(make, models[:count], Path(name) / side, found[side]):
                    pass
        print(table(HEADINGS, [line(side, each, found) for side, each in found.items()], digits=3, markdown=True))
        if config.peer:
            print(agreement(models, Path(name)))


HEADINGS = ["merge", "seconds", "to mergekit", "CPU seconds", "anonymous MB", "imports MB"]


def line(side: str, found: Retrieved, every: dict[str, Retrieved]) -> list[object]:
    """A line of the table."""
    seconds = statistics.median(found.seconds)
    peer = every.get("mergekit, 2")
    return [
        side,
        seconds,
        seconds / statistics.median(peer.seconds) if peer else "",
        statistics.median(found.cpu_seconds),
        round(max(found.megabytes)),
        round(max(found.imported)),
    ]


def write_model(folder: Path, seed: int, config: MergeBenchConfig) -> Path:
    """A Qwen3 with random weights, written in slices."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nestling.merging.workers import SLICE_SIZE
    from nestling.models.safetensors_writer import SafetensorsWriter, Spec

    shape = Qwen3Config(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=2 * config.hidden // HEAD,
        num_key_value_heads=config.hidden // HEAD,
        head_dim=HEAD,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    )
    shape.save_pretrained(folder)
    with torch.device("meta"):
        tensors = Qwen3ForCausalLM(shape).state_dict()
    specs = {n: Spec(tuple(each.shape), torch.bfloat16) for n, each in tensors.items() if n != "lm_head.weight"}
    torch.manual_seed(seed)
    with SafetensorsWriter(folder, specs, 10**12) as files:
        for name, spec in specs.items():
            for start in range(0, spec.numel, SLICE_SIZE):
                files.write(name, start, 0.02 * torch.randn(min(SLICE_SIZE, spec.numel - start)))
    return folder


@contextmanager
def merged(make: Callable[[], Merge], models: list[Path], output: Path, found: Retrieved) -> Iterator[Path]:
    """The output of a merge in a process of its own, which is timed and watched."""
    os.sync()  # nobody's merge waits for what another has written
    context = get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, make, models, output), daemon=True)
    process.start()
    other.close()
    try:
        pipe.recv()
        found.imported.append(anonymous(process.pid))
        pipe.send("go")
        most = 0.0
        while not pipe.poll(EVERY):
            most = max(most, anonymous(process.pid))
        seconds, cpu_seconds = pipe.recv()
    except EOFError as error:
        raise ValueError(f"the process of {output.name!r} ended; its error is above") from error
    process.join()
    found.seconds.append(seconds)
    found.cpu_seconds.append(cpu_seconds)
    found.megabytes.append(most)
    yield output
    shutil.rmtree(output)


def serve(pipe: "Connection[object, object]", make: Callable[[], Merge], models: list[Path], output: Path) -> None:
    """Import, wait, merge."""
    merge = make()
    pipe.send("ready")
    pipe.recv()
    start, cpu_start = time.perf_counter(), time.process_time()
    merge(models, output)
    pipe.send((time.perf_counter() - start, time.process_time() - cpu_start))


def anonymous(process: int | None) -> float:
    """MB of anonymous memory of a process; 0 once it has ended."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return 0.0 if match is None else int(match[1]) * 1024 / 1e6


def ours(method: str) -> Merge:
    from nestling.config.merge_methods import Recipe, equal_weights
    from nestling.merging.inputs import Inputs
    from nestling.merging.merge import write_merged
    from nestling.merging.models import open_model

    def merge(models: list[Path], output: Path) -> None:
        output.mkdir()
        recipe = Recipe(method, equal_weights(len(models)))  # type: ignore[arg-type]
        write_merged(Inputs.of([open_model(str(model)) for model in models]), recipe, output)

    return merge


def theirs() -> Merge:
    mergekit = import_module("mergekit.merge")
    configuration = import_module("mergekit.config").MergeConfiguration

    def merge(models: list[Path], output: Path) -> None:
        settings = {
            "merge_method": "slerp",
            "base_model": str(models[0]),
            "models": [{"model": str(model)} for model in models],
            "parameters": {"t": 0.5},
            "dtype": "bfloat16",
        }
        options = mergekit.MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
        mergekit.run_merge(configuration.model_validate(settings), str(output), options)

    return merge


def agreement(models: list[Path], folder: Path) -> str:
    """How far both sides' files are apart."""
    import torch

    from nestling.merging.sources import open_weights
    from nestling.merging.workers import SLICE_SIZE

    with (
        merged(theirs, models[:2], folder / "theirs", Retrieved()) as one,
        merged(partial(ours, "slerp"), models[:2], folder / "ours", Retrieved()) as other,
    ):
        peer, own = open_weights(str(one)), open_weights(str(other))
        differ = elements = 0
        largest = 0.0
        for name, spec in own.specs.items():
            for start in range(0, spec.numel, SLICE_SIZE):
                stop = min(start + SLICE_SIZE, spec.numel)
                a, b = peer.read(name, start, stop), own.read(name, start, stop)
                differ += int((a != b).sum())
                elements += len(a)
                largest = max(largest, float((a.float() - b.float()).abs().max()))
    assert peer.specs.keys() == own.specs.keys() and torch.isfinite(torch.tensor(largest))
    return f"the two differ in {differ:,} of {elements:,} numbers, by {largest:.3g} at most"


if __name__ == "__main__":
    run(main)
