"""sentence-transformers' trainer on the texts of our step."""

import time
from statistics import median
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from transformers import TrainerCallback

from nestling.gpu import synchronize
from nestling.training.profiling import PeakMemory
from scripts.gpu.models import LONGEST, random_texts
from scripts.gpu.place import Place
from scripts.gpu.training_step import TEXTS, TrainingStep, open_step


class StepClock(TrainerCallback):
    """Seconds of each step of a trainer.

    Attributes:
        seconds: Of the steps so far.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: Any, **more: Any) -> None:
        synchronize(self.place.device)
        self.started = time.perf_counter()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        synchronize(self.place.device)
        self.seconds.append(time.perf_counter() - self.started)


def measure(place: Place) -> None:
    """All weights of the shape of Qwen3-0.6B, the same rows, in bfloat16: its trainer in mini-batches, and our step."""
    count = place.size(192, 4)
    ours = open_step(place, "full", rows=count)
    tokens = ours.workload.tokens
    seconds, peak = our_step(place, ours)
    add(place, "Nestling", tokens, seconds, peak)
    dims = [ours.model.dim, ours.model.dim // 4]
    del ours
    seconds, peak = trainer_step(place, count, dims)
    add(place, "sentence-transformers", tokens, seconds, peak)


def add(place: Place, name: str, tokens: float, seconds: float, peak: float) -> None:
    rate = round(tokens / seconds)
    place.add("beside a trainer", trainer=name, seconds=seconds, tokens_per_second=rate, peak_GB=peak / 1e9)


def our_step(place: Place, step: TrainingStep) -> tuple[float, float]:
    """Seconds, and bytes at the peak."""
    batch, budget, peak = step.batch(place.size(16384, 64)), step.budget(), PeakMemory(place.device)
    with peak:
        seconds = place.median_seconds(lambda: step.take(batch, budget))
    return seconds, peak.bytes


def trainer_step(place: Place, count: int, dims: list[int]) -> tuple[float, float]:
    """Seconds, the first step left out, and bytes at the peak."""
    texts = random_texts(TEXTS * count, place)
    columns = {name: texts[i * count : (i + 1) * count] for i, name in enumerate(("anchor", "positive", "negative"))}
    model = SentenceTransformer(str(place.work / "large"), device=str(place.device), model_kwargs={"dtype": "float32"})
    model.max_seq_length = place.size(*LONGEST)
    loss = MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model, scale=50, mini_batch_size=32), dims)
    clock, peak = StepClock(place), PeakMemory(place.device)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(place.work / "trainer"),
        max_steps=1 + place.repeats,
        per_device_train_batch_size=count,
        learning_rate=1e-5,
        bf16=place.gpu,
        use_cpu=not place.gpu,
        save_strategy="no",
        report_to="none",
    )
    with peak:
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[clock]
        ).train()
    return median(clock.seconds[1:]), peak.bytes
