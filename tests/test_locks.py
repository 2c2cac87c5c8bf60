"""Claims of outputs by real processes: who is refused, and what is left after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nestling.files import replace_text
from nestling.locks import ABANDONED_SECONDS, claim

HOLDS = """
import sys, time
from pathlib import Path
from nestling.locks import claim
with claim(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "weights").write_text("some")
    print(partial.name, flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that has claimed a path and written to it, and the name of its temporary folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, after which nothing is tidied up."""
    process.kill()
    process.communicate()


def test_of_two_processes_one_is_refused_until_the_other_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "model"
    process, partial = holder(path)
    refusal = f"model is being written by process {process.pid} on .*; wait for it, or choose another name"
    for _ in range(2):
        with pytest.raises(ValueError, match=refusal):
            replace_text(path, "ours")
    replace_text(tmp_path / "other", "ours")
    assert {each.name for each in tmp_path.iterdir()} == {".model.partial.lock", partial, "other"}
    end(process)
    replace_text(path, "ours")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "other"]


def test_what_killed_processes_left_is_removed_with_the_next_output_of_the_folder(tmp_path: Path) -> None:
    end(holder(tmp_path / "model")[0])
    lock_file = tmp_path / ".model.partial.lock"
    similar = tmp_path / ".model.v2.0123abcd.partial"
    similar.touch()
    replace_text(tmp_path / "first", "")
    assert lock_file.exists(), "it may be of a process that is about to lock it"
    long_ago = lock_file.stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(lock_file, (long_ago, long_ago))
    replace_text(tmp_path / "second", "")
    assert sorted(each.name for each in tmp_path.iterdir()) == [similar.name, "first", "second"]


def test_an_old_lock_that_is_held_is_left_alone(tmp_path: Path) -> None:
    process, partial = holder(tmp_path / "model")
    long_ago = (tmp_path / ".model.partial.lock").stat().st_mtime - 7 * ABANDONED_SECONDS
    os.utime(tmp_path / ".model.partial.lock", (long_ago, long_ago))
    replace_text(tmp_path / "other", "")
    assert (tmp_path / partial / "weights").exists()
    with pytest.raises(ValueError, match="is being written"):
        replace_text(tmp_path / "model", "")
    end(process)


def test_a_process_may_claim_again_and_keeps_what_it_has(tmp_path: Path) -> None:
    """A script claims its outputs before it computes them; what writes one claims it too, under another name of it."""
    path, link = tmp_path / "out" / "model", tmp_path / "link"
    path.parent.mkdir()
    link.symlink_to(path.parent)
    code = "import sys; from pathlib import Path; from nestling.files import replace_text\n"
    code += "replace_text(Path(sys.argv[1]), '')"
    with claim(path) as outer, claim(path.with_name("audit")):
        os.utime(path.with_name(".model.partial.lock"), (0, 0))
        with claim(link / "model") as inner:
            assert inner == outer
        replace_text(path, "ours")
        replace_text(path, "ours again")
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert f"{path} is being written by process {os.getpid()} on" in done.stderr
    assert [each.name for each in path.parent.iterdir()] == ["model"]
    assert path.read_text() == "ours again"


def test_a_forked_process_has_claimed_nothing(tmp_path: Path) -> None:
    with claim(tmp_path / "model"):
        process = os.fork()
        if not process:
            try:
                replace_text(tmp_path / "model", "")
            except ValueError:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
