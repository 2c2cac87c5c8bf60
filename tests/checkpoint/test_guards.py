"""Stop signals on one rank and on two, and steps whose loss or gradient is not finite."""

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ranks import environment

import warm
from nestling.checkpoint import Checkpoints, NonFiniteGuard, StopSignal
from nestling.checkpoint.guards import ZeroGuard
from nestling.processes import STOP_SIGNALS


def test_sigterm_sets_the_flag_and_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is not None
        assert stop.received == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_second_ctrl_c_interrupts_at_once() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


LOOP = """
    import sys, time
    from pathlib import Path
    from torch.utils.data import DataLoader
    from nestling.checkpoint import Checkpoints, StopSignal, ignore_stop_signals
    from nestling.distributed.ranks import any_rank

    def loop(folder, rank):
        with StopSignal() as stop:
            batches = DataLoader(range(10**6), num_workers=1, worker_init_fn=ignore_stop_signals)
            for step, _ in enumerate(batches, start=1):
                time.sleep(0.01)
                if step == 1:
                    Path(folder, f"ready-{rank}").touch()
                if any_rank(stop.received is not None):
                    Checkpoints(folder).save(step, lambda path: (path / "weights").write_text("done"))
                    Path(folder, f"stopped-{rank}").write_text(f"{step} {stop.received}")
                    break
"""
ONE_RANK = f"""{LOOP}
    loop(Path(sys.argv[1]), 0)
"""
TWO_RANKS = f"""{LOOP}
    import torch
    from nestling.distributed.ranks import on_rank_zero
    from nestling.checkpoint import open_run_folder
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    seen = [on_rank_zero(lambda: rank), any_rank(rank == 1), any_rank(False)]
    for name in ("new", "taken"):
        try:
            with open_run_folder(folder / name, {{}}, resume=False) as run:
                seen.append(run.resumed)
        except FileExistsError as error:
            seen.append(str(error).split(";")[0].split("/")[-1])
    Path(folder, f"rank-{{rank}}").write_text(repr(seen))
    loop(folder, rank)
    torch.distributed.destroy_process_group()
"""


@contextmanager
def launched(folder: Path, script: str, launcher: list[str], ranks: int) -> Iterator["subprocess.Popen[str]"]:
    """Run a script in a process group of its own until each rank has done a step; what is left of it is killed."""
    (folder / "script.py").write_text(textwrap.dedent(script))
    process = warm.Popen(
        [sys.executable, *launcher, str(folder / "script.py"), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("ready-*"))) < ranks and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_the_process_group_saves_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path, ONE_RANK, [], ranks=1) as process:
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    path = Checkpoints(tmp_path).recover()
    assert path is not None, errors
    assert f"step-{(tmp_path / 'stopped-0').read_text()}" == f"{path.name} {int(number)}"
    assert process.returncode == 0


HUNG_UP = """
    import sys, time
    from pathlib import Path
    from nestling.checkpoint import StopSignal
    with StopSignal() as stop:
        Path(sys.argv[1], "ready-0").touch()
        while stop.received is None:
            print("a step", flush=True)
            time.sleep(0.01)
        print("saving", flush=True)
        print("saving", file=sys.stderr, flush=True)
        Path(sys.argv[1], "saved").touch()
"""


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    """Where a write to it fails, and the hang-up comes as a signal."""
    (tmp_path / "script.py").write_text(textwrap.dedent(HUNG_UP))
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, str(tmp_path / "script.py"), str(tmp_path)])
    while not (tmp_path / "ready-0").exists():
        os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "saved").exists()


def test_a_pipe_that_nobody_reads_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(HUNG_UP).replace('print("a step", flush=True)', "pass"))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()) as process:
        while not (tmp_path / "ready-0").exists():
            time.sleep(0.01)
        assert process.stdout is not None
        process.stdout.close()
        process.terminate()
    assert process.returncode == 0
    assert (tmp_path / "saved").exists()


def test_ranks_fail_together_and_stop_at_the_same_step(tmp_path: Path) -> None:
    """Also what rank 0 returns and raises; the launcher is the one that gets the signal."""
    (tmp_path / "taken" / "thesis").mkdir(parents=True)
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
    ]
    with launched(tmp_path, TWO_RANKS, torchrun, ranks=2) as process:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    expected = repr(
        [
            0,
            True,
            False,
            False,
            "taken exists and is not empty, but has no config.yaml, so there is no run to resume in it",
        ]
    )
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == [expected] * 2, errors
    assert json.loads((tmp_path / "new" / "run.json").read_text())["launches"][0]["world_size"] == 2
    (step,) = Checkpoints(tmp_path).steps()
    assert [(tmp_path / f"stopped-{rank}").read_text().split()[0] for rank in (0, 1)] == [str(step)] * 2, errors


def test_non_finite_steps_are_skipped_and_too_many_in_a_row_raise() -> None:
    guard = NonFiniteGuard(limit=3)
    nan, inf = float("nan"), float("inf")
    pairs = [(1.0, 1.0), (nan, 1.0), (1.0, inf), (1.0, 0.0), (inf, inf), (1.0, nan)]
    assert [guard.accepts(step, *pair) for step, pair in enumerate(pairs)] == [True, False, False, True, False, False]
    assert (guard.skipped, guard.in_a_row) == (4, 2)
    with pytest.raises(
        FloatingPointError, match=r"step 6: 3 steps in a row .*loss nan, gradient norm 0.5.*learning rate"
    ):
        guard.accepts(6, nan, 0.5)


def test_steps_of_exactly_0_in_a_row_are_counted() -> None:
    guard, nan = ZeroGuard(limit=3), float("nan")
    taught_nothing = [
        (0.0, 0.0),
        (0.0, 0.0),
        (0.0, 1e-30),
        (0.0, 0.0),
        (1e-30, 0.0),
        (0.0, nan),
        (0.0, 0.0),
        (0.0, 0.0),
    ]
    assert not any(guard.reached(*step) for step in taught_nothing)
    assert guard.in_a_row == 2
    assert guard.reached(0.0, 0.0)
