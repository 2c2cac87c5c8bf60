"""What a reranker's directory reads, and what it would read if a server made its prompts in a usual wrong way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from nestling.batches.prompts import DEFAULT_INSTRUCTION
from nestling.export.reranker_expectation import Pair, prompt_logits
from nestling.export.reranker_usage import score_classifier
from nestling.models.reranker import Reranker, RerankerSettings
from nestling.models.token_model import read_config
from nestling.retrieval.metrics import Floats

# Texts whose tokens, one text's after the other's, make the prompt of a query and a document.
Parts = Callable[[str, str], list[str]]


@dataclass(frozen=True)
class Reading:
    """One way of making prompts.

    Args:
        parts: The texts of a prompt.
        aspect: What is wrong with it in one word; empty for the right one.
        what: The same in a few words.
        fix: Name of what to do about it.
    """

    parts: Parts
    aspect: str = ""
    what: str = ""
    fix: str = "template"


@dataclass(frozen=True)
class Judge:
    """A reranker's directory, causal or a classifier, read as it says, or otherwise.

    Args:
        source: The directory.
        tokenizer: Its tokenizer.
        settings: Its prompt.
        logits: [n] float64 of prompts by their token ids.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase
    settings: RerankerSettings
    logits: Callable[[Sequence[list[int]]], Floats]

    @classmethod
    def load(cls, directory: str) -> "Judge":
        """Load it in float32, on a GPU if it is causal and there is one.

        Raises:
            ValueError: A classifier without the chat template of a reranker.
        """
        names = read_config(directory).architectures or []
        if any(name.endswith("ForSequenceClassification") for name in names):
            return cls._load_classifier(directory)
        reranker = Reranker.from_pretrained(directory).to("cuda" if torch.cuda.is_available() else "cpu")

        def logits(prompts: Sequence[list[int]]) -> Floats:
            found: Floats = prompt_logits(reranker, prompts).double().numpy()
            return found

        return cls(directory, reranker.tokenizer, reranker.settings, logits)

    @classmethod
    def _load_classifier(cls, directory: str) -> "Judge":
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()

        def logits(prompts: Sequence[list[int]]) -> Floats:
            found: Floats = torch.cat([score_classifier(model, tokenizer, [ids]) for ids in prompts]).double().numpy()
            return found

        return cls(directory, tokenizer, read_template(directory, tokenizer), logits)

    def read(self, reading: Reading, pairs: Sequence[Pair]) -> Floats:
        """[n] float64: logits of yes against no."""
        return self.logits([[token for text in reading.parts(*pair) for token in self.ids(text)] for pair in pairs])

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def readings(self) -> Iterator[Reading]:
        """Ways to make prompts; the first is right."""
        own = self.settings
        prompt, prefix, suffix = own.prompt, own.prefix, own.suffix
        unthinking = suffix.split("<think>")[0]
        ends = {self.tokenizer.eos_token, self.tokenizer.pad_token} - {None}
        yield Reading(lambda q, d: [prefix, prompt.body(q, d), suffix])
        yield Reading(lambda q, d: [q, d], "template", "the query and the document alone")
        yield Reading(lambda q, d: [q + d], "template", "the query and the document alone, as one text")
        yield Reading(lambda q, d: [prompt.body(q, d)], "template", "no prefix and no suffix")
        yield Reading(lambda q, d: [prefix, prompt.body(q, d)], "template", "no suffix")
        if unthinking != suffix:
            yield Reading(lambda q, d: [prefix, prompt.body(q, d), unthinking], "template", "no empty thinking part")
        yield Reading(lambda q, d: [prefix, spaced(prompt.body(q, d)), suffix], "template", "empty lines between parts")
        if own.instruction != DEFAULT_INSTRUCTION:
            default = replace(own, instruction=DEFAULT_INSTRUCTION).prompt
            what = f"the instruction {DEFAULT_INSTRUCTION!r} in place of {own.instruction!r}"
            yield Reading(lambda q, d: [prefix, default.body(q, d), suffix], "instruction", what, "instruction")
        empty = replace(own, instruction="").prompt
        yield Reading(lambda q, d: [prefix, empty.body(q, d), suffix], "instruction", "no instruction", "instruction")
        what = "the document as the query and the query as the document"
        yield Reading(lambda q, d: [prefix, prompt.body(d, q), suffix], "sides", what, "sides")
        for end in sorted(ends):
            yield Reading(partial(self._with_end, end), "EOS", f"{end} at the end", "end")

    def _with_end(self, end: str, query: str, document: str) -> list[str]:
        return [self.settings.prefix, self.settings.prompt.body(query, document), self.settings.suffix + end]


def read_template(directory: str, tokenizer: PreTrainedTokenizerBase) -> RerankerSettings:
    """The prompt of a chat template that Nestling wrote."""
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
    """With an empty line before the query and the document, as some public scripts have it."""
    return body.replace("\n<Query>: ", "\n\n<Query>: ").replace("\n<Document>: ", "\n\n<Document>: ")


def sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


# What servers answer for a logit, with the name of what to do about it; the first is right.
SCALES: dict[str, tuple[Callable[[Floats], Floats], str]] = {
    "probabilities": (sigmoid, ""),
    "logits, no sigmoid is taken": (lambda values: values, "logits"),
    "the sigmoid of the sigmoid": (lambda values: sigmoid(sigmoid(values)), "twice"),
    "probabilities of no": (lambda values: sigmoid(-values), "inverted"),
    "logits of no": (lambda values: -values, "inverted"),
}
