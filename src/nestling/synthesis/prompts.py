"""What the model is told: a prompt for each of the two steps, and what is wrong with an answer."""

from collections.abc import Mapping, Sequence

import xxhash

from nestling.synthesis.brief import OWN_LANGUAGE, Brief, Choices

SETUP = """\
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

AGAIN = """\
That answer cannot be used: {reason}. Answer again, with one JSON object in the form that was asked for and nothing \
else."""


def setup_prompt(passage: str, brief: Brief, choices: Choices) -> str:
    """Ask for the searcher, the type of query and its difficulty."""
    return SETUP.format(
        passage=passage,
        characters=numbered(brief.characters),
        question_types=explained(choices.question_types),
        difficulties=explained(choices.difficulties),
    )


def query_prompt(
    passage: str, character: str, question_type: str, difficulty: str, brief: Brief, choices: Choices
) -> str:
    """Ask for the query, after the model's own decisions."""
    return QUERY.format(
        passage=passage,
        character=character,
        question_type=question_type,
        type_meaning=choices.question_types[question_type],
        difficulty=difficulty,
        difficulty_meaning=choices.difficulties[difficulty],
        least=brief.least,
        most=brief.most,
        language="that of the passage" if brief.language == OWN_LANGUAGE else brief.language,
    )


def numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def explained(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {meaning}" for name, meaning in items.items())


def wording() -> str:
    """What tells whether answers were given to the same prompts."""
    return xxhash.xxh3_64_hexdigest((SETUP + QUERY + AGAIN).encode())
