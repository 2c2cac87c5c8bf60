"""From a YAML file and command-line flags to a frozen dataclass."""

import atexit
import gc
import json
import re
import sys
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)

from nestling.config.messages import explain, known_keys
from nestling.config.yaml_files import read_yaml, require_no_classes_in_flags
from nestling.disk_errors import find_write_error
from nestling.gpu import set_environment, set_up_torch
from nestling.processes import discard_unwritable_output, end_with_starter
from nestling.terminal import print_printable
from nestling.threads import limit_threads

Config = TypeVar("Config")


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help that keeps the lines of a recipe's docstring, commands among them."""


def config_file(cls: type) -> type[ActionConfigFile]:
    """`--config FILE.yaml` of a script, of which nothing is parsed before `read_yaml` has found it harmless."""

    class ConfigFile(ActionConfigFile):
        def __call__(self, parser, cfg, values, option_string=None) -> None:  # type: ignore[no-untyped-def]
            content = read_yaml(Path(values)) if Path(values).is_file() else None
            if isinstance(content, dict) and itemised(cls, content) != content:
                values = json.dumps(itemised(cls, content), default=str)
            super().__call__(parser, cfg, values, option_string)

    return ConfigFile


def itemised(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file whose lists may be written as in flags: one item, or several with commas, or paths."""
    hints = get_type_hints(cls)
    return {name: itemised_value(hints.get(name), value) for name, value in settings.items()}


def itemised_value(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return itemised(hint, value) if isinstance(value, dict) else value  # type: ignore[arg-type]
    item = item_of(hint)
    if item is None:
        return value
    items = split_items(value) if isinstance(value, str) else value
    if is_dataclass(item) and isinstance(items, list):
        return [{"path": each} if isinstance(each, str) else each for each in items]
    return [items] if isinstance(items, int) else items


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
    parser.add_argument("--config", action=config_file(cls), help="YAML file; flags after it override its keys.")
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
    argv = with_underscores(cls, argv)
    lists = {f"--{key}": item for key, item in list_fields(cls)} | dict.fromkeys(names_flags(cls), dict)
    split = [part for token in argv for part in (token.split("=", 1) if token.split("=", 1)[0] in lists else [token])]
    return [bracketed(token, lists[before]) if before in lists else token for before, token in pairwise(["", *split])]


def with_underscores(cls: type, argv: list[str]) -> list[str]:
    """Rewrite `--learning-rate` to `--learning_rate`, as transformers takes both, where that is a flag."""
    known = {f"--{key}" for key in known_keys(cls)}
    return [meant if (meant := underscored(token)).split("=", 1)[0] in known else token for token in argv]


def underscored(token: str) -> str:
    """A word of the command line with underscores in place of the hyphens inside a flag's name."""
    name, *value = token.split("=", 1)
    return "=".join(["--" + name[2:].replace("-", "_"), *value]) if name.startswith("--") else token


def bracketed(value: str, item: type) -> str:
    if value.startswith(("[", "{")):
        return value
    if item is dict:
        pairs = [pair.split("=", 1) for pair in value.split(",")]
        return json.dumps(dict(pairs)) if all(len(pair) == 2 for pair in pairs) else value
    if is_dataclass(item):
        return json.dumps([{"path": path} for path in value.split(",")])
    if item is str:
        return json.dumps(split_items(value))  # quoted, for YAML takes yes and no for booleans
    return value if value == "null" else f"[{value}]"


def split_items(text: str) -> list[str]:
    return text.split(",") if text else []


def item_of(hint: Any) -> Any:
    """The type of a list's items, also of a list that may be null; None for what is no list."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return next((get_args(each)[0] for each in kinds if get_origin(each) is list), None)


def list_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted names of the fields of `cls` that are lists, each with the type of its items."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from list_fields(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif (item := item_of(hint)) is not None:
            yield prefix + name, item


def names_flags(cls: type) -> list[str]:
    """The flags of the fields of `cls` that map names to names."""
    return [f"--{name}" for name, hint in get_type_hints(cls).items() if hint == dict[str, str]]
