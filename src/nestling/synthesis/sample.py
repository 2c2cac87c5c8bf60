"""An HTML page with the first queries of a run, for a person to look at before the others are paid for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nestling import __version__
from nestling.pages import page_environment
from nestling.synthesis.conversation import ConversationResult
from nestling.synthesis.journal import Journal
from nestling.synthesis.query_spec import GRADES
from nestling.synthesis.summary import Prices, Summary
from nestling.synthesis.task import NOT_ASKED, SynthesisTask


@dataclass(frozen=True)
class ShownQuery:
    """A query as it is shown.

    Args:
        query: The query, kept or not; empty if there is none.
        said: Whether it is kept, its grades, and what it was to be.
        passages: What the model saw.
    """

    query: str
    said: str
    passages: Sequence[str]


def sample_results(task: SynthesisTask, journal: Journal, count: int) -> Iterator[tuple[int, ConversationResult]]:
    """(index, result) of the first queries, in the order in which they are asked for."""
    for index in range(count):
        why = journal.unanswered.get(task.query_id(index), NOT_ASKED)
        yield index, task.result(index, journal) or ConversationResult(None, None, why, ())


def render_sample(
    title: str, task: SynthesisTask, results: Sequence[tuple[int, ConversationResult]], lines: Iterable[str]
) -> str:
    """The page.

    Args:
        title: Its heading.
        task: What the queries were asked for.
        results: Indices of queries and what became of them.
        lines: What stands above.
    """
    summary = Summary(task.num_queries)
    for index, result in results:
        summary.add(result, task.spec(index), len(task.passages_of(index)))
    return (
        page_environment(__version__)
        .get_template("synthesis/sample.html")
        .render(
            title=title,
            lines=[*summary.lines(), *lines],
            grades=summary.grades,
            columns=list(GRADES),
            queries=[_shown(task, index, result) for index, result in results],
        )
    )


def rest_text(task: SynthesisTask, journal: Journal, count: int, prices: Prices) -> str:
    """Tokens and cost of what is not asked yet, at the rate of the first `count` queries."""
    times = (len(task) - count) / count  # the journal may have answers about other documents
    answers = [each for index in range(count) for each in journal.completions_of(task.query_id(index))]
    tokens_in = round(times * sum(each.tokens_in or 0 for each in answers))
    tokens_out = round(times * sum(each.tokens_out or 0 for each in answers))
    cost = prices.cost(tokens_in, tokens_out)
    text = f"the other {len(task) - count:,} queries take about {tokens_in:,} tokens in and {tokens_out:,} out"
    return text + (f", {cost:,.2f} at the given prices" if cost else "")


def _shown(task: SynthesisTask, index: int, result: ConversationResult) -> ShownQuery:
    query = result.judged[0] if result.judged else result.query or ""
    said = [result.failure or "kept"]
    if result.judged:
        said.append(", ".join(f"{name} {grade}" for name, grade in result.judged[1].items()))
    if result.configuration:
        chosen = result.configuration
        said.append(f"{chosen.question_type}, {chosen.difficulty}, for: {chosen.character}")
    return ShownQuery(query, " · ".join(said), task.visible_texts(index))
