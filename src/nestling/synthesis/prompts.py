"""The prompts of the steps, and the message about an invalid answer."""

from collections.abc import Mapping, Sequence

import xxhash

from nestling.synthesis.query_spec import (
    CRITERIA,
    DOCUMENT_LANGUAGE,
    MULTI_HOP_CRITERIA,
    QueryConfiguration,
    QueryOptions,
    QuerySpec,
    criteria_of,
)

CONFIGURATION = """\
Below {are_passages} from the collection of a search engine. Picture someone who would be glad to find {them}, and \
decide how this person would search for {them}.

{passages}

Decide three things:

"character": whom of these people {the_passages} can serve best, as a number.
{characters}

"question_type": which kind of query this person would send that {the_passages} can answer well, as a name.
{question_types}

"difficulty": how much knowledge of the subject the query shows, as a name.
{difficulties}

Answer with one JSON object and nothing else, in this form:
{{"character": number, "question_type": "name", "difficulty": "name"}}"""

QUERY = """\
Below {are_passages} from the collection of a search engine. Write the query with which the following person looks \
for what {the_passages} can tell.

Person: {character}
Kind of query: {question_type} ({type_meaning})
Difficulty: {difficulty} ({difficulty_meaning})
Length: {least} to {most} words
Language: {language}

{passages}

{rule} The person shapes the query but does not describe themselves in it.

Answer with one JSON object and nothing else, in this form:
{{"query": "…"}}"""

RULE = """\
The passage has to answer the query, and the query has to name its subject, so that other passages of the collection \
do not answer it as well. The person has not seen the passage: do not mention it, and do not repeat its sentences."""

MULTI_HOP_RULE = """\
The query has to need all of the passages: together they answer it, and none of them does alone, since the answer \
takes something from each. It is one question, not several in a row, and it has to name its subject, so that other \
passages of the collection do not answer it as well. The person has not seen the passages: do not mention them, and do \
not repeat their sentences."""

JUDGEMENT = """\
Below are a query to a search engine and {number_of_passages} from its collection. Grade the query from 1 \
(not at all) to 5 (fully) by each of these criteria, strictly and without regard to the others:

{criteria}

Query: {query}

{passages}

Answer with one JSON object and nothing else, in this form:
{{{form}}}"""

RETRY = """\
That answer cannot be used: {reason}. Answer again, with one JSON object in the form that was asked for and nothing \
else."""


def configuration_prompt(passages: Sequence[str], spec: QuerySpec, options: QueryOptions) -> str:
    """The prompt of the configuration step, which asks for persona, type of query and difficulty."""
    return CONFIGURATION.format(
        **passage_words(passages),
        characters=numbered(spec.personas),
        question_types=bulleted(options.question_types),
        difficulties=bulleted(options.difficulties),
    )


def query_prompt(
    passages: Sequence[str], configuration: QueryConfiguration, spec: QuerySpec, options: QueryOptions
) -> str:
    """The prompt of the query generation step, which asks for a query of a configuration."""
    of_the_document = "that of the passage" if len(passages) == 1 else "that of the passages"
    return QUERY.format(
        **passage_words(passages),
        rule=RULE if len(passages) == 1 else MULTI_HOP_RULE,
        character=configuration.character,
        question_type=configuration.question_type,
        type_meaning=options.question_types[configuration.question_type],
        difficulty=configuration.difficulty,
        difficulty_meaning=options.difficulties[configuration.difficulty],
        least=spec.least,
        most=spec.most,
        language=of_the_document if spec.language == DOCUMENT_LANGUAGE else spec.language,
    )


def judgement_prompt(passages: Sequence[str], query: str) -> str:
    """The prompt of the judgement step, which asks for a grade by each criterion."""
    criteria = criteria_of(len(passages))
    form = ", ".join(f'"{name}": number' for name in criteria)
    return JUDGEMENT.format(**passage_words(passages), query=query, criteria=bulleted(criteria), form=form)


def passage_words(passages: Sequence[str]) -> dict[str, str]:
    """The passages as the prompts show them, and how the prompts speak of one or of several."""
    one, number = len(passages) == 1, f"{len(passages)} passages"
    return {
        "passages": "\n\n".join(f"<passage>\n{passage}\n</passage>" for passage in passages),
        "number_of_passages": "a passage" if one else number,
        "are_passages": "is a passage" if one else f"are {number}",
        "them": "it" if one else "them all",
        "the_passages": "the passage" if one else "the passages together",
    }


def numbered(items: Sequence[str]) -> str:
    """Lines of the form `1. item`."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def bulleted(items: Mapping[str, str]) -> str:
    """Lines of the form `- name: meaning`."""
    return "\n".join(f"- {name}: {meaning}" for name, meaning in items.items())


def prompt_digest() -> str:
    """Hash of the prompt templates, by which a journal is known to belong to the same prompts."""
    criteria = bulleted(CRITERIA) + bulleted(MULTI_HOP_CRITERIA)
    templates = CONFIGURATION + QUERY + RULE + MULTI_HOP_RULE + JUDGEMENT + criteria + RETRY
    return xxhash.xxh3_64_hexdigest(templates.encode())
