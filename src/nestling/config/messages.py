"""The parser's errors in the words of users: what was given, what was expected, what was probably meant."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nestling.config.retired import retired

EXPECTED = re.compile(r"Expected a (?:typing\.)?(?:Literal\[([^\]]*)\]|<class '(\w+)'>)")
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "names, as in query=title,positive=body",
    "NoneType": "null",
}


def explain(error: Exception, cls: type) -> str:
    """The parser's message in one line, in words of ours where its form is known."""
    message = " ".join(str(error).split())
    for form, words in FORMS.items():
        found = re.search(form, message)
        if found is not None:
            return words(found, cls)
    return message


def unknown_key(found: re.Match[str], cls: type) -> str:
    """Of a key that no setting has: what it is called now, or the nearest one."""
    key = next(group for group in found.groups() if group)
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


def text_as_item(found: re.Match[str], cls: type) -> str:
    """Of a text in place of a section or of a list's item, which jsonargparse takes for the name of a class."""
    return f"{found[1]}: found the text {found[2]}, expected an item's keys with their values; --help lists them"


def wrong_value(found: re.Match[str], cls: type) -> str:
    """Of a value that its key cannot have: the values or types that it can, and of those the nearest."""
    names = ": ".join(filter(None, [found[1], found[2]]))
    value, choices, types = found[3], [], []
    for literal, kind in EXPECTED.findall(found[0]):
        choices += [each.strip(" '\"") for each in literal.split(",") if literal]
        types += [TYPES.get(kind, kind)] if kind else []
    near = [each for each in choices if each.startswith(value)] or get_close_matches(
        value.lower(), choices, n=1, cutoff=0.5
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{names} is {value!r}, expected {alternatives([*choices, *dict.fromkeys(types)])}{hint}"


def joined_key(found: re.Match[str], cls: type) -> str:
    """Of a key and its value without a blank between, which YAML takes for one long key."""
    key, value = found[1], found[2]
    return f"'{key}:{value}' has no blank behind the colon, so that YAML takes it for a key; write {{{key}: {value}}}"


def no_value(found: re.Match[str], cls: type) -> str:
    """Of a flag at the end, or before another flag."""
    hint = type_of(found[1], cls)
    words = "true" if hint is bool else alternatives(literals(hint)) or "VALUE"
    return f"--{found[1]} has no value; write --{found[1]} {words}"


def no_config_file(found: re.Match[str], cls: type) -> str:
    return f"--config {found[2]}: " + ("no such file" if found[1] == "File does not exist" else "not a file")


def missing(found: re.Match[str], cls: type) -> str:
    return "missing: " + ", ".join(f"--{name}" for name in found[1].split(", "))


def stray_word(found: re.Match[str], cls: type) -> str:
    return f"{found[1]!r} belongs to no flag; a value stands behind its flag, and several with commas between them"


# The forms of jsonargparse's messages: an unknown flag, an unknown key of a file or inside another, and so on.
FORMS: dict[str, Callable[[re.Match[str], type], str]] = {
    r"Parser key \"([\w.]+)\":.*?Importing ('[^']*') is not allowed": text_as_item,
    r"[Oo]ption '(\w+):([^']+)' is not accepted": joined_key,
    r"[Uu]nrecognized arguments: --([\w.-]+)|[Kk]ey '([\w.-]+)' is not expected"
    r"|[Oo]ption '([\w.-]+)' is not accepted|does not accept option '([\w.-]+)'": unknown_key,
    r"^Parser key \"([\w.]+)\":(?: Problem with given class_path '[^']*': Parser key \"([\w.]+)\":)?"
    r".*Expected a.* (?:Got|Given) value: (.*)$": wrong_value,
    r"argument --([\w.]+)\S*: expected one argument": no_value,
    r"Parser key \"config\": (File does not exist|Path is not a file): '(.*)'": no_config_file,
    r"the following arguments are required: (.*)": missing,
    r"unrecognized arguments: ([^-\s]\S*)": stray_word,
}


def alternatives(words: Sequence[str]) -> str:
    """Words as a list with "or" before the last one."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def type_of(key: str, cls: type) -> Any:
    """The type of a setting by its dotted name; None if there is none."""
    name, _, rest = key.partition(".")
    hint = get_type_hints(cls).get(name)
    return type_of(rest, hint) if rest and is_dataclass(hint) else hint  # type: ignore[arg-type]


def literals(hint: Any) -> list[str]:
    """The words that a setting of a type can be, perhaps besides null."""
    parts = get_args(hint) if get_origin(hint) is not Literal else (hint,)
    return [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]


def known_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, `lora.r` for instance; those of a list's items come without an index."""
    hints = get_type_hints(cls)
    for each in fields(cls):
        hint = hints[each.name]
        inner = get_args(hint)[0] if get_origin(hint) is list else hint
        yield prefix + each.name
        if is_dataclass(inner):
            yield from known_keys(inner, f"{prefix}{each.name}.")  # type: ignore[arg-type]
