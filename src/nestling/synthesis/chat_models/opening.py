"""Open the chat model that a script's settings name."""

from pathlib import Path

from nestling.api_keys import read_api_key
from nestling.config import EndpointConfig, require, require_extra
from nestling.synthesis.chat_models import ChatModel


def open_chat_model(
    model: str, endpoint: EndpointConfig, *, temperature: float, max_tokens: int, batch_size: int
) -> ChatModel:
    """The model behind the endpoint, or without one the model of a directory, in this process.

    Args:
        model: Name of the model at the endpoint, or a directory.
        endpoint: The server.
        temperature: Temperature of sampling.
        max_tokens: Longest answer in tokens.
        batch_size: Prompts at a time of a model in this process.
    """
    if endpoint.url is None:
        from nestling.synthesis.chat_models.local import LocalModel

        return LocalModel.from_pretrained(
            Path(model), temperature=temperature, max_tokens=max_tokens, batch_size=batch_size
        )
    from nestling.synthesis.chat_models.endpoint import Endpoint

    return Endpoint(
        endpoint.url,
        model,
        read_api_key("endpoint.api_key_env", endpoint.api_key_env),
        concurrency=endpoint.concurrency,
        requests_per_minute=endpoint.requests_per_minute,
        timeout=endpoint.timeout,
        retries=endpoint.retries,
        body={"temperature": temperature, "max_tokens": max_tokens, **endpoint.body},
    )


def check_chat_model(model: str, endpoint: EndpointConfig) -> None:
    """Raise ValueError, before anything is loaded, for a model that could not be opened."""
    if endpoint.url is not None:
        require_extra("an endpoint", "synthesis", "openai", "aiolimiter")
        read_api_key("endpoint.api_key_env", endpoint.api_key_env)
    else:
        require(
            Path(model).is_dir(),
            f"--model {model}: no such directory; give one, or an --endpoint.url that serves the model",
        )
