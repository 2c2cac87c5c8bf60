"""Logits of an encoder's reranker directory, with correct pairs and with the usual errors of servers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nestling.batches.packing import pad
from nestling.export.reranker_expectation import Pair
from nestling.gpu import best_device
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.encoding import evaluating
from nestling.retrieval.metrics import Floats
from nestling.serving.reranker_reference import PromptVariant


@dataclass(frozen=True)
class PairVariant(PromptVariant):
    """One way of making pairs: `parts` gives the two texts of a pair, or one text alone.

    Args:
        types: Whether the second text has a token type of its own, where the model reads types.
        special_tokens: Whether the tokenizer's special tokens are around the texts.
    """

    types: bool = True
    special_tokens: bool = True


@dataclass(frozen=True)
class EncoderReference:
    """An encoder's directory, scored with correct pairs or with usual errors.

    Args:
        reranker: The model.
    """

    reranker: EncoderReranker

    @classmethod
    def load(cls, directory: str) -> "EncoderReference":
        """Load a directory in float32, on a GPU if there is one."""
        return cls(EncoderReranker.from_pretrained(directory).to(best_device()))

    @property
    def source(self) -> str:
        return self.reranker.source

    @property
    def instruction(self) -> str:
        return self.reranker.settings.instruction

    @property
    def scale(self) -> str:
        """Of correct answers, a key of `nestling.serving.reranker_reference.SCALES`."""
        return "probabilities" if self.reranker.settings.activation == "sigmoid" else "logits, no sigmoid is taken"

    def logits_of(self, variant: PromptVariant, pairs: Sequence[Pair]) -> Floats:
        """[n] float64: logits of n pairs."""
        assert isinstance(variant, PairVariant)
        logits = []
        with torch.no_grad(), evaluating(self.reranker):
            for pair in pairs:
                chunk = pad([self.ids(variant, pair)], 0).to(self.reranker.device)
                logits.append(self.reranker(chunk)[0, 0].double().cpu())
        found: Floats = torch.stack(logits).numpy()
        return found

    def ids(self, variant: PairVariant, pair: Pair) -> list[int]:
        """Token ids, as `nestling.batches.encoder_pairs` has them."""
        pairs = self.reranker.pairs
        first, *second = (pairs.backend.encode(text, add_special_tokens=False) for text in variant.parts(*pair))
        joined = pairs.backend.post_process(first, second[0] if second else None, variant.special_tokens)
        types = joined.type_ids if variant.types else [0] * len(joined.ids)
        ids = [token + pairs.type_stride * kind for token, kind in zip(joined.ids, types, strict=True)]
        return ids[: pairs.max_length]

    def variants(self) -> Iterator[PairVariant]:
        """Yield the ways of making pairs; the first one is correct."""
        before = self.reranker.pairs.before_query()
        yield PairVariant(lambda q, d: [before + q, d])
        yield PairVariant(lambda q, d: [f"{before}{q} {d}"], "template", "both texts as one", "pair")
        yield PairVariant(lambda q, d: [d], "template", "the document alone", "pair")
        if self.reranker.pairs.type_stride:
            what = "one token type for both texts"
            yield PairVariant(lambda q, d: [before + q, d], "template", what, "types", types=False)
        what = "no special tokens"
        yield PairVariant(lambda q, d: [before + q, d], "template", what, "pair", special_tokens=False)
        if before:
            yield PairVariant(lambda q, d: [q, d], "instruction", "no instruction", "request")
        what = "the document as the query and the query as the document"
        yield PairVariant(lambda q, d: [before + d, q], "sides", what, "sides")
