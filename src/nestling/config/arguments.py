"""From a YAML file and command-line flags to a frozen dataclass."""

import atexit
import gc
import json
import re
import sys
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from nestling.config.retired import retired
from nestling.config.yaml_files import read_yaml, require_no_classes_in_flags
from nestling.disk_errors import find_write_error
from nestling.gpu import set_environment, set_up_torch
from nestling.processes import discard_unwritable_output, end_with_starter
from nestling.terminal import print_printable
from nestling.threads import limit_threads

Config = TypeVar("Config")

# The forms in which jsonargparse reports a key that it does not know: a flag, a key of the file, a key inside another.
UNKNOWN_KEY = re.compile(
    r"[Uu]nrecognized arguments: --([\w.]+)|[Kk]ey '([\w.]+)' is not expected"
    r"|[Oo]ption '([\w.]+)' is not accepted|does not accept option '([\w.]+)'"
)

# And a text in place of a section or of a list's item, which it takes for the name of a class.
TEXT_AS_ITEM = re.compile(r"Parser key \"([\w.]+)\":.*?Importing ('[^']*') is not allowed")

# And a value that is not one of those to choose from.
NO_CHOICE = re.compile(r"Parser key \"([\w.]+)\": Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)$")


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help that keeps the lines of a recipe's docstring, commands among them."""


class CheckedConfigFile(ActionConfigFile):
    """`--config FILE.yaml`, of which nothing is parsed before `read_yaml` has found it harmless."""

    def __call__(self, parser, cfg, values, option_string=None) -> None:  # type: ignore[no-untyped-def]
        if Path(values).is_file():
            read_yaml(Path(values))
        super().__call__(parser, cfg, values, option_string)


def parse_config(cls: type[Config], description: str | None, argv: list[str] | None = None) -> Config:
    """Fill the dataclass `cls` from `--config FILE.yaml` and flags; on bad input print one line and exit with status 2.

    Lists of values may be written with commas (`--dims 256,128,64`); lists of datasets as paths with commas; names of
    columns as `--columns query=title,positive=body`. Every script calls this before it imports torch, so it also limits
    the threads of OpenMP (`nestling.threads`) and sets the environment of a GPU (`nestling.gpu`).
    """
    parser = build_parser(cls, description)
    words = sys.argv[1:] if argv is None else argv
    try:
        require_no_classes_in_flags(words)
        arguments = bracket_lists(cls, words)
        parsed = parser.parse_args(arguments)
        parser.validate(parsed, skip_unset=False)  # a null of a file, which parsing takes for a key that is not given
        parsed.pop("config", None)
        limit_threads()
        set_environment()
        return cls(**parser.instantiate(parsed).as_dict())
    except (ArgumentError, ValueError, TypeError) as error:
        fail(explain(error, cls))


def build_parser(cls: type, description: str | None) -> ArgumentParser:
    """A parser with a flag for every setting, and for nothing else."""
    import_no_classes()
    parser = ArgumentParser(
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=Formatter,
        print_config=None,
        epilog="\n\n".join(explained_items(cls)),
    )
    parser.add_argument("--config", action=CheckedConfigFile, help="YAML file; flags after it override its keys.")
    parser.add_class_arguments(cls, fail_untyped=True)
    sections = {f"--{name}" for name, hint in get_type_hints(cls).items() if is_dataclass(hint)}
    for action in list(parser._actions):  # jsonargparse's own: `--loss FILE` for a section, `--train.help` for a list
        if sections.intersection(action.option_strings) or action.dest.endswith(".help"):
            remove_flag(parser, action)
    return parser


def import_no_classes() -> None:
    """Forbid jsonargparse to import what a value names, wherever it looks for that; our own settings it must."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=["nestling.config"], instantiate_subclass_spec_in_any=False
    )


def remove_flag(parser: ArgumentParser, action: Action) -> None:
    parser._remove_action(action)
    for group in parser._action_groups:
        if action in group._group_actions:
            group._group_actions.remove(action)
    for flag in action.option_strings:
        del parser._option_string_actions[flag]


def explained_items(cls: type) -> Iterator[str]:
    """Of each list of datasets and the like, the keys of an item with their explanations."""
    for name, item in list_fields(cls):
        if is_dataclass(item):
            keys = re.findall(r"^ +(\w+): (.+)$", item.__doc__ or "", re.M)
            yield "\n".join([f"Keys of each item of {name}, in YAML:", *(f"  {key:<22}{text}" for key, text in keys)])


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`, with torch as `nestling.gpu` sets it.

    Errors meant for users become one line and exit status 2, Ctrl-C status 130.
    """
    atexit.register(gc.freeze)  # else Python goes through all objects of torch and transformers at exit, for a second
    end_with_starter()
    print_printable()
    set_up_torch()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        unwritten = find_write_error(error)
        if unwritten is None and not isinstance(error, (ValueError, OSError, FloatingPointError)):
            raise
        fail(str(unwritten or error))


def fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    discard_unwritable_output()
    sys.exit(2)


def bracket_lists(cls: type, argv: list[str]) -> list[str]:
    """Rewrite `--dims 256,128` to `--dims [256,128]` and `--train a.jsonl,b.jsonl` to a list of datasets."""
    lists = {f"--{key}": item for key, item in list_fields(cls)} | dict.fromkeys(names_flags(cls), dict)
    split = [part for token in argv for part in (token.split("=", 1) if token.split("=", 1)[0] in lists else [token])]
    return [bracketed(token, lists[before]) if before in lists else token for before, token in pairwise(["", *split])]


def bracketed(value: str, item: type) -> str:
    if value.startswith(("[", "{")):
        return value
    if item is dict:
        pairs = [pair.split("=", 1) for pair in value.split(",")]
        return json.dumps(dict(pairs)) if all(len(pair) == 2 for pair in pairs) else value
    if is_dataclass(item):
        return json.dumps([{"path": path} for path in value.split(",")])
    if item is str:
        return json.dumps(value.split(",") if value else [])  # quoted, for YAML takes yes and no for booleans
    return f"[{value}]"


def list_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted names of the fields of `cls` that are lists, each with the type of its items."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from list_fields(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif get_origin(hint) is list:
            yield prefix + name, get_args(hint)[0]


def names_flags(cls: type) -> list[str]:
    """The flags of the fields of `cls` that map names to names."""
    return [f"--{name}" for name, hint in get_type_hints(cls).items() if hint == dict[str, str]]


def known_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, `lora.r` for instance; those of a list's items come without an index."""
    hints = get_type_hints(cls)
    for each in fields(cls):
        hint = hints[each.name]
        inner = get_args(hint)[0] if get_origin(hint) is list else hint
        yield prefix + each.name
        if is_dataclass(inner):
            yield from known_keys(inner, f"{prefix}{each.name}.")  # type: ignore[arg-type]


def explain(error: Exception, cls: type) -> str:
    """The parser's message in one line; of an unknown key, what it is called now, or the nearest one."""
    message = " ".join(str(error).split())
    unknown, text = UNKNOWN_KEY.search(message), TEXT_AS_ITEM.search(message)
    if text is not None:
        return f"{text[1]}: found the text {text[2]}, expected an item's keys with their values; --help lists them"
    if unknown is None:
        return explain_choice(message)
    key = next(group for group in unknown.groups() if group)
    known = list(known_keys(cls))
    inside = next((name for name in known if name.startswith(f"{key}.")), None)
    if inside is not None:
        return f"'{key}' is a section; give its keys, --{inside} for instance"
    now = retired(key, set(known))
    if now is not None:
        return f"unknown key '{key}'; {now}"
    near = get_close_matches(key, known, n=1) or get_close_matches(key, [name.rsplit(".")[-1] for name in known], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "; --help lists the keys"
    return f"unknown key '{key}'{hint}"


def explain_choice(message: str) -> str:
    """The parser's message; of a value that cannot be chosen, with the nearest that can."""
    found = NO_CHOICE.search(message)
    if found is None:
        return message
    key, choices, given = found.groups()
    known = re.findall("'(.*?)'", choices)
    near = [name for name in known if name.startswith(given)] or get_close_matches(given, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{key} is '{given}', expected one of {choices}{hint}"
