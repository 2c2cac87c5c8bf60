"""Models that write: behind a server with OpenAI's API, or loaded here."""

from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from nestling.synthesis.conversation import Question, Reply

Talk = Generator[Question, Reply, object]


class Writer(Protocol):
    """A model that holds conversations.

    Attributes:
        requests: Prompts that it was given, those that were sent again among them.
    """

    requests: int

    def hold(self, talks: Iterator[Talk], done: Callable[[], None]) -> None:
        """Answer the questions of all conversations, several at a time; `done` is called as each ends.

        A question that gets no answer is answered with a `NoAnswer` thrown into its conversation.

        Raises:
            ValueError: The model cannot be asked at all.
        """
