"""A causal language model of transformers that answers batches of prompts here.

Shapes: B prompts, L tokens of the longest, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase

from nestling.config import require
from nestling.synthesis.conversation import CUT_OFF, Question, Reply
from nestling.synthesis.writers import Talk


class SeededDraw(LogitsProcessor):
    """Makes the largest of a row's scores a draw at a temperature, from a generator that is the row's own.

    Scores plus Gumbel noise are largest where softmax would draw; so what is drawn for a prompt does not depend on the
    other prompts of its batch, as it does with the one generator that sampling has.

    Args:
        temperature: Above 0.
        generators: B, one for each row, on the scores' device.
    """

    def __init__(self, temperature: float, generators: list[torch.Generator]) -> None:
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores to [B, V] float32."""
        drawn = scores.float() / self.temperature
        for row, generator in zip(drawn, self.generators, strict=True):
            row -= torch.empty_like(row).exponential_(generator=generator).log_()
        return drawn


@dataclass
class LocalModel:
    """A loaded model.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Has a chat template.
        temperature: Of sampling; 0 takes the likeliest tokens.
        max_tokens: Tokens of an answer.
        batch_size: Prompts at a time.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    max_tokens: int
    batch_size: int

    @classmethod
    def from_pretrained(cls, directory: Path, *, temperature: float, max_tokens: int, batch_size: int) -> "LocalModel":
        """Load a directory, in the precision of its weights, onto the GPUs if there are any.

        Raises ValueError if the tokenizer has no chat template.
        """
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        require(
            tokenizer.chat_template is not None,
            f"{directory}: the tokenizer has no chat template; expected a model trained to follow instructions",
        )
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", device_map="auto").eval()
        return cls(model, tokenizer, temperature, max_tokens, batch_size)

    def __post_init__(self) -> None:
        self.requests = 0
        own = self.model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [own]
        self._ends = sorted({each for each in (*ends, self.tokenizer.eos_token_id) if each is not None})
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Without what the model's own says of sampling, which is done by `SeededDraw`.
        self.model.generation_config = GenerationConfig(
            eos_token_id=self._ends, pad_token_id=self.tokenizer.pad_token_id
        )

    def hold(self, talks: Iterator[Talk], done: Callable[[], None]) -> None:
        """See `Writer`; a batch is filled up as conversations end."""
        under_way: list[tuple[Talk, Question]] = []
        while True:
            for talk in islice(talks, self.batch_size - len(under_way)):
                under_way.append((talk, next(talk)))
            if not under_way:
                return
            replies = self.answer([question for _, question in under_way])
            going_on = []
            for (talk, _), reply in zip(under_way, replies, strict=True):
                try:
                    going_on.append((talk, talk.send(reply)))
                except StopIteration:
                    done()
            under_way = going_on

    @torch.inference_mode()
    def answer(self, questions: list[Question]) -> list[Reply]:
        """Replies to some questions as one batch, in their order."""
        self.requests += len(questions)
        prompts = [
            self.tokenizer.apply_chat_template(
                question.messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            for question in questions
        ]
        batch = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        batch = batch.to(self.model.device)
        drawing = [self._drawing(questions)] if self.temperature > 0 else []
        written = self.model.generate(
            **batch, max_new_tokens=self.max_tokens, do_sample=False, logits_processor=drawing
        )
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        answers = written[:, batch["input_ids"].shape[1] :].tolist()
        return [self._reply(*each) for each in zip(answers, lengths, strict=True)]

    def _drawing(self, questions: list[Question]) -> SeededDraw:
        device = self.model.device
        return SeededDraw(
            self.temperature, [torch.Generator(device).manual_seed(question.seed) for question in questions]
        )

    def _reply(self, tokens: list[int], prompt_tokens: int) -> Reply:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        text = str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))
        count = len(tokens) if end is None else end + 1
        return Reply(text, CUT_OFF if end is None else "stop", prompt_tokens, count)
