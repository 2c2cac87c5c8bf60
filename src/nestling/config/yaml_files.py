"""YAML files: their content as plain values, of bounded size, that name no classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# Most values of a file, aliases counted as often as they repeat what they name, and deepest nesting. A few lines of
# aliases of aliases stand for billions of values otherwise, which whatever walks through them would make.
MAX_VALUES, MAX_DEPTH = 100_000, 50
# libyaml's parser, where PyYAML was built with it, is ten times as fast; what it takes for valid differs in details, so
# that it only counts.
COUNTING = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: It is not valid, stands for too many values, is nested too deeply, or names classes.
    """
    try:
        text = path.read_text(encoding="utf-8")
        require_bounded(text)
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    require_no_classes(str(path), content)
    return content


def require_bounded(text: str, loader: Any = COUNTING) -> None:
    """Raise ValueError for a text with more values than `MAX_VALUES`, or nested more deeply than `MAX_DEPTH`."""
    sizes: dict[str, int] = {}  # by anchor
    unfinished: list[tuple[str | None, int]] = [(None, 0)]  # anchor and size so far of collections, outermost first
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            unfinished.append((event.anchor, 1))
            if len(unfinished) > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            continue
        anchor, size = None, 0
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = unfinished.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            size = size_of_alias(str(event.anchor), sizes, unfinished)
        if anchor is not None:
            sizes[anchor] = size
        outer, before = unfinished.pop()
        unfinished.append((outer, before + size))
        if before + size > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, repeated aliases among them")


def size_of_alias(anchor: str, sizes: Mapping[str, int], unfinished: Sequence[tuple[str | None, int]]) -> int:
    """Number of values that an alias stands for. Raises ValueError if it stands inside what it names."""
    if any(anchor == each for each, _ in unfinished):
        raise ValueError(f"the alias {anchor} stands inside itself")
    return sizes.get(anchor, 0)  # 0 where none is defined, of which PyYAML tells


def require_no_classes(name: str, content: object) -> None:
    """Raise ValueError for a key class_path anywhere, of which jsonargparse would import and call what it names.

    In texts too, which jsonargparse reads as YAML once more where any value may stand.
    """
    if isinstance(content, str):
        content = mapping_in(name, content)
    inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    if isinstance(content, Mapping) and "class_path" in content:
        raise ValueError(f"{name}: the key class_path names a class to import, and settings import none; remove it")
    for each in inner:
        require_no_classes(name, each)


def mapping_in(name: str, text: str) -> object:
    """What a text holds if it is YAML of a mapping, which has a colon or question mark; else the text itself.

    Raises:
        ValueError: It stands for too many values, or is nested too deeply.
    """
    if ":" not in text and "?" not in text:
        return text
    try:
        require_bounded(text, yaml.SafeLoader)  # as jsonargparse reads it: no mapping may pass for a text here
    except yaml.YAMLError:
        return text
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError for a date that is none
        return text


def require_no_classes_in_flags(arguments: Sequence[str]) -> None:
    """Raise ValueError for a key class_path in the words of a command line, in their names or their values."""
    for word in arguments:
        names, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
        require_no_classes("the command line", dict.fromkeys(names.removeprefix("--").split("."), value))
