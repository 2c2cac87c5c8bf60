"""The report on a dataset: sections of tables, as text, as an HTML page and as JSON."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from nestling.console import table
from nestling.data_checks.checks import PLURAL
from nestling.data_checks.cleaning import Copy, Dropped
from nestling.data_checks.findings import Example, Finding
from nestling.data_checks.lengths import Distribution
from nestling.data_checks.near import Nearness
from nestling.data_checks.statistics import Statistics
from nestling.models.embedder import Kind

SHARES_SHOWN = 8  # scripts and languages; the rest are in the JSON
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .7rem;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd}td[style*=right]{white-space:nowrap}"""


@dataclass(frozen=True)
class Section:
    """A titled table, or a note alone."""

    title: str
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    note: str = ""


def sections(
    findings: Sequence[Finding],
    statistics: Mapping[Kind, Statistics],
    rules: Sequence[str],
    nearness: Nearness,
    *,
    copied: bool,
) -> Iterator[Section]:
    """The whole report.

    Args:
        findings: What was found.
        statistics: Figures of queries and documents.
        rules: The rules that a cleaned copy follows.
        nearness: What counted as nearly equal.
        copied: Whether one is written.
    """
    yield _overview(findings, rules, nearness, copied=copied)
    for finding in findings:
        if finding.examples:
            title = f"{finding.name}: {finding.what}"
            yield Section(title, ("where", "text", "note"), list(_examples(finding.examples)))
    yield _lengths(statistics)
    for kind, each in statistics.items():
        yield from _cuts(kind, each)
        yield _written_in(kind, each)


def copy_section(copy: Copy, dropped: Sequence[Dropped]) -> Section:
    """What each rule took out of the cleaned copy."""
    documents = int(copy.documents.sum())
    rows = [(each.rule, f"{each.rows:,}", f"{each.documents:,}") for each in dropped]
    note = (
        f"{int(copy.keep_row.sum()):,} of {len(copy.rows):,} rows stay, with {documents:,} of "
        f"{len(copy.rows.row_of):,} documents. Each rule counts what the ones before it left."
    )
    return Section("the cleaned copy", ("rule", "rows dropped", "documents dropped from other rows"), rows, note)


def as_text(parts: Sequence[Section]) -> str:
    return "\n\n".join("\n".join(_lines(part)) for part in parts)


def as_html(title: str, summary: str, parts: Sequence[Section]) -> str:
    """One page without outside references."""
    body = [f"<h1>{html.escape(title)}</h1>", f"<pre>{html.escape(summary)}</pre>"]
    for part in parts:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        if part.note:
            body += [f"<p>{html.escape(line)}</p>" for line in part.note.splitlines()]
        if part.rows:
            body.append(str(tabulate(part.rows, part.headers, tablefmt="html", disable_numparse=True)))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _lines(part: Section) -> Iterator[str]:
    yield part.title
    if part.note:
        yield part.note
    if part.rows:
        yield table(part.headers, part.rows, digits=1)


def _overview(findings: Sequence[Finding], rules: Sequence[str], nearness: Nearness, *, copied: bool) -> Section:
    """What was found as a table, and in words what it means and what was not found."""
    found = [each for each in findings if each.count]
    rows = [
        (f"{each.count:,}", f"{each.of:,} {each.unit}", f"{each.count / each.of:.1%}", each.what, _fate(each, rules))
        for each in found
    ]
    nothing = "; ".join(each.what for each in findings if not each.count)
    fates = "the copy leaves out" if copied else "a copy (--output) would leave out"
    lines = [
        f"{len(found)} of {len(findings)} checks found something. 'dropped' is what {fates}; what has no rule, or one "
        "that --drop does not name, is only reported.",
        f"Nearly equal: at least {nearness.threshold:g} of the runs of {nearness.shingle} words are in both; case, "
        "punctuation and spacing do not count.",
    ]
    if nothing:
        lines.append(f"Looked for and not found: {nothing}.")
    if not any(each.name.startswith("eval_") for each in findings):
        lines.append("No evaluation set was given (--eval), so none was looked for.")
    return Section("found", ("found", "of", "share", "what", "rule"), rows, "\n".join(lines))


def _fate(finding: Finding, rules: Sequence[str]) -> str:
    if finding.rule is None:
        return "reported"
    return f"{finding.rule}: dropped" if finding.rule in rules else f"{finding.rule}: reported"


def _examples(examples: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """Place, text and note of each; below it, of the text that it is compared with."""
    for each in examples:
        yield each.place, each.text, each.note
        if each.other_text:
            yield each.other_place, each.other_text, ""


def _lengths(statistics: Mapping[Kind, Statistics]) -> Section:
    rows: list[Sequence[object]] = []
    for kind, each in statistics.items():
        many = f"{each.texts:,} distinct {PLURAL[kind]}"
        rows += [(many, "characters", *_spread(each.characters)), (many, "words", *_spread(each.words))]
        if each.tokens is not None:
            rows.append((f"{each.sampled:,} of them", "tokens", *_spread(each.tokens.distribution)))
    quantiles = list(next(iter(statistics.values())).characters.quantiles)
    note = "Words are what stands between spaces. Tokens include prompt and special tokens."
    return Section("lengths", ("", "in", "mean", "least", *quantiles, "most"), rows, note)


def _spread(each: Distribution) -> tuple[object, ...]:
    return f"{each.mean:,.1f}", *(f"{value:,}" for value in (each.least, *each.quantiles.values(), each.most))


def _cuts(kind: Kind, each: Statistics) -> Iterator[Section]:
    if each.tokens is not None:
        many = PLURAL[kind]
        rows = [
            (f"{cut.limit:,}", f"{cut.texts:,}", f"{cut.share:.2%}", f"{cut.tokens:.2%}")
            for cut in each.tokens.truncations
        ]
        headers = ("limit in tokens", f"{many} cut", f"share of {many}", "share of tokens lost")
        yield Section(f"what a limit cuts of {each.sampled:,} distinct {many}", headers, rows)


def _written_in(kind: Kind, each: Statistics) -> Section:
    scripts = _shares(each.scripts, each.texts)
    languages = _shares(each.languages, each.sampled)
    note = f"scripts: {scripts}\nlanguages of {each.sampled:,} (py3langid; und: not sure): {languages}"
    return Section(f"what {PLURAL[kind]} are written in", note=note)


def _shares(counts: Mapping[str, int], of: int) -> str:
    shown = [f"{name} {count / of:.1%}" for name, count in list(counts.items())[:SHARES_SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
