"""The whole recipe of configs/recipe: its files load, its stages fit together, and it runs, scaled down by flags."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from launches import recipe

from documents import Command, Snippet, commands, comments
from nestling.config import EmbedConfig, MergeConfig, MineConfig, RerankConfig, parse_config
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from recipes.runs import run_main, write_pairs
from scripts import merge, mine

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipe"
SIZES = {"qwen3-0.6b": "0.6B", "qwen3-4b": "4B", "qwen3-8b": "8B"}
STAGES: dict[str, tuple[str, type]] = {
    "1-weak": ("train/embed.py", EmbedConfig),
    "2-mine": ("scripts/mine.py", MineConfig),
    "2-select": ("scripts/mine.py", MineConfig),
    "3-supervised": ("train/embed.py", EmbedConfig),
    "4-merge": ("scripts/merge.py", MergeConfig),
    "5-rerank": ("train/rerank.py", RerankConfig),
    "6-merge-reranker": ("scripts/merge.py", MergeConfig),
}
GIVEN = {"weak.jsonl", "sample.jsonl", "labelled.jsonl"}  # what the reader brings


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A size of the recipe; the current folder is empty but for the folder of its runs."""
    (tmp_path / "runs" / request.param).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def file_of(size: str, stage: str) -> Path:
    return RECIPES / size / f"{stage}.yaml"


def load(size: str, stage: str) -> Any:
    return parse_config(STAGES[stage][1], None, ["--config", str(file_of(size, stage))])


def header(size: str, stage: str) -> list[Command]:
    """The commands of a file's comment."""
    text = comments(file_of(size, stage).read_text(encoding="utf-8"))
    return list(commands(Snippet(stage, "prose", text)))


def test_every_size_has_every_stage() -> None:
    assert {path.name for path in RECIPES.iterdir()} == SIZES.keys()
    for size in SIZES:
        assert {path.stem for path in (RECIPES / size).iterdir()} == STAGES.keys()


def reads(config: Any) -> set[str]:
    """Models and data that a stage reads."""
    if isinstance(config, MineConfig):
        return {config.data, *config.retrievers}
    return {config.run} if isinstance(config, MergeConfig) else {config.model, *(data.path for data in config.train)}


def writes(config: Any) -> set[str]:
    """What later stages may read of it."""
    if isinstance(config, MineConfig | MergeConfig):
        return {str(config.output)}
    return {config.output_dir, f"{config.output_dir}/final"}


def test_a_stage_reads_what_earlier_ones_wrote(size: str) -> None:
    base = f"Qwen/Qwen3-{SIZES[size]}-Base"
    there, read = {base, *GIVEN}, set[str]()
    for stage in STAGES:
        config = load(size, stage)
        assert reads(config) <= there, stage
        assert not writes(config) & there, f"{stage} would overwrite"
        there |= writes(config)
        read |= reads(config)
    folder = f"runs/{size}"
    assert there - read == {f"{folder}/{name}" for name in ("weak", "supervised/final", "embedding", "reranking/final",
                                                            "reranker")}  # fmt: skip
    assert read >= {base, *GIVEN}


def test_merges_find_the_checkpoints_that_training_keeps(size: str) -> None:
    for trained, merged in (("3-supervised", "4-merge"), ("5-rerank", "6-merge-reranker")):
        assert load(size, merged).last == load(size, trained).save_total_limit


def test_what_the_report_says(size: str) -> None:
    """The loss with all its terms and its mask, nested dimensions down to 32, -log p of the answer among all words."""
    width = {"qwen3-0.6b": 1024, "qwen3-4b": 2560, "qwen3-8b": 4096}[size]
    for stage in ("1-weak", "3-supervised"):
        config = load(size, stage)
        assert (max(config.matryoshka_dims), min(config.matryoshka_dims)) == (width, 32)
        assert set(config.loss.terms) == {"query_document", "query_query", "document_document"}
        assert config.loss.other_hard_negatives and config.loss.mask_identity
        assert config.loss.score_margin == 0.1
        assert config.loss.mask_document_document == "query" and config.loss.mask_hard_negatives
    assert load(size, "2-select").least_score == 0.7
    assert load(size, "5-rerank").loss.objective == "pointwise_vocabulary"


@pytest.mark.parametrize("stage", STAGES)
def test_the_commands_of_a_stage(stage: str, size: str) -> None:
    """From one GPU to 64; each starts the stage's script on its file, and the launcher knows its own file."""
    script, cls = STAGES[stage]
    found = header(size, stage)
    processes = []
    for command in found:
        argv = list(command.words)
        if argv[0] == "accelerate":
            argv = [str(ROOT / word) if word.startswith("configs/accelerate/") else word for word in argv]
            launch = _validate_launch_command(launch_command_parser().parse_args(argv[2:]))[0]
            processes.append(launch.num_processes)
            argv = ["python", launch.training_script, *launch.training_script_args]
        else:
            processes.append(1)
        assert argv[1] == script
        assert argv[3] == file_of(size, stage).relative_to(ROOT).as_posix()
        config = parse_config(cls, None, ["--config", str(ROOT / argv[3]), *argv[4:]])
        assert getattr(config, "batch_size", 64) % processes[-1] == 0
    assert processes == ([1, 1] if stage == "4-merge" else [1] if cls is MergeConfig else [1, 8, 64])


def scaled_down(model: Path) -> dict[str, Sequence[str]]:
    """Flags that leave the stages what they are, and make them small."""
    small = ["--use_cpu=true", "--precision=fp32", "--batch_size=4", "--num_negatives=2", "--query_max_length=96"]
    training = [*small, "--document_max_length=24", "--chunk_tokens=512", "--max_steps=3", "--save_steps=1",
                "--dataloader_num_workers=0"]  # fmt: skip
    base, dims = f"--model={model}", "--matryoshka_dims=64,32"
    mining = [
        "--precision=fp32",
        "--max_score_ratio=null",
        "--num_negatives=3",
        "--query_max_length=96",
        "--document_max_length=24",
    ]
    return {
        "1-weak": [*training, "--num_negatives=0", base, dims],
        "2-mine": mining,
        "2-select": [*mining, "--least_score=-1"],  # a random model finds nothing similar
        "3-supervised": [*training, dims],
        "4-merge": ["--precision=fp32", "--last=3"],
        "5-rerank": [*training, base],
        "6-merge-reranker": ["--precision=fp32", "--last=3"],
    }


def mains() -> dict[str, Callable[[], None]]:
    def trained(name: str, cls: type) -> Callable[[], None]:
        return lambda: recipe(name).main(parse_config(cls, None))

    return {
        "train/embed.py": trained("embed", EmbedConfig),
        "train/rerank.py": trained("rerank", RerankConfig),
        "scripts/mine.py": mine.main,
        "scripts/merge.py": merge.main,
    }


def run_whole(size: str, model: Path) -> None:
    """All stages, one after the other, in the current folder."""
    for name in sorted(GIVEN):
        write_pairs(Path(name), 40, name)
    flags, run = scaled_down(model), mains()
    for stage, (script, _) in STAGES.items():
        done = run_main(run[script], "--config", file_of(size, stage), *flags[stage])
        assert done.returncode == 0, f"{stage}: {done.stderr[-2000:]}"


def check_result(folder: Path, model: Path) -> None:
    """What the last stages wrote is an embedder and a reranker that work, and not the base."""
    with (folder / "labelled.jsonl").open(encoding="utf-8") as file:
        assert all(len(json.loads(line)["negatives"]) == 3 for line in file)
    embed = partial(Embedder.encode, texts=["list files"], kind="query", max_length=96)
    embedding = embed(Embedder.from_pretrained(folder / "embedding"))
    assert embedding.shape == (1, 64)
    assert not embedding.equal(embed(Embedder.from_pretrained(folder / "weak" / "final")))
    (score,) = Reranker.from_pretrained(folder / "reranker").score([("list files", "how to list the files")])
    assert 0 < score < 1
    assert not score.equal(Reranker.from_pretrained(model).score([("list files", "how to list the files")])[0])
    assert re.search(r"step-3\n", (folder / "reranker" / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "size", ["qwen3-0.6b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen3-4b", "qwen3-8b"))],
    indirect=True,
)  # fmt: skip
def test_the_whole_recipe_scaled_down(size: str, qwen3_base: Path) -> None:
    run_whole(size, qwen3_base)
    check_result(Path("runs") / size, qwen3_base)
