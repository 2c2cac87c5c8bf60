"""What asking will take, before anything is asked: prompts as they will be, and how long they are."""

from dataclasses import dataclass

from nestling.synthesis.answers import Setup
from nestling.synthesis.prompts import query_prompt, setup_prompt
from nestling.synthesis.task import Task

# Of English and, in UTF-8, of Chinese in the tokenizers of today's models, roughly.
BYTES_PER_TOKEN = 4
SAMPLE = 200


@dataclass(frozen=True)
class Estimate:
    """Requests and prompt tokens, if every answer can be used at once.

    Args:
        requests: Two a document.
        tokens: Of all prompts.
    """

    requests: int
    tokens: int


def prompts_of(task: Task, number: int) -> tuple[str, str]:
    """Both prompts of a document, the second as if the model had chosen what comes first."""
    passage, brief, choices = task.passages.seen(number), task.brief(number), task.choices
    setup = Setup(brief.characters[0], next(iter(choices.question_types)), next(iter(choices.difficulties)))
    second = query_prompt(passage, setup.character, setup.question_type, setup.difficulty, brief, choices)
    return setup_prompt(passage, brief, choices), second


def estimate(task: Task) -> Estimate:
    """From the prompts of the first documents, which are drawn."""
    sample = min(len(task), SAMPLE)
    size = sum(len(prompt.encode()) for number in range(sample) for prompt in prompts_of(task, number))
    return Estimate(2 * len(task), round(size / BYTES_PER_TOKEN / sample * len(task)))
