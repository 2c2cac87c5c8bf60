"""Reading the rows of one source, which must all be written in the dialect of the first."""

from collections import Counter
from difflib import get_close_matches

from nestling.records.columns import columns_line
from nestling.records.dialects import Dialect, recognise
from nestling.records.field_names import names_labels, unread_content
from nestling.records.fields import Row, check_keys
from nestling.records.record import FieldError, Record

# Keys at least this similar (0..1) to a field's name count as misspelt; `negative_ids` beside `negatives` does not.
TYPO_SIMILARITY = 0.88
ONLY_NEGATIVES = "; rows that have only negatives can train rerankers, not embedders"


class DialectReader:
    """Converts the rows of one source, which must all be written in the dialect of the first.

    Args:
        allow_no_positives: Accept rows that have negatives only.

    Attributes:
        dialect: The dialect; None before the first row.
        ignored: Field that the dialect does not have, or part of one that it does not read -> number of rows in which
            it is present and not null.
    """

    def __init__(self, *, allow_no_positives: bool = False) -> None:
        self._allow_no_positives = allow_no_positives
        self.dialect: Dialect | None = None
        self.ignored: Counter[str] = Counter()
        self._folded = False  # whether names are read in lower case
        self._graded: bool | None = None
        self._rows = 0
        self._scores: set[float] = set()  # the first two different ones of graded pairs
        self._keys: tuple[str, ...] = ()  # of the first row
        # A file has few different sets of keys, so each is checked once.
        self._unknown_keys: dict[tuple[str, ...], tuple[str, ...]] = {}

    def convert(self, row: Row) -> Record:
        """Convert a row to a record. Raises FieldError."""
        if self.dialect is None:
            self._folded = needs_folding(tuple(row))
        if self._folded:
            row = {key.strip().lower(): value for key, value in row.items()}
        keys = tuple(row)
        unknown = self._unknown_keys.get(keys)
        if unknown is None:
            unknown = self._unknown_keys[keys] = self._check_keys(keys)
        assert self.dialect is not None
        record = self.dialect.convert(row)
        for key in unknown:
            _refuse_unread(self.dialect, key, row)
            self.ignored[key] += row[key] is not None
        self.ignored.update(self.dialect.unread(row))
        if not record.positives and not (self._allow_no_positives and record.negatives):
            field = self.dialect.required[1]
            reason = "missing" if row[field] is None else "the list is empty; expected at least one"
            reason = "no document is labelled relevant" if row[field] else reason
            raise FieldError(field, reason + (ONLY_NEGATIVES if record.negatives else ""))
        self._check_graded(record)
        self._rows += 1
        self._keys = self._keys or keys
        return record

    def check_scores(self) -> None:
        """Raise FieldError, after the last row, for graded pairs that all have the same score."""
        if self._rows > 1 and len(self._scores) == 1 and self.dialect is not None:
            line = columns_line(self._keys, query=self.dialect.required[0], positive=self.dialect.required[1])
            raise FieldError(
                "score",
                f"all {self._rows:,} rows have the label {min(self._scores):g}. Rows with a label or score are graded "
                "pairs, which train with CoSENT, and that learns from pairs of different grades alone. To train them "
                f"as positives, name all columns but the label: {line}",
            )

    def _check_keys(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """The keys that the dialect does not have. Raises FieldError for a missing or misspelt one."""
        check_keys(keys)
        self.dialect = self.dialect or recognise(keys)
        missing = [key for key in self.dialect.required if key not in keys]
        if missing:
            raise FieldError(missing[0], f"missing, in a file of dialect {self.dialect.name}{_other_dialect(keys)}")
        unknown = tuple(key for key in keys if not self.dialect.has_field(key))
        for key in unknown:
            near = get_close_matches(key, (*self.dialect.required, *self.dialect.optional), n=1, cutoff=TYPO_SIMILARITY)
            if near:
                raise FieldError(key, f"not a field of dialect {self.dialect.name}; did you mean {near[0]!r}?")
        return unknown

    def _check_graded(self, record: Record) -> None:
        graded = record.score is not None
        if record.score is not None and len(self._scores) < 2:
            self._scores.add(record.score)
        if graded and (len(record.positives) != 1 or record.negatives or record.positive_scores):
            raise FieldError("score", "a graded pair has one positive, no negatives and no teacher scores")
        self._graded = graded if self._graded is None else self._graded
        if graded != self._graded:
            kinds = ("a graded pair", "a row without score")
            raise FieldError("score", f"{kinds[not graded]} in a file that began with {kinds[graded]}; split the file")


def needs_folding(keys: tuple[str, ...]) -> bool:
    """Whether names are those of a dialect in lower case alone, such as Question and Answer in a header."""
    folded = tuple(key.strip().lower() for key in keys)
    return len(set(folded)) == len(keys) and not is_recognised(keys) and is_recognised(folded)


def is_recognised(keys: tuple[str, ...]) -> bool:
    """Whether the keys are those of one dialect."""
    try:
        return bool(recognise(keys))
    except FieldError:
        return False


def _refuse_unread(dialect: Dialect, key: str, row: Row) -> None:
    """Raise FieldError for a field with negatives, teacher scores or labels that the dialect does not read."""
    content = unread_content(key, row[key])
    if content:
        label = {"labels" if isinstance(row[key], list) else "label": key} if names_labels(key) else {}
        line = columns_line(row, query=dialect.required[0], positive=dialect.required[1], **label)
        raise FieldError(
            key,
            f"holds {content}, and dialect {dialect.name} does not read it. Rename it, or name all columns that are "
            f"to be read (and leave it out, if it is not): {line}",
        )


def _other_dialect(keys: tuple[str, ...]) -> str:
    """The end of a message about a row that is written in another dialect; "" if its keys match none."""
    try:
        return f"; the row is {recognise(keys).name}: do not mix dialects in one file"
    except FieldError:
        return ""
