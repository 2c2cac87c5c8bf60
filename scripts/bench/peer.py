"""The peer of the training benchmarks: sentence-transformers' trainer on the same rows, for as many steps."""

import json
import time
from pathlib import Path

PEER = "sentence-transformers"


def train_peer(
    model_name: str,
    rows: Path,
    folder: Path,
    *,
    dims: list[int],
    batch_size: int,
    learning_rate: float,
    max_length: int,
    seed: int = 42,
) -> float:
    """Train with MatryoshkaLoss(MultipleNegativesRankingLoss) for an epoch, on the CPU, its defaults else.

    To be called in a fresh process, where it finds none of our settings of torch.

    Args:
        model_name: Directory of the model to train.
        rows: JSONL file of a query and its positives, of which the first is taken.
        folder: Where the trained model goes.
        dims: Matryoshka dimensions.
        batch_size: Pairs of a step; the last may have fewer.
        learning_rate: Peak learning rate.
        max_length: Tokens of a text.
        seed: Of the run; by default the trainer's own.

    Returns:
        Seconds of `trainer.train()`.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = SentenceTransformer(model_name, device="cpu")
    model.max_seq_length = max_length
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    pairs = {"anchor": [row["query"] for row in read], "positive": [row["positives"][0] for row in read]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=seed,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(pairs),
        loss=MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=dims),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    model.save_pretrained(str(folder))
    return seconds
