"""Time, memory and silence of each phase of a model's life at the size of Qwen3-Embedding-0.6B or Qwen3-Reranker-0.6B.

python scripts/bench/real_size.py --output runs/real-size
python scripts/bench/real_size.py --output runs/real-size --kind reranker --tuning full --hidden 64 --layers 2

Random weights in bfloat16 and a tokenizer of the released form (`random_release`). The commands are those of users:
training for two steps, killed by SIGKILL after the first checkpoint; resumed, checkpoint, export with its gate; the
export of the first checkpoint; evaluation; a merge of both exports with its gate. Each has processes of its own.
Memory (Linux only) is that of all processes of a command, shared pages counted once: anonymous, which has to fit, and
resident, with pages of files that the system takes back when it needs them. An export is one phase, whatever process
does it: what it adds to the anonymous memory at its beginning, as a share of the weights in memory, has a column.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from random_release import Shape, write_release

from nestling.config import parse_config, require, require_new, run
from nestling.console import table

SCRIPTS = Path(__file__).parents[1]
EVERY = 0.5  # seconds between two looks at the memory
ENTRIES = re.compile(r"^(Pss\w*): +(\d+) kB", re.MULTILINE)  # of /proc/PID/smaps_rollup
TEXTS = [
    "list all files by size", "find lines that hold a word", "count the words of a text", "show the last ten lines",
    "remove empty folders here", "copy a folder to a server", "print the second column", "sort numbers the other way",
    "who is logged in now", "stop a process by its id", "how much space is left", "pack a folder into one file",
]  # fmt: skip
ANSWERS = [
    "ls -lS shows the largest first", "grep word file prints them", "wc -w file gives the number", "tail -n 10 file",
    "find . -type d -empty -delete", "rsync -a folder host:", "awk '{print $2}' file", "sort -rn file", "w or who",
    "kill and the number of it", "df -h for each file system", "tar czf folder.tar.gz folder",
]  # fmt: skip


@dataclass(frozen=True)
class RealSizeConfig:
    """Settings of scripts/bench/real_size.py.

    Args:
        output: Folder for all that is written; must not exist.
        kind: embedder or reranker.
        tuning: lora or full.
        precision: Of the training; a CPU without AVX-512 takes minutes for a step in bf16.
        hidden: Hidden size; 16 heads of an eighth of it, 8 of keys and values.
        layers: Layers.
        max_length: Tokens of a query and of a document, and of the gate's probes.
        shard: Most bytes of a file of the base, as in save_pretrained.
    """

    output: str
    kind: Literal["embedder", "reranker"] = "embedder"
    tuning: Literal["lora", "full"] = "lora"
    precision: Literal["bf16", "fp32"] = "bf16"
    hidden: int = 1024
    layers: int = 28
    max_length: int = 32
    shard: str = "500MB"

    def __post_init__(self) -> None:
        require(self.hidden > 0 and self.hidden % 16 == 0, f"hidden is {self.hidden}; expected a multiple of 16")
        require(min(self.layers, self.max_length) > 0, "layers and max_length have to be above 0")

    @property
    def shape(self) -> Shape:
        return Shape(self.hidden, self.layers, head_dim=self.hidden // 8, intermediate_size=3 * self.hidden)

    @property
    def bytes_in_memory(self) -> int:
        """Of the weights in training: float32 where all are trained, bfloat16 under adapters that compute in it."""
        files = Path(self.output, "base").glob("*.safetensors")
        low = self.tuning == "lora" and self.precision == "bf16"
        return sum(path.stat().st_size for path in files) * (1 if low else 2)


@dataclass
class Phase:
    """What was seen of a phase.

    Args:
        name: Of it.
        start: When it began, a time of time.monotonic.
        said: When something was last printed.
        silence: Seconds of the longest time without a word.
        begun_with: Bytes of anonymous memory at its first sample; None before.
        anonymous: Most bytes of anonymous memory.
        resident: Most bytes of resident memory.
        seconds: That it took.
    """

    name: str
    start: float
    said: float
    silence: float = 0.0
    begun_with: int | None = None
    anonymous: int = 0
    resident: int = 0
    seconds: float = 0.0

    def say(self, now: float) -> None:
        self.silence, self.said = max(self.silence, now - self.said), now

    def see(self, anonymous: int, resident: int) -> None:
        self.begun_with = anonymous if self.begun_with is None else self.begun_with
        self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)

    def end(self, now: float) -> None:
        self.say(now)
        self.seconds = now - self.start


@dataclass
class Watched:
    """A command in processes of its own, its phases and its output.

    Args:
        name: Of its first phase.
        command: What runs.
        log: File for its output.
        marks: The names of later phases, by the text that each begins with.
    """

    name: str
    command: Sequence[str]
    log: Path
    marks: Mapping[str, str] = field(default_factory=dict)

    def run(self, kill_when: Callable[[], bool] = lambda: False) -> list[Phase]:
        """The phases; SIGKILL ends the command when `kill_when` says so, and only then may it fail."""
        now = time.monotonic()
        self.phases = [Phase(self.name, now, now)]
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        killed = False
        while process.poll() is None:
            self.phases[-1].see(*memory(process.pid))
            if not killed and kill_when():
                process.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(EVERY)
        reader.join()
        self.phases[-1].end(time.monotonic())
        require(killed or process.returncode == 0, f"{self.name} failed; {self.log} has its output")
        return self.phases

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        recent, left = "", dict(self.marks)
        with self.log.open("wb") as log:
            while data := os.read(process.stdout.fileno(), 65536):
                now = time.monotonic()
                log.write(data)
                log.flush()
                recent = (recent + data.decode(errors="replace"))[-10_000:]
                self.phases[-1].say(now)
                for text in [each for each in left if each in recent]:
                    self.phases[-1].end(now)
                    self.phases.append(Phase(left.pop(text), now, now))


def memory(root: int) -> tuple[int, int]:
    """Bytes of anonymous and of resident memory of a process and all processes below it, shared pages counted once."""
    tree = [root]
    for process in tree:  # which grows
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        tree += [int(child) for task in tasks for child in read(task).split()]
    found = [dict(ENTRIES.findall(read(Path(f"/proc/{each}/smaps_rollup")))) for each in tree]
    anonymous, resident = (1024 * sum(int(each.get(key, 0)) for each in found) for key in ("Pss_Anon", "Pss"))
    return anonymous, resident


def read(path: Path) -> str:
    """A file of /proc, empty once its process has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main() -> None:
    config = parse_config(RealSizeConfig, __doc__)
    require_new("--output", config.output)
    output = Path(config.output)
    write_data(output)
    print("writing the base", flush=True)
    writer = get_context("spawn").Process(
        target=write_release,
        args=(output / "base", config.kind, config.shape),
        kwargs={"seed": 0, "shard": config.shard},
    )  # whose memory the system takes back
    writer.start()
    writer.join()
    weights = config.bytes_in_memory
    print(f"weights in memory: {weights / 2**30:.2f} GiB", flush=True)
    rows: list[list[object]] = []
    for watched, kill_when in commands(config, output):
        found = [line(phase, weights) for phase in watched.run(kill_when)]
        print(table(HEADINGS, found, digits=2), flush=True)  # a run takes an hour, and may not come to its end
        rows += found
    print(table(HEADINGS, rows, digits=2, markdown=True))


HEADINGS = ["phase", "seconds", "anonymous GiB", "resident GiB", "added, of the weights", "longest silence, s"]


def line(phase: Phase, weights: int) -> list[object]:
    """A line of the table."""
    added = (phase.anonymous - (phase.begun_with or 0)) / weights if "export" in phase.name else None
    sizes = [phase.anonymous / 2**30, phase.resident / 2**30]
    return [phase.name, round(phase.seconds, 1), *sizes, added, round(phase.silence, 1)]


def write_data(output: Path) -> None:
    """Training rows, and a dev set of the same texts in the BEIR layout."""
    (output / "dev" / "qrels").mkdir(parents=True)
    pairs = list(zip(TEXTS, ANSWERS, strict=True))
    rows = [
        {"query": query, "positives": [answer], "negatives": [ANSWERS[i - 1]]}
        for i, (query, answer) in enumerate(pairs)
    ]
    corpus = [{"_id": f"d{i}", "title": "", "text": answer} for i, answer in enumerate(ANSWERS)]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(TEXTS)]
    files: dict[str, list[Any]] = {"train.jsonl": rows, "dev/corpus.jsonl": corpus, "dev/queries.jsonl": queries}
    for name, content in files.items():
        (output / name).write_text("".join(json.dumps(each) + "\n" for each in content), encoding="utf-8")
    judged = [f"q{i}\td{i}\t1" for i in range(len(TEXTS))]
    (output / "dev" / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")


def commands(config: RealSizeConfig, output: Path) -> list[tuple[Watched, Callable[[], bool]]]:
    """What is run, one after the other, and when it is killed."""
    trained, again, first = output / "run" / "final", output / "exported", output / "run" / "checkpoints" / "step-1"

    def watched(name: str, script: str, *arguments: object, export: str = "") -> Watched:
        command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
        marks = {"exporting to": export} if export else {}
        return Watched(name, command, output / f"{name.replace(' ', '-')}.log", marks)

    recipe = "../train/embed.py" if config.kind == "embedder" else "../train/rerank.py"
    settings, merged = training(config, output), ("--models", f"{trained},{again}", "--output", output / "merged")
    resume = watched("resume for a step", recipe, *settings, "--resume", "true", export="export after training")
    export = ("--checkpoint", first, "--output", again)
    return [
        (watched("train until killed", recipe, *settings), first.exists),
        (resume, never),
        (watched("load a checkpoint", "export.py", *export, export="export of a checkpoint"), never),
        (watched("evaluate", "evaluate.py", *evaluation(config, output, trained)), never),
        (watched("merge two", "merge.py", *merged, export="export of the merge"), never),
    ]


def never() -> bool:
    return False


def training(config: RealSizeConfig, output: Path) -> list[object]:
    dev = {"path": str(output / "dev"), "split": "test", **({"depth": 2} if config.kind == "reranker" else {})}
    return [
        *("--model", output / "base", "--output_dir", output / "run", "--tuning", config.tuning),
        *("--train", output / "train.jsonl", "--dev", json.dumps([dev]), "--precision", config.precision),
        *("--query_max_length", config.max_length, "--document_max_length", config.max_length),
        *("--batch_size", 2, "--num_negatives", 1, "--num_positives", 1, "--max_steps", 2, "--save_steps", 1),
        *("--eval_steps", 2, "--learning_rate", "1e-4", "--instruction", "match"),
        *(("--prefix", "<|im_start|>", "--suffix", "<|im_end|>") if config.kind == "reranker" else ()),
    ]


def evaluation(config: RealSizeConfig, output: Path, model: Path) -> list[object]:
    if config.kind == "embedder":
        return ["--model", model, "--data", output / "dev"]
    return ["--first_stage", "bm25", "--reranker", model, "--depth", 2, "--data", output / "dev"]


if __name__ == "__main__":
    run(main)
