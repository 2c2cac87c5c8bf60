"""train/embed.py as accelerate launches it: DDP and DeepSpeed on two ranks of a CPU, stopped, killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, environment, run_recipe

from recipes.runs import arguments, assert_same_run, kill_after_step, launched, losses, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("builds")]

STEPS = 10


def settings(model: Path, data: Path, run: Path, **more: object) -> list[str]:
    """The recipe and its arguments; without dropout, which differs between ranks."""
    changed = {"max_steps": STEPS, "save_steps": 2, "lora.dropout": 0.0, "learning_rate": 1e-3, **more}
    return arguments(model, data, run, **changed)


@pytest.fixture(scope="module")
def alone(qwen3: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nobody interrupted."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    run_recipe(*settings(qwen3, data, run))
    return run


def assert_same(run: Path, alone: Path) -> None:
    """Losses, gradient norms and final/ are those of one process."""
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert_same_run(run, alone, loss=1e-4, weight=1e-5)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_resumed_after_a_kill(name: str, alone: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = run_recipe(*launched(name, settings(qwen3, data, whole)))
    assert f"2 (DeepSpeed ZeRO-{name[-1]})" in result.stdout
    assert_same(whole, alone)

    step = random.randint(4, STEPS - 2)  # when there has been a checkpoint
    kill_after_step(launched(name, settings(qwen3, data, run)), run, step, 1)
    assert not (run / "checkpoints" / f"step-{STEPS}").exists()
    refused = run_recipe(*launched(name, settings(qwen3, data, run), ranks=1), "--resume=true", check=False)
    assert refused.returncode != 0
    assert f"cannot be resumed with DeepSpeed ZeRO-{name[-1]} on 1 ranks" in refused.stderr
    run_recipe(*launched(name, settings(qwen3, data, run)), "--resume=true")
    assert losses(run) == losses(whole), f"killed after step {step}"
    assert_same(run, alone)


@pytest.mark.parametrize("name", ["zero1", "zero2-offload"])
def test_deepspeed_trains_as_one_process(name: str, alone: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    run_recipe(*launched(name, settings(qwen3, data, tmp_path / "run")))
    assert_same(tmp_path / "run", alone)


def test_zero3_trains_all_weights_in_shards(qwen3: Path, data: Path, tmp_path: Path) -> None:
    """Weights decay as in one process: ZeRO-3 leaves them without their shape when they load."""
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    config = json.loads((ROOT / "configs" / "deepspeed" / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else small weights stay whole
    config["zero_optimization"]["reduce_bucket_size"] = 5000  # smaller than some of them
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    alone, run = tmp_path / "alone", tmp_path / "run"
    # Adam moves a weight whose gradient is the size of rounding by up to the learning rate, in a direction that depends
    # on the order of summation: chunks of another size move the same weight in one process. Decay moves one by 1e-4.
    more = {"tuning": "full", "weight_decay": 0.5, "learning_rate": 2.5e-4}
    first = run_recipe(*settings(qwen3, data, alone, **more))
    flags = ["--use_deepspeed", "--deepspeed_config_file", str(tmp_path / "zero3.json"), "--main_process_port", "0"]
    launcher = ["-m", "accelerate.commands.launch", *flags, "--num_processes", "2"]
    result = run_recipe(*launcher, *settings(qwen3, data, run, **more))
    (trained,) = (line for line in first.stdout.splitlines() if line.startswith("  trained "))
    assert trained in result.stdout
    assert_same(run, alone)


def test_zero3_mines_again_as_one_process(qwen3: Path, data: Path, tmp_path: Path) -> None:
    """The forward of every rank waits for the others' there, and the ranks have unequal shares of the texts."""
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    more = {"refresh.steps": 4, "refresh.among": 3}
    one, run = tmp_path / "one", tmp_path / "run"
    run_recipe(*settings(qwen3, data, one, **more))
    run_recipe(*launched("zero3", settings(qwen3, data, run, **more)))
    assert len(list((run / "refresh").rglob("*.arrow"))) == 4
    assert_same(run, one)


def test_ddp_on_a_cpu_stopped_by_its_launcher(alone: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = launched("ddp-cpu", settings(qwen3, data, run, save_steps=STEPS))
    launcher = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(run, 3, launcher)
    launcher.send_signal(signal.SIGTERM)
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "2 (DDP)" in output, output + errors
    assert "stopped by SIGTERM; saved" in output + errors
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    run_recipe(*command, "--resume=true")
    assert_same(run, alone)


# Two machines of one process each, both at once; SLURM's own options are dropped.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
ranks=()
for node in 0 1; do
    SLURM_NODEID=$node "$@" &
    ranks+=($!)
done
worst=0
for rank in "${ranks[@]}"; do
    wait "$rank"
    status=$?
    [ $status -gt $worst ] && worst=$status
done
exit $worst
"""


def test_a_slurm_job_of_two_machines_preempted_and_queued_again(
    alone: Path, qwen3: Path, data: Path, tmp_path: Path
) -> None:
    run, commands = tmp_path / "run", tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": f'#!/bin/bash\necho "$@" > {tmp_path}/scontrol\n'}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    variables = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    recipe = settings(qwen3, data, run, save_steps=STEPS)[1:]
    command = ["scripts/slurm/train.sbatch", "configs/accelerate/ddp.yaml", *recipe]
    job = subprocess.Popen(command, cwd=ROOT, env=environment(**variables))
    wait_for_step(run, 3, job)
    batch = psutil.Process(job.pid)
    (srun,) = batch.children()
    for each in srun.children(recursive=True):
        each.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", str(os.getpid())]
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    subprocess.run(command, cwd=ROOT, env=environment(**variables), check=True, timeout=280)
    assert_same(run, alone)


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("fsdp2", {}, "the launcher was asked for FSDP, but Accelerate gives"),
        ("zero2", {"ACCELERATE_USE_CPU": "true"}, "the launcher was asked for DEEPSPEED, but Accelerate gives"),
    ],
)
def test_a_backend_that_accelerate_would_drop_is_refused(
    name: str,
    variables: dict[str, str],
    message: str,
    qwen3: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    result = run_recipe(*launched(name, settings(qwen3, data, tmp_path / "run")), check=False)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "run").exists()
