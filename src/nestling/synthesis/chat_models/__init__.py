"""Chat models: behind a server with OpenAI's API, or loaded in this process."""

from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from nestling.synthesis.conversation import ChatRequest, Completion

RecordedConversation = Generator[ChatRequest, Completion, object]


class ChatModel(Protocol):
    """A model that answers the requests of conversations.

    Attributes:
        requests: Number of requests sent, including retries.
    """

    requests: int

    def run_conversations(self, conversations: Iterator[RecordedConversation], done: Callable[[], None]) -> None:
        """Run all conversations, several at a time; `done` is called after each.

        For a request that gets no completion, `NoAnswer` is thrown into its conversation.

        Raises:
            ValueError: The model cannot be used at all.
        """
