"""The prompts of the steps, and the message about an invalid answer."""

from collections.abc import Mapping, Sequence

import xxhash

from nestling.synthesis.query_spec import CRITERIA, DOCUMENT_LANGUAGE, QueryConfiguration, QueryOptions, QuerySpec

CONFIGURATION = """\
Below is a passage from the collection of a search engine. Picture someone who would be glad to find it, and decide \
how this person would search for it.

<passage>
{passage}
</passage>

Decide three things:

"character": whom of these people the passage serves best, as a number.
{characters}

"question_type": which kind of query this person would send that the passage answers well, as a name.
{question_types}

"difficulty": how much knowledge of the subject the query shows, as a name.
{difficulties}

Answer with one JSON object and nothing else, in this form:
{{"character": number, "question_type": "name", "difficulty": "name"}}"""

QUERY = """\
Below is a passage from the collection of a search engine. Write the query with which the following person looks for \
what it says.

Person: {character}
Kind of query: {question_type} ({type_meaning})
Difficulty: {difficulty} ({difficulty_meaning})
Length: {least} to {most} words
Language: {language}

<passage>
{passage}
</passage>

The passage has to answer the query, and the query has to name its subject, so that other passages of the collection \
do not answer it as well. The person has not seen the passage: do not mention it, and do not repeat its sentences. \
The person shapes the query but does not describe themselves in it.

Answer with one JSON object and nothing else, in this form:
{{"query": "…"}}"""

JUDGEMENT = """\
Below are a query to a search engine and a passage from its collection. Grade the query from 1 (not at all) to \
5 (fully) by each of these criteria, strictly and without regard to the others:

{criteria}

Query: {query}

<passage>
{passage}
</passage>

Answer with one JSON object and nothing else, in this form:
{{{form}}}"""

RETRY = """\
That answer cannot be used: {reason}. Answer again, with one JSON object in the form that was asked for and nothing \
else."""


def configuration_prompt(passage: str, spec: QuerySpec, options: QueryOptions) -> str:
    """The prompt of the configuration step, which asks for persona, type of query and difficulty."""
    return CONFIGURATION.format(
        passage=passage,
        characters=numbered(spec.personas),
        question_types=bulleted(options.question_types),
        difficulties=bulleted(options.difficulties),
    )


def query_prompt(passage: str, configuration: QueryConfiguration, spec: QuerySpec, options: QueryOptions) -> str:
    """The prompt of the query generation step, which asks for a query of a configuration."""
    return QUERY.format(
        passage=passage,
        character=configuration.character,
        question_type=configuration.question_type,
        type_meaning=options.question_types[configuration.question_type],
        difficulty=configuration.difficulty,
        difficulty_meaning=options.difficulties[configuration.difficulty],
        least=spec.least,
        most=spec.most,
        language="that of the passage" if spec.language == DOCUMENT_LANGUAGE else spec.language,
    )


def judgement_prompt(passage: str, query: str) -> str:
    """The prompt of the judgement step, which asks for a grade by each of `CRITERIA`."""
    form = ", ".join(f'"{name}": number' for name in CRITERIA)
    return JUDGEMENT.format(passage=passage, query=query, criteria=bulleted(CRITERIA), form=form)


def numbered(items: Sequence[str]) -> str:
    """Lines of the form `1. item`."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def bulleted(items: Mapping[str, str]) -> str:
    """Lines of the form `- name: meaning`."""
    return "\n".join(f"- {name}: {meaning}" for name, meaning in items.items())


def prompt_digest() -> str:
    """Hash of the prompt templates, by which a journal is known to belong to the same prompts."""
    return xxhash.xxh3_64_hexdigest((CONFIGURATION + QUERY + JUDGEMENT + bulleted(CRITERIA) + RETRY).encode())
