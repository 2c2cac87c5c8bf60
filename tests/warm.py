"""Python processes that start warm: forks of one that has imported the large libraries, and done nothing else.

`Popen` and `run` stand for those of `subprocess`. A command of this interpreter that they start is a real process: with
an id, a parent, a group and a fate of its own. It has not loaded anything of Nestling, and the processes that it starts
in turn are forks of the same unused state. What cannot start so starts as ever: other programs, other values of
variables that are read while a library loads, systems other than Linux.
"""

import atexit
import builtins
import ctypes
import gc
import importlib
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# The slow imports of recipes, scripts, gates and ranks.
LIBRARIES = (
    "accelerate",
    "matplotlib.pyplot",
    "peft",
    "pyarrow.parquet",
    "pytest",
    "sentence_transformers",
    "torch.distributed.run",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.qwen3.modeling_qwen3",
)
READ_AT_IMPORT = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONHASHSEED", "PYTHONWARNINGS")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}
STOPS = (signal.SIGINT, signal.SIGTERM)
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Request:
    """A process to be started.

    Attributes:
        command: The arguments of Python.
        variables: The whole environment.
        folder: The current one.
        session: Whether it leads a session of its own.
        group: Of processes, that it joins; 0 makes one, -1 is that of its parent.
    """

    command: list[str]
    variables: dict[str, str]
    folder: str
    session: bool
    group: int


class ForkServer:
    """A process that forks; what it forks becomes a child of the one that asks."""

    def __init__(self, channel: socket.socket, variables: Mapping[str, str]) -> None:
        self.channel = channel
        self.variables = variables

    def fits(self, command: Sequence[str], variables: Mapping[str, str]) -> bool:
        """Whether a process started from here is as if it had started by itself."""
        python, *arguments = command
        first = arguments[arguments[:1] == ["-u"]] if arguments else ""
        return (
            python == sys.executable
            and (first in ("-c", "-m") or first.endswith(".py"))
            and all(variables.get(name) == self.variables.get(name) for name in READ_AT_IMPORT)
        )

    def fork(self, request: Request, files: Sequence[int]) -> int:
        """The id of a new process with these files as input, output and error output."""
        socket.send_fds(self.channel, [pickle.dumps(request)], files)
        answer = self.channel.recv(64)
        assert answer, "the process that forks others has ended"
        return int(answer)


fork_server: ForkServer | None = None  # of a warm process; a test's is `first_fork_server`
status: int | None = None  # that a warm process ends with, once it is known


@cache
def first_fork_server() -> ForkServer | None:
    """Started on first use, it ends when this process does."""
    if sys.platform != "linux":
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()
    variables = {**os.environ, **QUIET, "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # forks have one thread
    variables.pop("PYTHONPATH", None)  # each process has its own
    code = f"import sys; sys.path[0] = {str(Path(__file__).parent)!r}; import warm; warm.begin({theirs.fileno()})"
    command, files = [sys.executable, "-c", code], [theirs.fileno()]
    process = subprocess.Popen(command, env=variables, pass_fds=files, stdout=subprocess.DEVNULL)
    theirs.close()
    atexit.register(end, ours, process.wait)
    assert ours.recv(64), "the process that forks others did not start"
    return ForkServer(ours, variables)


def adopt_orphans() -> None:
    """A process below this one whose parent ends becomes our child, so that we are told how it ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Popen(subprocess.Popen[Any]):
    """A process that is forked from a fork server where that makes no difference but the time."""

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, restore_signals: Any, gid: Any, gids: Any, uid: Any, umask: Any,
        start_new_session: bool, process_group: int,
    ) -> None:  # fmt: skip
        single = isinstance(args, str | bytes | os.PathLike)
        command = [] if single or shell else [os.fsdecode(each) for each in args]
        variables = dict(os.environ if env is None else env)
        source = fork_server or (first_fork_server() if subprocess.Popen is not Popen else None)
        if source is None or not command or pass_fds or preexec_fn or not source.fits(command, variables):
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
            return
        folder = os.fsdecode(Path.cwd() if cwd is None else cwd)
        request = Request(command[1:], variables, folder, start_new_session, process_group)
        inherited = zip((p2cread, c2pwrite, errwrite), range(3), strict=True)
        self.pid = source.fork(request, [own if given == -1 else given for given, own in inherited])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(command: Sequence[str], *, timeout: float = 280, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; what it printed is text."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def begin(descriptor: int) -> None:
    """Import the libraries, then fork for whoever has the other end of a socket."""
    atexit.register(leave)  # before all others, and so called last
    subprocess.Popen = Popen  # type: ignore[misc]  # before anything imports it
    for name in LIBRARIES:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a library starts threads, which forks would lack"
    gc.collect()
    gc.freeze()  # pages stay shared
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # they are for what is forked, and wait until it is ready
    channel = socket.socket(fileno=descriptor)
    channel.send(b"ready")
    request = started(channel)
    try:
        become(request)
    except SystemExit as stop:
        keep_status(stop.code)
        raise
    except BaseException:
        keep_status(1)
        raise
    keep_status(0)


def keep_status(code: object) -> None:
    global status
    status = code if isinstance(code, int) else int(code is not None)


def leave() -> None:
    """End at once: to clear away thousands of modules takes half a second."""
    if status is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def started(channel: socket.socket) -> Request:
    """Fork for each request; returns in what was forked, which has a fork server for what it starts itself."""
    global fork_server
    while True:
        request = next_request(channel)
        settle(request)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.close()
        process = os.fork()
        if process:
            theirs.close()
            fork_server = ForkServer(ours, request.variables)
            adopt_orphans()
            atexit.register(end, ours, partial(os.waitpid, process, 0))
            return request
        ours.close()
        channel = theirs


def settle(request: Request) -> None:
    """Take the place among processes and folders that was asked for, and the environment."""
    if request.session:
        os.setsid()
    elif request.group >= 0:
        os.setpgid(0, request.group)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.variables)
    tempfile.tempdir = None


def end(channel: socket.socket, wait: Callable[[], object]) -> None:
    """End a fork server, also where another process has inherited our end of the socket."""
    channel.shutdown(socket.SHUT_RDWR)
    channel.close()
    wait()


def next_request(channel: socket.socket) -> Request:
    """Be a fork server; returns in what it forks, as a child of the process that asked."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        between = os.fork()  # which ends at once, so that its child goes to the process that asked
        if not between:
            process = os.fork()
            if process:
                os.write(writer, str(process).encode())
                os._exit(0)
        for number, file in enumerate(files):
            if not between:
                os.dup2(file, number)
            os.close(file)
        os.close(writer)
        if not between:
            os.close(reader)
            return pickle.loads(message)  # type: ignore[no-any-return]
        os.waitpid(between, 0)
        channel.send(os.read(reader, 64))
        os.close(reader)


def become(request: Request) -> None:
    """Run a command as Python would that starts now."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    np.random.seed()  # of which all forks would have the same; `random` does so itself
    option, *arguments = request.command[request.command[0] == "-u" :]
    if request.command[0] == "-u" or request.variables.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    own = {"-c": "", "-m": str(Path.cwd())}.get(option, str(Path(option).resolve().parent))
    given = request.variables.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [own, *filter(None, given), *sys.path[1:]]
    if option == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        execute(arguments[0], "<string>", [option, *arguments[1:]])
    else:
        execute(Path(option).read_bytes(), str(Path(option).absolute()), [option, *arguments])


def execute(source: str | bytes, file: str, argv: list[str]) -> None:
    """Run a program as the main module."""
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, **({} if argv[0] == "-c" else {"__file__": file}))
    sys.modules["__main__"], sys.argv = main, argv
    exec(compile(source, file, "exec"), main.__dict__)
