"""API keys: from the environment, and out of messages."""

import pytest

from nestling.api_keys import mask, quoted, read_api_key, usable_key
from nestling.config import EndpointConfig, ServeCheckConfig
from nestling.serving.client import Server
from nestling.synthesis.chat_models.endpoint import Endpoint

KEY = "sk-Zq7vK2wX9rT4mB8n"


def test_white_space_around_a_key_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", f" {KEY}\r\n")
    assert read_api_key("--api_key_env", "TEST_KEY") == KEY
    assert read_api_key("--api_key_env", None) is None


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (f"{KEY}\n{KEY}", "U+000A"),
        (f"Bearer {KEY}", "U+0020 SPACE"),
        (f"{KEY}ä", "U+00E4 LATIN SMALL LETTER A WITH DIAERESIS"),
        (f"\N{LEFT DOUBLE QUOTATION MARK}{KEY}", "U+201C LEFT DOUBLE QUOTATION MARK"),
        (f"{KEY}\udc80", "U+DC80"),
    ],
)
def test_refused_characters_are_named_without_the_key(key: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", key)

    def settings() -> Endpoint:
        return Endpoint("http://localhost", "m", key, 1, None, 1, 0, {})

    for use in (lambda: read_api_key("--api_key_env", "TEST_KEY"), lambda: Server("http://h", key=key), settings):
        with pytest.raises(ValueError, match=f"the key holds .*{named[:6]}".replace("+", r"\+")) as error:
            use()
        assert named in str(error.value)
        assert not any(KEY[start : start + 4] in str(error.value) for start in range(len(KEY) - 3))


@pytest.mark.parametrize("variable", [KEY, "abcdef0123456789", "AKIAIOSFODNN7EXAMPLE"])
def test_a_key_in_place_of_its_variable_is_not_repeated(variable: str) -> None:
    with pytest.raises(ValueError, match="--api_key_env: the environment has no such variable") as error:
        read_api_key("--api_key_env", variable)
    assert variable not in str(error.value)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"key {KEY}.", "key ***."),
        (f"{KEY}{KEY}", "***"),
        (f"begins with {KEY[:8]}, ends with {KEY[-9:]}", "begins with ***, ends with ***"),
        (f"only {KEY[:7]}", f"only {KEY[:7]}"),
        ("", ""),
    ],
)
def test_a_key_and_its_parts_are_masked(text: str, masked: str) -> None:
    assert mask(text, KEY) == masked
    assert mask(text, None) == text


def test_short_keys_are_masked_whole() -> None:
    assert mask("a secret, and secre", "secret") == "a ***, and secre"


def test_quoted_is_one_short_line() -> None:
    assert quoted("a\n\tb\x1b[31m\u202ec", None) == "a b\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}c"
    assert quoted("x" * 295 + KEY, KEY) == "x" * 295 + "***"
    assert len(quoted("x" * 10**6, KEY)) == 300


def test_usable_keys_stay_as_they_are() -> None:
    assert usable_key(KEY, "") == KEY


@pytest.mark.parametrize("url", [f"https://user:{KEY}@example.org/v1", f"https://example.org/v1?key={KEY}"])
def test_secrets_in_an_address_are_refused_and_not_shown(url: str) -> None:
    for settings in (lambda: EndpointConfig(url=url), lambda: ServeCheckConfig(url=url, model="m")):
        with pytest.raises(ValueError, match="url: expected an address without user name, password and query") as error:
            settings()
        assert KEY not in str(error.value)
