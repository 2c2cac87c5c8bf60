"""How clients send texts to a server of embeddings: with a prompt, and no longer than the model reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from nestling.batches.prompts import Prompts, copy_backend, end_of_last_token
from nestling.config import require
from nestling.config.prompts import prompt_before_text
from nestling.models.embedder import read_dims, read_max_length, read_model_files
from nestling.models.model_prompts import choose_prompts
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.token_model import is_causal, max_positions, read_config
from nestling.serving.client import Kind

KINDS: tuple[Kind, Kind] = ("query", "document")


class Cutter:
    """Cuts texts to so many tokens, special tokens included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        self.limit = limit
        self._backend = copy_backend(tokenizer)
        self._backend.enable_truncation(limit)

    def __call__(self, text: str) -> tuple[str, bool]:
        """The text as far as it is read, and whether that is less than all of it."""
        encoding = self._backend.encode(text)
        return (text[: end_of_last_token(encoding)], True) if encoding.overflowing else (text, False)


@dataclass(frozen=True)
class Reading:
    """How texts are sent.

    Args:
        prompts: Texts before queries and documents.
        cutters: Cut queries and documents; empty sends them as long as they are.
        dims: Dimensions at which the model is measured; none if they are not known.
    """

    prompts: Prompts
    cutters: Mapping[Kind, Cutter] = field(default_factory=dict)
    dims: tuple[int, ...] = ()

    def sent(self, kind: Kind, instruction: str | None, text: str) -> tuple[str, bool]:
        """A text behind its prompt as it is sent, and whether it was cut."""
        prompt = self.prompts.query(instruction) if kind == "query" else self.prompts.document
        return self.cutters[kind](prompt + text) if self.cutters else (prompt + text, False)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Tokens at which queries and documents are cut; None where they are not."""
        queries, documents = (self.cutters.get(kind) for kind in KINDS)
        return (None, None) if queries is None or documents is None else (queries.limit, documents.limit)


def reading_of(
    model: str,
    instruction: str | None,
    query_prompt: str | None,
    document_prompt: str | None,
    lengths: tuple[int | None, int | None],
) -> Reading:
    """That of a model's directory, whose weights are not read, with the prompts and lengths that replace its own.

    Raises:
        ValueError: It is no embedder, or one whose pooling leaves the prompt out, which no server is told.
    """
    files = read_model_files(model)
    require(
        files.pool_prompt, f"{model}: its pooling leaves out the prompt (include_prompt: false), and servers pool all"
    )
    config = read_config(model, files.subfolder)
    prompts = choose_prompts(
        model,
        decoder=is_causal(config),
        instruction=instruction,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
    )
    tokenizer = load_tokenizer(model, files.subfolder)
    limit = min(read_max_length(model) or int(tokenizer.model_max_length), max_positions(config))
    cutters = {kind: Cutter(tokenizer, length or limit) for kind, length in zip(KINDS, lengths, strict=True)}
    return Reading(prompts, cutters, tuple(read_dims(model)))


def reading_without_model(instruction: str | None, query_prompt: str | None, document_prompt: str | None) -> Reading:
    """With prompts of settings alone: none where none is given."""
    form = prompt_before_text("query_prompt", query_prompt or "")
    prompts = Prompts(form=form, document=prompt_before_text("document_prompt", document_prompt or ""))
    return Reading(Prompts(prompts.query(instruction or ""), prompts.document, form))
