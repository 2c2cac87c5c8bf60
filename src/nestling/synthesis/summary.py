"""Statistics of a synthesis run and its cost."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from nestling.synthesis.answers import count_words
from nestling.synthesis.conversation import ConversationResult
from nestling.synthesis.journal import Journal
from nestling.synthesis.query_spec import DOCUMENT_LANGUAGE, GRADES, QuerySpec


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency.

    Args:
        tokens_in: Price of the tokens of prompts.
        tokens_out: Price of the tokens of completions.
    """

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Cost of numbers of tokens."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass
class Summary:
    """Counts over queries.

    Attributes:
        num_queries: Queries of a document.
        made: Queries that were made.
        failed: Those that were not, or not kept, by reason.
        rejected: Invalid answers, by kind.
        counts: Property (question types, difficulties, …) -> number of queries for each of its values.
        words: Words of all queries.
        off_length: Queries that are shorter or longer than requested.
        passages: Number of passages of a query -> queries.
        made_of: The same of those that were made.
        grades: Criterion -> number of judged queries for each grade, kept or not.
    """

    num_queries: int = 1
    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    words: int = 0
    off_length: int = 0
    passages: Counter[int] = field(default_factory=Counter)
    made_of: Counter[int] = field(default_factory=Counter)
    grades: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, result: ConversationResult, spec: QuerySpec, passages: int) -> None:
        """Count the result for one query of a number of passages."""
        self.passages[passages] += 1
        self.rejected.update(result.rejected)
        for name, grade in result.judged[1].items() if result.judged else ():
            self.grades.setdefault(name, Counter())[grade] += 1
        if result.query is None:
            self.failed[result.failure or ""] += 1
            return
        assert result.configuration is not None
        words = count_words(result.query)
        self.made += 1
        self.made_of[passages] += 1
        self.words += words
        self.off_length += not spec.least <= words <= spec.most
        metadata = {
            "question types": result.configuration.question_type,
            "difficulties": result.configuration.difficulty,
            "lengths": f"{spec.least}-{spec.most}",
            "languages": "the document's" if spec.language == DOCUMENT_LANGUAGE else spec.language,
            "characters": result.configuration.character,
        }
        for name, value in metadata.items():
            self.counts.setdefault(name, Counter())[value] += 1

    def lines(self) -> Iterator[str]:
        """Lines to print."""
        failed = self.failed.total()
        total = self.made + failed
        if self.num_queries == 1:
            yield f"{total:,} documents: {self.made:,} with a query, {failed:,} without{counts_text(self.failed)}"
        else:
            documents, made = f"{total // self.num_queries:,} documents", f"{self.made:,} made, {failed:,} not"
            yield f"{total:,} queries for {documents}: {made}{counts_text(self.failed)}"
        yield f"  {self.rejected.total():,} invalid answers{counts_text(self.rejected)}"
        yield from self.multi_hop_lines()
        yield from self.grade_lines()
        if not self.made:
            return
        personas = self.counts["characters"]
        for name in ("question types", "difficulties", "lengths", "languages"):
            yield f"  {name}: {percentages(self.counts[name])}"
        yield (
            f"  {len(personas):,} personas; {self.words / self.made:.1f} words per query; queries of another length "
            f"than requested: {self.off_length:,}"
        )

    def multi_hop_lines(self) -> Iterator[str]:
        """How many queries of several passages were made."""
        for passages, count in sorted(self.passages.items()):
            if passages > 1:
                yield f"  multi-hop, {passages} passages: {self.made_of[passages]:,} of {count:,} queries made"

    def grade_lines(self) -> Iterator[str]:
        """How many queries have each grade, by each criterion."""
        for name, counts in self.grades.items():
            shares = ", ".join(f"{grade}: {counts[grade] / counts.total():.0%}" for grade in GRADES)
            yield f"  {name}: {shares} of {counts.total():,} judged queries"


def counts_text(counts: Counter[str]) -> str:
    """Counts as the end of a line: `; 3 timeout; 1 empty answer`."""
    return "".join(f"; {count:,} {name}" for name, count in counts.most_common())


def percentages(counts: Counter[str]) -> str:
    """Fraction of each value, the most frequent first."""
    return ", ".join(f"{name} {count / counts.total():.0%}" for name, count in counts.most_common())


def usage_text(journal: Journal, prices: Prices) -> str:
    """Tokens and cost of all completions in a journal."""
    text = f"{journal.completions:,} answers: {journal.tokens_in:,} tokens in, {journal.tokens_out:,} out"
    if journal.without_usage:
        text += f", and {journal.without_usage:,} answers without reported usage"
    cost = prices.cost(journal.tokens_in, journal.tokens_out)
    return text + (f", {cost:,.2f} at the given prices" if cost else "")
