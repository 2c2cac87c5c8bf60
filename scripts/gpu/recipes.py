"""Both recipes on tiny models, from the first step to the gate, and what uses their models."""

import json
from pathlib import Path

from scripts.gpu.commands import run, stop_and_resume
from scripts.gpu.models import LONGEST
from scripts.gpu.place import Place

# On a GPU and on a CPU: steps of a run, and of one that is stopped on its way.
STEPS, LONG = (10, 4), (60, 20)
SHORT = ("--query_max_length=96", "--document_max_length=32")


def settings(place: Place, model: str, output: Path, **more: object) -> list[str]:
    """Arguments of a recipe."""
    chosen: dict[str, object] = {
        "model": place.work / model,
        "output_dir": output,
        "train": place.work / "pairs.jsonl",
        "dev": place.work / "dev",
        "query_max_length": 96,
        "document_max_length": 32,
        "precision": place.size("bf16", "fp32"),
        "batch_size": 8,
        "num_negatives": 2,
        "chunk_tokens": 128,
        "max_steps": place.size(*STEPS),
        "save_steps": place.size(5, 2),
        "eval_steps": place.size(5, 4),
        "dataloader_num_workers": 0,
        "use_cpu": str(not place.gpu).lower(),
        **more,
    }
    return [f"--{name}={value}" for name, value in chosen.items()]


def embedder(place: Place) -> None:
    """LoRA, stopped and resumed, then all weights."""
    train(place, "train/embed.py", "embedder", matryoshka_dims="64,32,16")


def reranker(place: Place) -> None:
    """The same of a reranker."""
    train(place, "train/rerank.py", "base", prefix="", suffix="?", instruction="Judge the command")


def train(place: Place, recipe: str, model: str, **more: object) -> None:
    name = Path(recipe).stem
    for tuning, steps in (("lora", place.size(*LONG)), ("full", place.size(*STEPS))):
        output, log = place.work / f"{name}-{tuning}", place.log(f"{name}-{tuning}")
        words = [recipe, *settings(place, model, output, tuning=tuning, max_steps=steps, **more)]
        if tuning == "lora":
            stop_and_resume(words, output, log)
        else:
            run(words, log)
        require_whole_run(output, steps)
        place.add("recipes", recipe=recipe, tuning=tuning, steps=steps, last_loss=losses(output)[-1])


def losses(output: Path) -> list[float]:
    """The loss of each step, by the run's metrics."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def require_whole_run(output: Path, steps: int) -> None:
    """Every step has been taken once, and the gate has let the model pass."""
    found = len(losses(output))
    if found != steps:
        raise AssertionError(f"{output.name}: {found} steps in metrics.jsonl, and there should be {steps}")
    if not (output / "final" / "model.safetensors").exists():
        raise AssertionError(f"{output.name}: no model in final/")


def use(place: Place) -> None:
    """Evaluate a trained model, mine with it and a trained judge, and merge checkpoints of its run."""
    trained, judge, log = place.work / "embed-lora", place.work / "rerank-lora" / "final", place.log("use")
    dev, pairs = place.work / "dev", place.work / "pairs.jsonl"
    outputs = [place.work / name for name in ("evaluated.json", "mined.jsonl", "merged")]
    commands = (
        ["scripts/evaluate.py", f"--model={trained / 'final'}", f"--data={dev}", "--split=dev", *SHORT],
        ["scripts/mine.py", f"--retrievers={trained / 'final'}", f"--judge={judge}", f"--data={pairs}", *SHORT],
        ["scripts/merge.py", f"--run={trained}", "--last=2", f"--dev={dev}"],
    )
    for command, output in zip(commands, outputs, strict=True):
        run([*command, f"--output={output}"], log)
        if not output.exists():
            raise AssertionError(f"{command[0]} has not written {output.name}")


def with_little_memory(place: Place) -> None:
    """In a tenth of the GPU's memory training starts, halves its chunks, and ends."""
    output, log = place.work / "little-memory", place.log("little-memory")
    more = {
        "dev": "",
        "train": place.work / "texts.jsonl",
        "matryoshka_dims": "1024",
        "document_max_length": LONGEST[0],
        "query_max_length": LONGEST[0],
        "batch_size": 512,
        "num_negatives": 1,
        "chunk_tokens": 262144,
        "activation_memory": 1,  # what is free by the driver, from which it is taken otherwise, knows no fraction
        "max_steps": 3,
    }
    words = [word for word in settings(place, "shallow", output, **more) if word != "--dev="]
    run(["train/embed.py", *words], log, memory_fraction=0.1)
    require_whole_run(output, 3)
    said = log.read_text(encoding="utf-8", errors="replace")
    halved = [line.strip() for line in said.splitlines() if "the step is repeated in chunks" in line]
    for line in halved:
        place.add("a tenth of the memory", line=line)
    if not halved:
        raise AssertionError("memory did not run out: this check has shown nothing")
