"""Logits of a reranker directory, with correct prompts and with the usual errors of servers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from nestling.batches.prompts import DEFAULT_INSTRUCTION
from nestling.export.reranker_expectation import Pair, prompt_logits
from nestling.export.reranker_usage import score_classifier
from nestling.gpu import best_device
from nestling.models.causal_reranker import CausalReranker
from nestling.models.checked_loading import load_weights
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.token_model import read_config
from nestling.retrieval.metrics import Floats

# Makes the prompt of a query and a document, as texts that are tokenised one by one and concatenated.
Parts = Callable[[str, str], list[str]]


@dataclass(frozen=True)
class PromptVariant:
    """One way of making prompts.

    Args:
        parts: Makes the parts of a prompt.
        aspect: Aspect in which the prompts are wrong; empty for the correct ones.
        what: Description of the error.
        advice: Key of the advice in `ADVICE`.
    """

    parts: Parts
    aspect: str = ""
    what: str = ""
    advice: str = "template"


@dataclass(frozen=True)
class RerankerReference:
    """A reranker directory, causal or a classifier, scored with correct prompts or with usual errors.

    Args:
        source: The directory.
        tokenizer: Its tokenizer.
        settings: Its prompt.
        logits: Token ids of n prompts -> logits [n] float64.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase
    settings: RerankerSettings
    logits: Callable[[Sequence[list[int]]], Floats]

    @property
    def instruction(self) -> str:
        return self.settings.instruction

    @property
    def scale(self) -> str:
        """Of correct answers, a key of `SCALES`."""
        return "probabilities"

    @classmethod
    def load(cls, directory: str) -> "RerankerReference":
        """Load a directory in float32; a causal one on a GPU if there is one.

        Raises:
            ValueError: A classifier without the chat template of a reranker.
        """
        names = read_config(directory).architectures or []
        if any(name.endswith("ForSequenceClassification") for name in names):
            return cls._load_classifier(directory)
        reranker = CausalReranker.from_pretrained(directory).to(best_device())

        def logits(prompts: Sequence[list[int]]) -> Floats:
            found: Floats = prompt_logits(reranker, prompts).double().numpy()
            return found

        return cls(directory, reranker.tokenizer, reranker.settings, logits)

    @classmethod
    def _load_classifier(cls, directory: str) -> "RerankerReference":
        tokenizer = load_tokenizer(directory)
        settings = read_template(directory, tokenizer)
        model = load_weights(AutoModelForSequenceClassification, directory, dtype=torch.float32).eval()

        def logits(prompts: Sequence[list[int]]) -> Floats:
            found: Floats = torch.cat([score_classifier(model, tokenizer, [ids]) for ids in prompts]).double().numpy()
            return found

        return cls(directory, tokenizer, settings, logits)

    def logits_of(self, variant: PromptVariant, pairs: Sequence[Pair]) -> Floats:
        """[n] float64: logits of yes against no, for n pairs."""
        return self.logits([[token for text in variant.parts(*pair) for token in self.ids(text)] for pair in pairs])

    def ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def variants(self) -> Iterator[PromptVariant]:
        """Yield the ways of making prompts; the first one is correct."""
        body, prefix, suffix = self.settings.prompt.body, self.settings.prefix, self.settings.suffix
        yield PromptVariant(lambda q, d: [prefix, body(q, d), suffix])
        yield PromptVariant(lambda q, d: [q, d], "template", "the query and the document alone")
        yield PromptVariant(lambda q, d: [q + d], "template", "the query and the document alone, as one text")
        yield PromptVariant(lambda q, d: [body(q, d)], "template", "no prefix and no suffix")
        yield PromptVariant(lambda q, d: [prefix, body(q, d)], "template", "no suffix")
        without_thinking = suffix.split("<think>")[0]
        if without_thinking != suffix:
            yield PromptVariant(
                lambda q, d: [prefix, body(q, d), without_thinking], "template", "no empty thinking part"
            )
        yield PromptVariant(lambda q, d: [prefix, spaced(body(q, d)), suffix], "template", "empty lines between parts")
        yield from self._instruction_variants()
        what = "the document as the query and the query as the document"
        yield PromptVariant(lambda q, d: [prefix, body(d, q), suffix], "sides", what, "sides")
        for end in sorted({self.tokenizer.eos_token, self.tokenizer.pad_token} - {None}):
            yield PromptVariant(partial(self._with_end, end), "EOS", f"{end} at the end", "end")

    def _instruction_variants(self) -> Iterator[PromptVariant]:
        settings = self.settings
        if settings.instruction != DEFAULT_INSTRUCTION:
            what = f"the instruction {DEFAULT_INSTRUCTION!r} in place of {settings.instruction!r}"
            yield PromptVariant(
                partial(self._with_instruction, DEFAULT_INSTRUCTION), "instruction", what, "instruction"
            )
        yield PromptVariant(partial(self._with_instruction, ""), "instruction", "no instruction", "instruction")

    def _with_instruction(self, instruction: str, query: str, document: str) -> list[str]:
        prompt = replace(self.settings, instruction=instruction).prompt
        return [self.settings.prefix, prompt.body(query, document), self.settings.suffix]

    def _with_end(self, end: str, query: str, document: str) -> list[str]:
        return [self.settings.prefix, self.settings.prompt.body(query, document), self.settings.suffix + end]


def read_template(directory: str, tokenizer: PreTrainedTokenizerBase) -> RerankerSettings:
    """Read prompt and instruction from a chat template that Nestling wrote. Raises ValueError for any other."""
    messages = [{"role": role, "content": f"\0{role}\0"} for role in ("query", "document")]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False)) if tokenizer.chat_template else ""
    prefix, instruct, rest = text.partition("<Instruct>: ")
    instruction, body, suffix = rest.partition("\n<Query>: \0query\0\n<Document>: \0document\0")
    if not instruct or not body:
        raise ValueError(
            f"{directory}: a classifier without the chat template of a reranker; expected one that "
            "scripts/export.py --shape classifier wrote"
        )
    return RerankerSettings(prefix=prefix, suffix=suffix, instruction=instruction)


def spaced(body: str) -> str:
    """Add an empty line before the query and the document, as some public scripts do."""
    return body.replace("\n<Query>: ", "\n\n<Query>: ").replace("\n<Document>: ", "\n\n<Document>: ")


def sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


# Scale of the answers -> (its function of the logit, key of the advice in `ADVICE` where it is not the right one).
SCALES: dict[str, tuple[Callable[[Floats], Floats], str]] = {
    "probabilities": (sigmoid, "probabilities"),
    "logits, no sigmoid is taken": (lambda values: values, "logits"),
    "the sigmoid of the sigmoid": (lambda values: sigmoid(sigmoid(values)), "twice"),
    "probabilities of no": (lambda values: sigmoid(-values), "inverted"),
    "logits of no": (lambda values: -values, "inverted"),
}
