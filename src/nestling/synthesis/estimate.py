"""Estimate of the requests and prompt tokens of a run, without sending any."""

from dataclasses import dataclass

from nestling.synthesis.prompts import configuration_prompt, judgement_prompt, query_prompt
from nestling.synthesis.query_spec import QueryConfiguration
from nestling.synthesis.task import SynthesisTask

# Roughly, for English and (in UTF-8) Chinese in the tokenizers of current models.
BYTES_PER_TOKEN = 4
SAMPLE = 200  # queries


@dataclass(frozen=True)
class Estimate:
    """Requests and tokens if the first answer in each step is valid.

    Args:
        requests: Two for each query, or three with its judgement.
        tokens: Tokens of all prompts.
    """

    requests: int
    tokens: int


def prompts_of(task: SynthesisTask, index: int) -> list[str]:
    """The prompts of a query; the second one for the first persona, type of query and difficulty."""
    passages, spec, options = task.visible_texts(index), task.spec(index), task.options_of(index)
    configuration = QueryConfiguration(
        spec.personas[0], next(iter(options.question_types)), next(iter(options.difficulties))
    )
    prompts = [configuration_prompt(passages, spec, options), query_prompt(passages, configuration, spec, options)]
    return prompts if task.min_grade is None else [*prompts, judgement_prompt(passages, "word " * spec.most)]


def estimate(task: SynthesisTask) -> Estimate:
    """Estimate from the prompts of the first `SAMPLE` queries, whose documents are in random order."""
    sample = min(len(task), SAMPLE)
    prompts = [prompt for index in range(sample) for prompt in prompts_of(task, index)]
    size = sum(len(prompt.encode()) for prompt in prompts)
    return Estimate(len(prompts) * len(task) // sample, round(size / BYTES_PER_TOKEN / sample * len(task)))
