"""The report on a dataset: sections with tables, as text or as an HTML page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nestling import __version__
from nestling.console import table
from nestling.data_checks.checks import PLURAL
from nestling.data_checks.cleaning import CleanedCopy, DropCount
from nestling.data_checks.examples import Example
from nestling.data_checks.findings import Finding
from nestling.data_checks.lengths import LengthDistribution
from nestling.data_checks.near_duplicates import NearDuplicateCriterion
from nestling.data_checks.statistics import Statistics
from nestling.pages import page_environment
from nestling.records.record import Kind

MOST_SHOWN = 8  # scripts and languages; the JSON report has all


@dataclass(frozen=True)
class Section:
    """A section of the report: a title with a table, a note, or both."""

    title: str
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    note: str = ""


def sections(
    findings: Sequence[Finding],
    statistics: Mapping[Kind, Statistics],
    rules: Sequence[str],
    criterion: NearDuplicateCriterion,
    *,
    copied: bool,
) -> Iterator[Section]:
    """All sections of the report.

    Args:
        findings: Results of the checks.
        statistics: Statistics of queries and documents.
        rules: Rules of the cleaned copy.
        criterion: When two texts are near duplicates.
        copied: Whether a cleaned copy is written.
    """
    yield _overview(findings, rules, criterion, copied=copied)
    for finding in findings:
        if finding.examples:
            title = f"{finding.name}: {finding.what}"
            yield Section(title, ("where", "text", "note"), list(_examples(finding.examples)))
    yield _length_section(statistics)
    for kind, each in statistics.items():
        yield from _truncation_sections(kind, each)
        yield _language_section(kind, each)


def copy_section(copy: CleanedCopy, dropped: Sequence[DropCount]) -> Section:
    """Rows and documents that each rule dropped from the cleaned copy."""
    documents = int(copy.documents.sum())
    rows = [(each.rule, f"{each.rows:,}", f"{each.documents:,}") for each in dropped]
    note = (
        f"{int(copy.keep_row.sum()):,} of {len(copy.rows):,} rows are kept, with {documents:,} of "
        f"{len(copy.rows.row_of):,} documents. Each rule counts what the rules before it have kept."
    )
    return Section("the cleaned copy", ("rule", "rows dropped", "documents dropped from other rows"), rows, note)


def as_text(parts: Sequence[Section]) -> str:
    return "\n\n".join("\n".join(_lines(part)) for part in parts)


def as_html(title: str, summary: str, parts: Sequence[Section]) -> str:
    """The report as one self-contained page."""
    template = page_environment(__version__).get_template("data_checks/report.html")
    return template.render(title=title, summary=summary, parts=parts)


def _lines(part: Section) -> Iterator[str]:
    yield part.title
    if part.note:
        yield part.note
    if part.rows:
        yield table(part.headers, part.rows, digits=1)


def _overview(
    findings: Sequence[Finding], rules: Sequence[str], criterion: NearDuplicateCriterion, *, copied: bool
) -> Section:
    """A table of the checks that found something, with notes on how to read it and on the other checks."""
    occurred = [each for each in findings if each.count]
    rows = [
        (f"{each.count:,}", f"{each.of:,} {each.unit}", f"{each.count / each.of:.1%}", each.what, _action(each, rules))
        for each in occurred
    ]
    not_found = "; ".join(each.what for each in findings if not each.count)
    scope = "the copy leaves out" if copied else "a copy (--output) would leave out"
    lines = [
        f"{len(occurred)} of {len(findings)} checks found something. 'dropped' is what {scope}; findings without a "
        "rule, or with one that --drop does not name, are only reported.",
        f"Near duplicates have a Jaccard similarity of at least {criterion.threshold:g} between their shingles of "
        f"{criterion.shingle} words; case, punctuation and spacing do not count.",
    ]
    if not_found:
        lines.append(f"Checked and not found: {not_found}.")
    if not any(each.name.startswith("eval_") for each in findings):
        lines.append("No evaluation set was given (--eval), so contamination was not checked.")
    return Section("findings", ("found", "of", "fraction", "what", "rule"), rows, "\n".join(lines))


def _action(finding: Finding, rules: Sequence[str]) -> str:
    if finding.rule is None:
        return "reported"
    return f"{finding.rule}: dropped" if finding.rule in rules else f"{finding.rule}: reported"


def _examples(examples: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """Location, text and note of each example, followed by those of the text that it is compared with."""
    for each in examples:
        yield each.place, each.text, each.note
        if each.other_text:
            yield each.other_place, each.other_text, ""


def _length_section(statistics: Mapping[Kind, Statistics]) -> Section:
    rows: list[Sequence[object]] = []
    for kind, each in statistics.items():
        many = f"{each.texts:,} distinct {PLURAL[kind]}"
        rows += [
            (many, "characters", *_distribution_cells(each.characters)),
            (many, "words", *_distribution_cells(each.words)),
        ]
        if each.tokens is not None:
            rows.append((f"{each.sampled:,} of them", "tokens", *_distribution_cells(each.tokens.distribution)))
    quantiles = list(next(iter(statistics.values())).characters.quantiles)
    note = "Words are separated by white space. Tokens include prompt and special tokens."
    return Section("lengths", ("", "in", "mean", "min", *quantiles, "max"), rows, note)


def _distribution_cells(each: LengthDistribution) -> tuple[object, ...]:
    return f"{each.mean:,.1f}", *(f"{value:,}" for value in (each.least, *each.quantiles.values(), each.most))


def _truncation_sections(kind: Kind, each: Statistics) -> Iterator[Section]:
    if each.tokens is not None:
        many = PLURAL[kind]
        rows = [
            (f"{limit.limit:,}", f"{limit.texts:,}", f"{limit.share:.2%}", f"{limit.tokens:.2%}")
            for limit in each.tokens.truncations
        ]
        headers = ("limit in tokens", f"{many} truncated", f"fraction of {many}", "fraction of tokens lost")
        yield Section(f"truncation of {each.sampled:,} distinct {many}", headers, rows)


def _language_section(kind: Kind, each: Statistics) -> Section:
    scripts = _percentages(each.scripts, each.texts)
    languages = _percentages(each.languages, each.sampled)
    note = f"scripts: {scripts}\nlanguages of {each.sampled:,} (py3langid; und: undetermined): {languages}"
    return Section(f"scripts and languages of {PLURAL[kind]}", note=note)


def _percentages(counts: Mapping[str, int], of: int) -> str:
    shown = [f"{name} {count / of:.1%}" for name, count in list(counts.items())[:MOST_SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
