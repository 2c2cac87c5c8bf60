"""Models with random weights, and the data that they train on."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model

from scripts.gpu.place import Place
from tests.tiny import tiny_qwen3

# Qwen3-Embedding-0.6B: 28 layers. Of four of them and few words, activations fill a GPU before weights do.
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
}
LARGE = {**SHAPE, "num_hidden_layers": 28, "max_window_layers": 28, "vocab_size": 151669}
SHALLOW = {**SHAPE, "num_hidden_layers": 4, "max_window_layers": 4}
# Of texts, in tokens: the median on a GPU and on a CPU, the standard deviation of the logarithm, the longest.
MEDIAN, SPREAD, LONGEST = (70, 12), 0.75, (512, 32)
SUBJECTS = ("files", "folders", "users", "lines", "words", "ports", "jobs", "disks")
ACTIONS = ("list", "count", "sort", "remove", "find", "print")


def write(place: Place) -> None:
    """Write what other checks use: tiny models, the shape of Qwen3-0.6B (on a CPU a small one), pairs, a dev set."""
    tiny_qwen3(place.work / "embedder")
    tiny_qwen3(place.work / "base", sentence_transformers=False)
    random_model(place.work / "large", place.size(LARGE, {}), place.device)
    random_model(place.work / "shallow", place.size(SHALLOW, {}), place.device)
    write_pairs(place.work / "pairs.jsonl", 96)
    write_texts(place.work / "texts.jsonl", place.size(1536, 8), place)
    write_dev(place.work / "dev")


def random_model(folder: Path, shape: dict[str, int], device: torch.device) -> None:
    """A Qwen3 of a shape in the layout of Qwen3-Embedding, bfloat16, with the tokenizer of the tiny one."""
    tiny_qwen3(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | shape | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    pooling = folder / "1_Pooling" / "config.json"
    width = {"word_embedding_dimension": settings["hidden_size"]}
    pooling.write_text(json.dumps(json.loads(pooling.read_text(encoding="utf-8")) | width), encoding="utf-8")
    torch.manual_seed(0)
    with device:
        model = Qwen3Model(Qwen3Config(**settings))
    for parameter in model.parameters():
        if parameter.ndim == 2:  # larger than by default, under which random models give all texts one embedding
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    state = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def random_texts(count: int, place: Place, seed: int = 0) -> list[str]:
    """Texts of lognormal lengths. Each is made of digits, of which the tokenizer makes a token each."""
    source = random.Random(seed)
    middle, longest = place.size(MEDIAN[0], MEDIAN[1]), place.size(LONGEST[0], LONGEST[1])
    lengths = [round(math.exp(source.gauss(math.log(middle), SPREAD))) for _ in range(count)]
    return ["".join(source.choices("0123456789", k=min(max(each, 8), longest) - 1)) for each in lengths]


def write_lines(file: Path, rows: Sequence[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pairs(file: Path, count: int) -> None:
    """Rows that the recipes learn from: a command and how it is done, and wrong ones."""
    source = random.Random(0)
    rows: list[dict[str, object]] = []
    for i in range(count):
        action, subject = source.choice(ACTIONS), source.choice(SUBJECTS)
        wrong = [f"{other} {subject} {i}" for other in ACTIONS if other != action]
        positive = f"how to {action} the {subject} number {i}"
        rows.append({"query": f"{action} {subject} {i}", "positives": [positive], "negatives": wrong})
    write_lines(file, rows)


def write_texts(file: Path, count: int, place: Place) -> None:
    """Rows of three texts each, in real lengths."""
    texts = random_texts(3 * count, place)
    rows = zip(texts[:count], texts[count : 2 * count], texts[2 * count :], strict=True)
    write_lines(file, [{"query": q, "positives": [p], "negatives": [n]} for q, p, n in rows])


def write_dev(folder: Path) -> None:
    """A retrieval set with a dev split."""
    (folder / "qrels").mkdir(parents=True)
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": f"d{i}", "text": f"how to list the {each}"} for i, each in enumerate(SUBJECTS)],
    )
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"list {each}"} for i, each in enumerate(SUBJECTS)])
    relevant = "".join(f"q{i}\td{i}\t1\n" for i in range(len(SUBJECTS)))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + relevant, encoding="utf-8")
