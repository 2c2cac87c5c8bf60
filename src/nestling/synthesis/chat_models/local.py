"""A causal language model of transformers that generates completions in batches in this process.

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
from nestling.models.checked_loading import load_weights, loading
from nestling.synthesis.chat_models import RecordedConversation
from nestling.synthesis.conversation import MAX_TOKENS_REACHED, ChatRequest, Completion


class SeededSampler(LogitsProcessor):
    """Sampling with a random generator for each row of a batch, by the Gumbel-max trick.

    With Gumbel noise added to the scores, the largest score is distributed like a sample of the softmax, so greedy
    decoding samples. Unlike with the one generator of `generate`, samples do not depend on the other rows.

    Args:
        temperature: Temperature of sampling, above 0.
        generators: B random generators, one for each row, on the device of the scores.
    """

    def __init__(self, temperature: float, generators: list[torch.Generator]) -> None:
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores to [B, V] float32."""
        sampled = scores.float() / self.temperature
        for row, generator in zip(sampled, self.generators, strict=True):
            row -= torch.empty_like(row).exponential_(generator=generator).log_()
        return sampled


@dataclass
class LocalModel:
    """A language model of transformers.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        temperature: Temperature of sampling; 0 for greedy decoding.
        max_tokens: Maximum number of tokens of a completion.
        batch_size: Prompts per batch.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    temperature: float
    max_tokens: int
    batch_size: int

    @classmethod
    def from_pretrained(cls, directory: Path, *, temperature: float, max_tokens: int, batch_size: int) -> "LocalModel":
        """Load a directory in the dtype of its weights, onto the GPUs if there are any.

        Raises ValueError if the tokenizer has no chat template.
        """
        with loading(directory, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        require(
            tokenizer.chat_template is not None,
            f"{directory}: the tokenizer has no chat template; expected a model trained to follow instructions",
        )
        model = load_weights(AutoModelForCausalLM, directory, dtype="auto", device_map="auto").eval()
        return cls(model, tokenizer, temperature, max_tokens, batch_size)

    def __post_init__(self) -> None:
        self.requests = 0
        eos_token_id = self.model.generation_config.eos_token_id
        ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        self._end_ids = sorted({each for each in (*ends, self.tokenizer.eos_token_id) if each is not None})
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Replaces the model's own sampling settings, since `SeededSampler` does the sampling.
        self.model.generation_config = GenerationConfig(
            eos_token_id=self._end_ids, pad_token_id=self.tokenizer.pad_token_id
        )

    def run_conversations(self, conversations: Iterator[RecordedConversation], done: Callable[[], None]) -> None:
        """See `ChatModel`; new conversations replace those that have ended in the batch."""
        active: list[tuple[RecordedConversation, ChatRequest]] = []
        while True:
            for conversation in islice(conversations, self.batch_size - len(active)):
                active.append((conversation, next(conversation)))
            if not active:
                return
            replies = self.complete([request for _, request in active])
            continued = []
            for (conversation, _), completion in zip(active, replies, strict=True):
                try:
                    continued.append((conversation, conversation.send(completion)))
                except StopIteration:
                    done()
            active = continued

    @torch.inference_mode()
    def complete(self, requests: list[ChatRequest]) -> list[Completion]:
        """Completions of several requests, generated as one batch, in the order of the requests."""
        self.requests += len(requests)
        prompts = [
            self.tokenizer.apply_chat_template(
                request.messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            for request in requests
        ]
        batch = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        batch = batch.to(self.model.device)
        processors = [self._sampler(requests)] if self.temperature > 0 else []
        generated = self.model.generate(
            **batch, max_new_tokens=self.max_tokens, do_sample=False, logits_processor=processors
        )
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        answers = generated[:, batch["input_ids"].shape[1] :].tolist()
        return [self._completion(*each) for each in zip(answers, lengths, strict=True)]

    def _sampler(self, requests: list[ChatRequest]) -> SeededSampler:
        device = self.model.device
        return SeededSampler(
            self.temperature, [torch.Generator(device).manual_seed(request.seed) for request in requests]
        )

    def _completion(self, tokens: list[int], prompt_tokens: int) -> Completion:
        end = next((index for index, token in enumerate(tokens) if token in self._end_ids), None)
        text = str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))
        count = len(tokens) if end is None else end + 1
        return Completion(text, MAX_TOKENS_REACHED if end is None else "stop", prompt_tokens, count)
