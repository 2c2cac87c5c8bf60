"""Estimate of the requests and prompt tokens of a run, without sending any."""

from dataclasses import dataclass

from nestling.synthesis.prompts import configuration_prompt, query_prompt
from nestling.synthesis.query_spec import QueryConfiguration
from nestling.synthesis.task import SynthesisTask

# Roughly, for English and (in UTF-8) Chinese in the tokenizers of current models.
BYTES_PER_TOKEN = 4
SAMPLE = 200  # documents


@dataclass(frozen=True)
class Estimate:
    """Requests and tokens if the first answer in each step is valid.

    Args:
        requests: Two for each document.
        tokens: Tokens of all prompts.
    """

    requests: int
    tokens: int


def prompts_of(task: SynthesisTask, index: int) -> tuple[str, str]:
    """Both prompts of a document; the second one for the first persona, type of query and difficulty."""
    passage, spec, options = task.passages.visible_text(index), task.spec(index), task.options
    configuration = QueryConfiguration(
        spec.personas[0], next(iter(options.question_types)), next(iter(options.difficulties))
    )
    return configuration_prompt(passage, spec, options), query_prompt(passage, configuration, spec, options)


def estimate(task: SynthesisTask) -> Estimate:
    """Estimate from the prompts of the first `SAMPLE` documents, which are in random order."""
    sample = min(len(task), SAMPLE)
    size = sum(len(prompt.encode()) for index in range(sample) for prompt in prompts_of(task, index))
    return Estimate(2 * len(task), round(size / BYTES_PER_TOKEN / sample * len(task)))
