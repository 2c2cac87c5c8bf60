"""What came of making queries, counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from nestling.mining.pool import near_identity
from nestling.synthesis.answers import count_words
from nestling.synthesis.brief import OWN_LANGUAGE, Brief
from nestling.synthesis.conversation import Outcome
from nestling.synthesis.journal import Journal


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in whatever currency; 0 where nothing is paid.

    Args:
        tokens_in: Of prompts.
        tokens_out: Of answers.
    """

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass
class Summary:
    """Counts over documents.

    Attributes:
        made: Documents with a query.
        failed: Documents without one, by reason.
        rejected: Answers that could not be used, by kind.
        chosen: How many queries have each question type, each difficulty and so on, by what it is.
        words: Words of all queries.
        different: Identities of the queries.
        off_length: Queries that are shorter or longer than was asked for.
    """

    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    chosen: dict[str, Counter[str]] = field(default_factory=dict)
    words: int = 0
    different: set[int] = field(default_factory=set)
    off_length: int = 0

    def add(self, outcome: Outcome, brief: Brief) -> None:
        self.rejected.update(outcome.rejected)
        if outcome.query is None:
            self.failed[outcome.failure or ""] += 1
            return
        assert outcome.setup is not None
        words = count_words(outcome.query)
        self.made += 1
        self.words += words
        self.different.add(near_identity(outcome.query))
        self.off_length += not brief.least <= words <= brief.most
        facts = {
            "question types": outcome.setup.question_type,
            "difficulties": outcome.setup.difficulty,
            "lengths": f"{brief.least}-{brief.most}",
            "languages": "the document's" if brief.language == OWN_LANGUAGE else brief.language,
            "characters": outcome.setup.character,
        }
        for name, value in facts.items():
            self.chosen.setdefault(name, Counter())[value] += 1

    def lines(self) -> Iterator[str]:
        """What to print."""
        failed = self.failed.total()
        yield f"{self.made + failed:,} documents: {self.made:,} with a query, {failed:,} without{listed(self.failed)}"
        yield f"  {self.rejected.total():,} answers could not be used{listed(self.rejected)}"
        if not self.made:
            return
        characters = self.chosen["characters"]
        for name in ("question types", "difficulties", "lengths", "languages"):
            yield f"  {name}: {shares(self.chosen[name])}"
        yield (
            f"  {len(characters):,} characters; {self.words / self.made:.1f} words a query; queries not as long "
            f"as asked for: {self.off_length:,}; queries that repeat another: {self.made - len(self.different):,}"
        )


def listed(counts: Counter[str]) -> str:
    return "".join(f"; {count:,} {name}" for name, count in counts.most_common())


def shares(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count / counts.total():.0%}" for name, count in counts.most_common())


def spent(journal: Journal, prices: Prices) -> str:
    """What all replies in a journal took."""
    text = f"{journal.replies:,} answers: {journal.tokens_in:,} tokens in, {journal.tokens_out:,} out"
    if journal.unmetered:
        text += f", besides {journal.unmetered:,} that the server did not count"
    cost = prices.cost(journal.tokens_in, journal.tokens_out)
    return text + (f", {cost:,.2f} by the prices given" if cost else "")
