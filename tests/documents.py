"""What documents show: code blocks, names within lines, and the commands in them."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nestling.export.card import Card
from nestling.export.embedder_card import EmbedderFacts, render_embedder_card
from nestling.export.embedder_gate import EmbedderReport
from nestling.export.reranker_card import RerankerFacts, render_reranker_card
from nestling.export.reranker_gate import RerankerReport
from nestling.models.reranker_settings import RerankerSettings
from tiny import DEFAULT_QUERY_PROMPT

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "train/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES = sorted(path for folder in ("data", "scripts", "train") for path in (ROOT / folder).rglob("*.py"))
COMMENTED = [
    ROOT / "mkdocs.yml",
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *(ROOT / "scripts" / name for name in ("quickstart", "test", "slurm/train.sbatch")),
]
# A line that begins so is a command wherever it stands; a line of a block of bash is one in any case.
STARTS = {
    "accelerate",
    "mkdocs",
    "pip",
    "pytest",
    "python",
    "sbatch",
    "scripts/gpu_check",
    "scripts/quickstart",
    "scripts/test",
    "torchrun",
}
FENCED = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2 *$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?: {4,}[^\n]*\n|\n(?= {4}))+")
INLINE = re.compile(r"(?<![`\w])`([^`\n]+)`")
VARIABLE = re.compile(r"[A-Z][A-Z_]*=\S*")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
STARTED = re.compile(r"[\w./-]+\.(?:py|sbatch)|RECIPE")  # what python and the launchers start
ELLIPSIS = "…"


@dataclass(frozen=True)
class Snippet:
    """A piece of a document.

    Args:
        place: file:line.
        kind: The language of a fenced block, "indented", "inline", or "prose" for docstrings and comments.
        text: Without fence and indentation.
    """

    place: str
    kind: str
    text: str


@dataclass(frozen=True)
class Command:
    """Words of a shell command, without the variables that are set before it.

    Args:
        place: file:line of its snippet.
        words: As the shell splits them; MODEL stands in place of $(…), and nothing in place of an ellipsis.
        partial: Whether it is only named, or shown in part, as `torchrun` and `python train/embed.py …` are.
    """

    place: str
    words: tuple[str, ...]
    partial: bool

    def __str__(self) -> str:
        return f"{self.place} {shlex.join(self.words)[:80]}"


def documents() -> Iterator[Snippet]:
    """Everything that pages, docstrings of scripts, comments of settings and model cards show."""
    for page in PAGES:
        yield from in_markdown(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
    for module in MODULES:
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        yield Snippet(f"{module.relative_to(ROOT)}:1", "prose", docstring)
    for file in COMMENTED:
        yield Snippet(f"{file.relative_to(ROOT)}:1", "prose", comments(file.read_text(encoding="utf-8")))
    for name, text in model_cards().items():
        yield from in_markdown(text, name)


def model_cards() -> dict[str, str]:
    """A card of each kind of exported directory, the embedder's of a tiny Qwen3."""
    embedder = EmbedderFacts(
        title="Title",
        base="base",
        license=None,
        pooling="last",
        dim=64,
        dims=[64, 32],
        max_seq_length=64,
        trained_lengths=(32, 48),
        prompts={"query": DEFAULT_QUERY_PROMPT, "document": ""},
        lora=True,
    )
    reranker = RerankerFacts(
        title="Title",
        base="base",
        license=None,
        shape="causal",
        architecture="Qwen3ForCausalLM",
        settings=RerankerSettings(),
        max_length=96,
        cross_encoder=True,
        lora=True,
        trained=True,
    )
    return {
        "embedder's card": render_embedder_card(embedder, Card(), EmbedderReport()),
        "reranker's card": render_reranker_card(reranker, Card(), RerankerReport()),
    }


def comments(text: str) -> str:
    """Whole lines of comments, without what a wide gap sets off from a command to explain it."""
    lines = [line.removeprefix("#").strip() for line in text.split("\n") if line.startswith("#")]
    return "\n".join(re.sub(r" {3,}.*", "", line) for line in lines)


def in_markdown(text: str, name: str) -> Iterator[Snippet]:
    """Fenced blocks first, then indented ones, then code within lines."""
    for kind, pattern in (("", FENCED), ("indented", INDENTED), ("inline", INLINE)):
        for found in pattern.finditer(text):
            place = f"{name}:{text.count(chr(10), 0, found.start()) + 1}"
            if kind:
                yield Snippet(place, kind, found[found.lastindex or 0])
            else:
                yield Snippet(place, found[3], re.sub(rf"^{found[1]}", "", found[4], flags=re.M))
        text = pattern.sub(lambda found: "\n" * found[0].count("\n"), text)


def commands(snippet: Snippet) -> Iterator[Command]:
    """The commands of a snippet, after each those that stand in its $(…)."""
    if snippet.kind == "inline" and re.match(r"(?:data|scripts|train)/[\w/]+\.py ", snippet.text):
        yield Command(snippet.place, ("python", *split(snippet.text)), partial=True)
    elif snippet.kind in ("bash", "indented", "inline", "prose"):
        for statement in statements(snippet.text, every=snippet.kind == "bash"):
            yield from simple_commands(statement, snippet.place)
            for found in SUBSTITUTION.finditer(statement):
                yield from simple_commands(found[1], snippet.place)


def statements(text: str, *, every: bool) -> Iterator[str]:
    """Lines that begin a command, joined to whole statements: by a backslash, or until a quotation ends."""
    begun = ""
    for line in text.split("\n"):
        if not begun and not (starts(line) or (every and line.strip() and not line.lstrip().startswith("#"))):
            continue
        begun += line
        try:
            split(begun)
        except ValueError:
            begun = begun.removesuffix("\\") + "\n"
            continue
        yield begun
        begun = ""
    assert not begun, f"ends in the middle of a command: {begun}"


def starts(line: str) -> bool:
    words = [word for word in line.split() if not VARIABLE.fullmatch(word)]
    return bool(words) and words[0] in STARTS


def split(statement: str) -> list[str]:
    return [word for word in shlex.split(statement, comments=True) if word != ELLIPSIS]


def simple_commands(statement: str, place: str) -> Iterator[Command]:
    """The parts of a statement between `|`, `;` and `&&`."""
    lexer = shlex.shlex(SUBSTITUTION.sub("MODEL", statement), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not word or set(word) - set("|&;"):
            words.append(word)
            continue
        while words and VARIABLE.fullmatch(words[0]):
            words.pop(0)
        if words:
            yield Command(place, tuple(each for each in words if each != ELLIPSIS), is_partial(words))
        words = []


def is_partial(words: list[str]) -> bool:
    """Whether something is left out, or a launcher is named without what it starts."""
    launcher = words[0] in ("accelerate", "python", "sbatch", "torchrun")
    starts_nothing = launcher and "-m" not in words and not any(STARTED.fullmatch(word) for word in words)
    return starts_nothing or any(ELLIPSIS in word for word in words)
