"""train/embed.py where embeddings of random words are held to what they were."""

from pathlib import Path

import pytest
from ranks import run_recipe
from safetensors.torch import load_file

from nestling.models.embedder import Embedder
from recipes.runs import arguments, assert_said, assert_same_weights, kill_after_step, launched, losses, run_and_record

WEIGHT = 20.0
MORE = {"max_steps": 6, "save_steps": 2, "tuning": "full", "precision": "fp32", "dev_share": 0}
WORDS = ["query relevant passages", "boundary layer over the flat plate", "modified during seven days", "yes assistant"]


def moved(run: Path, base: Path) -> float:
    """How far random words are from where they were: the mean of 2 - 2 cos."""
    now, then = (
        Embedder.from_pretrained(each).encode(WORDS, kind="document", max_length=24) for each in (run / "final", base)
    )
    return float((2 - 2 * (now * then).sum(dim=1)).mean())


def test_random_words_move_less_and_a_resumed_run_holds_them_bit_for_bit(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    """They are held to the model as it was before training, also where a run goes on from a checkpoint."""
    held, whole, killed, plain = {**MORE, "loss.retention_weight": WEIGHT}, *(tmp_path / name for name in "abc")
    run_and_record(arguments(bert, data, whole, **held), whole)
    assert_said(whole, "retention of random words")
    kill_after_step(arguments(bert, data, killed, **held), killed, 3, 1)
    run_recipe(*arguments(bert, data, killed, **held), "--resume=true")
    assert losses(killed) == losses(whole)
    assert_same_weights(*(load_file(run / "final" / "model.safetensors") for run in (killed, whole)))

    run_recipe(*arguments(bert, data, plain, **MORE))
    assert losses(whole)[1][0] == pytest.approx(losses(plain)[1][0], rel=1e-5), "before step 1 nothing has moved"
    assert 0 < moved(whole, bert) < 0.7 * moved(plain, bert)


def test_graded_pairs_have_them_too(qwen3: Path, tmp_path: Path) -> None:
    rows = tmp_path / "graded.csv"
    rows.write_text("sentence1,sentence2,score\n" + "".join(f"text {i},other {i % 5},{i % 3 / 2}\n" for i in range(40)))
    held, free = ({"train": rows, "max_steps": 4, "dev_share": 0, "loss.retention_weight": each} for each in (50, 0))
    for name, more in (("held", held), ("free", free)):
        run_recipe(*arguments(qwen3, tmp_path, tmp_path / name, **more))
    assert moved(tmp_path / "held", qwen3) < moved(tmp_path / "free", qwen3)


@pytest.mark.slow
@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_hold_them_as_one(name: str, qwen3: Path, data: Path, tmp_path: Path) -> None:
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    more = {"max_steps": 4, "lora.dropout": 0.0, "dev_share": 0, "loss.retention_weight": WEIGHT}
    one, two = (arguments(qwen3, data, tmp_path / each, **more) for each in ("1", "2"))
    run_recipe(*one)
    run_recipe(*two, ranks=2) if name == "ddp" else run_recipe(*launched(name, two))
    for step, expected in losses(tmp_path / "1").items():
        assert losses(tmp_path / "2")[step] == pytest.approx(expected, rel=2e-4), step
