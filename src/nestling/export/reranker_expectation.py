"""What an exported reranker must reproduce: the logits that the model in memory gives for some pairs.

Logits of yes against no, z, are compared, since probabilities near 0 and 1 hide differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from nestling.batches.packing import prompts_to_chunk
from nestling.batches.prompts import copy_backend
from nestling.console import say
from nestling.export.probe_outputs import ProbeOutputs, probe_outputs
from nestling.export.reranker_usage import pair_batch, tokenize_pairs
from nestling.export.serving_files import BaseFiles
from nestling.models.adapter_merging import without_adapters
from nestling.models.causal_reranker import CausalReranker
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.encoding import evaluating
from nestling.models.left_padding import reads_left_padded
from nestling.models.merged_weights import MergedWeights, computing_with
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import AnySettings
from nestling.models.scoring import logit_of

Shape = Literal["causal", "classifier", "encoder"]
Pair = tuple[str, str]

# Longer probes cost minutes on a large model on the CPU, and say nothing new about truncation.
PROBE_QUERY, PROBE_DOCUMENT = 64, 192


@dataclass(frozen=True)
class RerankerExpectation:
    """What a directory must reproduce.

    Args:
        shape: What it holds.
        settings: What its reranker.json says.
        probe_settings: The same with the limits that the probes are cut to.
        max_length: Tokens of a prompt that its CrossEncoder allows; None for a directory without one.
        probe_length: Tokens of a prompt that the probes are cut to.
        outputs: [n] float32, logits of the probes within the limits of query and document.
        public: [n] float32, as `outputs.written` with the ends of prompts beyond `probe_length` cut, as other libraries
            do.
        base: The model before training; None when it was not trained.
        prefix: What weight names may begin with, such as "model."; compared without it.
    """

    shape: Shape
    settings: AnySettings
    probe_settings: AnySettings
    max_length: int | None
    probe_length: int
    outputs: ProbeOutputs
    public: Tensor
    base: BaseFiles | None
    prefix: str

    @property
    def pairs(self) -> list[Pair]:
        """The probes."""
        return probe_pairs(self.probe_settings.query_max_length, self.probe_settings.document_max_length)


def probe_pairs(query_length: int, document_length: int) -> list[Pair]:
    """Short, tiny, Chinese and composed characters, code, white space at the ends; then one pair whose document and
    one whose query is longer than its limit."""
    return [
        ("How do I list the files that changed during the last week?", "find . -mtime -7"),
        ("a", "b"),
        ("什麼是人工智慧？", "人工智慧是研究如何使電腦模擬人類智慧的科學。 🙂 e\u0301"),
        ("first row of an iterator", "def first(rows):\n    return next(iter(rows), None)\n"),
        ("Does a boundary layer become turbulent? ", " The boundary layer over a flat plate does.  "),
        ("turbulence", "The boundary layer over a flat plate becomes turbulent. " * max(1, document_length // 4)),
        ("Which flat plate has a turbulent layer? " * max(1, query_length // 4), "The one in the wind tunnel."),
    ]


def expect_scores(
    reranker: Reranker, merged: MergedWeights, dtype: torch.dtype, shape: Shape, trained: bool
) -> RerankerExpectation:
    """The probes' logits on the way from the trained model to weights written in `dtype`."""
    settings = reranker.settings
    probe = replace(
        settings,
        query_max_length=min(settings.query_max_length, PROBE_QUERY),
        document_max_length=min(settings.document_max_length, PROBE_DOCUMENT),
    )
    pairs = probe_pairs(probe.query_max_length, probe.document_max_length)
    length = prompt_length(reranker, probe)
    own, public = own_prompts(reranker, pairs, probe), public_prompts(reranker, pairs, length)
    base = BaseFiles(reranker.source) if trained else None
    outputs = probe_outputs(reranker, merged, dtype, base, lambda: prompt_logits(reranker, own))
    with computing_with(reranker, outputs.weights):
        public_logits = prompt_logits(reranker, public)
    return RerankerExpectation(
        shape=shape,
        settings=settings,
        probe_settings=probe,
        max_length=prompt_length(reranker, settings) if fits_cross_encoder(reranker, pairs) else None,
        probe_length=length,
        outputs=outputs,
        public=public_logits,
        base=base,
        prefix=f"{without_adapters(reranker.backbone).base_model_prefix}.",
    )


def prompt_length(reranker: Reranker, settings: AnySettings) -> int:
    """Tokens of a prompt with a query and a document at the limits of `settings`."""
    texts = settings.query_max_length + settings.document_max_length
    return min(reranker.pairs.overhead() + texts, reranker.max_length)


def own_prompts(reranker: Reranker, pairs: Sequence[Pair], settings: AnySettings) -> list[list[int]]:
    """Token ids of prompts as we cut them: query and document each to its limit."""
    tokenize = partial(
        reranker.pairs,
        query_max_length=settings.query_max_length,
        document_max_length=settings.document_max_length,
    )
    return [tokenize(query, [document]).ids[0] for query, document in pairs]


def public_prompts(reranker: Reranker, pairs: Sequence[Pair], max_length: int) -> list[list[int]]:
    """The same as other libraries cut them: what is before the suffix, to what `max_length` leaves.

    Of an encoder, the longer one of the two texts, as its tokenizer does.
    """
    if isinstance(reranker, EncoderReranker):
        return public_pairs(reranker, pairs, max_length)
    assert isinstance(reranker, CausalReranker)
    settings = reranker.settings
    return tokenize_pairs(
        reranker.tokenizer,
        pairs,
        prefix=settings.prefix,
        suffix=settings.suffix,
        instruction=settings.instruction,
        max_length=max_length,
    )


def public_pairs(reranker: EncoderReranker, pairs: Sequence[Pair], max_length: int) -> list[list[int]]:
    """Ids of pairs as `nestling.batches.encoder_pairs` has them, but truncated by the tokenizer itself."""
    before, stride = reranker.pairs.before_query(), reranker.pairs.type_stride
    batch: Any = pair_batch(reranker.tokenizer, pairs, instruction=before, max_length=max_length)
    if not stride:
        return cast(list[list[int]], batch["input_ids"])
    rows = zip(batch["input_ids"], batch["token_type_ids"], strict=True)
    return [[token + stride * kind for token, kind in zip(*row, strict=True)] for row in rows]


def fits_cross_encoder(reranker: Reranker, pairs: Sequence[Pair]) -> bool:
    """Whether sentence-transformers gives the scores.

    It makes the prompts of a causal model by a template and pads them on the left; an encoder's are the tokenizer's.
    """
    if not isinstance(reranker, CausalReranker):
        return True
    if not reads_left_padded(reranker):
        name = type(without_adapters(reranker.backbone)).__name__
        say(f"{name} computes other scores of prompts that are padded on the left: no CrossEncoder, which pads so")
        return False
    return reads_whole(reranker, pairs)


def reads_whole(reranker: CausalReranker, pairs: Sequence[Pair]) -> bool:
    """Whether prompts that are tokenised in one piece, as chat templates are, have the tokens of their parts."""
    prompt, backend = reranker.settings.prompt, copy_backend(reranker.tokenizer)
    texts = [prompt.prefix + prompt.body(*pair) + prompt.suffix for pair in pairs]
    whole = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    return whole == public_prompts(reranker, pairs, 10**9)


@torch.no_grad()
def prompt_logits(reranker: Reranker, prompts: Sequence[list[int]]) -> Tensor:
    """Logits of yes, [n] float32 on the CPU; in one batch, since each forward computes and rounds all weights anew."""
    with evaluating(reranker), reranker.computing():
        chunk = prompts_to_chunk([prompts], share_prefix=False, padding_free=reranker.padding_free)
        return logit_of(reranker(chunk.to(reranker.device))).float().cpu()
