"""API keys: read from the environment, usable in a header, and masked in whatever is shown."""

import os
import re
import unicodedata

# A name of an environment variable that no key looks like, and that an error may therefore repeat.
PLAIN_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
# Characters in a row of a key that are masked, so that no beginning or end of it is shown either.
MASKED_LENGTH = 8


def read_api_key(setting: str, variable: str | None) -> str | None:
    """The API key in an environment variable; None if no variable is set.

    Raises:
        ValueError: There is no such variable, or no header can carry its value; the value is not repeated.
    """
    if variable is None:
        return None
    named = f" {variable}" if PLAIN_NAME.fullmatch(variable) else ""
    key = os.environ.get(variable, "")
    if not key.strip():
        raise ValueError(
            f"{setting}{named}: the environment has no such variable, or it is empty; export the key there (the "
            "setting is the name of the variable, not the key itself)"
        )
    return usable_key(key, setting)


def usable_key(key: str, source: str) -> str:
    """A key without white space around it. Raises ValueError, without the key, for characters that a key cannot have.

    Args:
        key: The key.
        source: What an error begins with.
    """
    key = key.strip()
    refused = sorted({character for character in key if not "!" <= character <= "~"})
    if refused:
        names = ", ".join(f"U+{ord(each):04X} {unicodedata.name(each, '')}".strip() for each in refused[:5])
        raise ValueError(
            f"{source}: the key holds {names}; expected printable ASCII characters without spaces, and no 'Bearer' "
            "before them"
        )
    return key


def mask(text: str, key: str | None) -> str:
    """A text with *** in place of the key, and of every part of it that is `MASKED_LENGTH` characters or longer."""
    if not key:
        return text
    width = min(len(key), MASKED_LENGTH)
    parts = {key[start : start + width] for start in range(len(key) - width + 1)}
    pieces: list[str] = []
    shown_until = 0
    for start in range(len(text) - width + 1):
        if text[start : start + width] in parts:
            pieces += [] if pieces and start <= shown_until else [text[shown_until:start], "***"]
            shown_until = start + width
    return "".join([*pieces, text[shown_until:]])


def quoted(text: str, key: str | None, limit: int = 300) -> str:
    """What a server sent, fit for a message: one line without control characters and without the key, cut off."""
    line = " ".join(mask(text[: 8 * limit], key).split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)[:limit]
