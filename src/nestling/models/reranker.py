"""The reranking model: a causal language model that is asked whether a document answers a query, and says yes or no."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

from nestling.batches.packing import AnyChunk, Chunk, PackedChunk
from nestling.batches.pair_prompts import PairTokenizer, RerankPrompt
from nestling.models.answer_head import AnswerHead
from nestling.models.attention import VARLEN, resolve_attention
from nestling.models.merged_weights import without_adapters
from nestling.models.pooling import last_token
from nestling.models.scoring import Group, ScoreTally, score_groups
from nestling.models.token_model import TokenModel, is_decoder, load_backbone, read_config, require_fast
from nestling.models.weights import model_file

# What our own directories say of a reranker beside the files that others read.
SETTINGS = "reranker.json"

# A model whose logits are more than its states times its output layer (scaled, capped) is refused; told by a logit
# that is large enough for any cap.
PROBE = 256.0
LOGIT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class RerankerSettings:
    """What a reranker was trained to read.

    Args:
        prefix: Before what is asked.
        suffix: After it, up to the answer.
        instruction: Default task of queries.
        yes: The word for relevant.
        no: The word for not.
        query_max_length: Tokens of a query.
        document_max_length: Tokens of a document.
    """

    prefix: str = RerankPrompt.prefix
    suffix: str = RerankPrompt.suffix
    instruction: str = RerankPrompt.instruction
    yes: str = "yes"
    no: str = "no"
    query_max_length: int = 512
    document_max_length: int = 512

    @property
    def prompt(self) -> RerankPrompt:
        return RerankPrompt(self.prefix, self.suffix, self.instruction)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Ranked:
    """A document in its new place.

    Args:
        index: Which of the documents that were given.
        score: Probability of yes.
    """

    index: int
    score: float


class Reranker(TokenModel):
    """Queries and documents to scores.

    Args:
        backbone: A causal language model whose output layer is an `AnswerHead`, possibly wrapped by peft.
        tokenizer: Its tokenizer, fast.
        settings: What it reads.
        source: The directory or hub id that it came from.
        precision: float32, or bfloat16 to compute under autocast over the weights as they are.
        share_prefix: Whether the documents of a query run the tokens that their prompts begin with once.

    Attributes:
        full_vocabulary: Whether forward gives log-probabilities among all words, as a loss over these needs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: RerankerSettings,
        source: str,
        precision: torch.dtype = torch.float32,
        share_prefix: bool = True,
    ) -> None:
        super().__init__(backbone, tokenizer, source=source, precision=precision)
        self.settings = settings
        self.share_prefix = share_prefix
        self.full_vocabulary = False
        self.pairs = PairTokenizer(tokenizer, settings.prompt, yes=settings.yes, no=settings.no)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        precision: torch.dtype = torch.float32,
        attn_implementation: str = "auto",
        dropout: float | None = 0.0,
        settings: RerankerSettings | None = None,
        share_prefix: bool = True,
        cpu: bool = False,
        quantisation: BitsAndBytesConfig | None = None,
    ) -> Self:
        """Load a directory or hub id of a causal language model: a reranker, or one that is to become one.

        Args:
            model: Directory or hub id.
            dtype: Of the weights in memory; float32 for training all of them, "auto" for the published one.
            precision: Of the computation.
            attn_implementation: "auto" or "varlen" for packed prompts, which `share_prefix` needs; else transformers'.
            dropout: Inside the model; None keeps the model's own.
            settings: What it is to read; by default what its files say, or Qwen3-Reranker's.
            share_prefix: Run the tokens that the prompts of a query have in common once.
            cpu: The model stays on the CPU even if there is a GPU.
            quantisation: How transformers is to quantise the weights; not at all by default.

        Raises:
            ValueError: Not a causal language model, answers of several tokens, or logits that are more than states
                times the output layer.
        """
        config = read_config(model)
        if not is_decoder(config):
            raise ValueError(f"{model}: a reranker is a causal language model, and this is {config.model_type}")
        if any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
            raise ValueError(f"{model} is a classifier, without the words that it answers; load the causal directory")
        packed = attn_implementation in ("auto", VARLEN)
        backbone = load_backbone(
            AutoModelForCausalLM,
            model,
            config,
            dtype=dtype,
            attn_implementation=resolve_attention(VARLEN if packed else attn_implementation, precision, cpu=cpu),
            dropout=dropout,
            quantisation=quantisation,
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
        require_fast(tokenizer, model)
        chosen = settings or read_settings(model)
        pairs = PairTokenizer(tokenizer, chosen.prompt, yes=chosen.yes, no=chosen.no)
        read_two_rows(cast(Any, backbone), pairs, str(model))
        return cls(
            backbone,
            tokenizer,
            settings=chosen,
            source=str(model),
            precision=precision,
            share_prefix=share_prefix and packed,
        )

    @property
    def transformer(self) -> Any:
        """The model without head, to be called."""
        causal = without_adapters(self.backbone)
        return getattr(causal, causal.base_model_prefix)

    @property
    def width(self) -> int:
        return 2 if self.full_vocabulary else 1

    @property
    def head(self) -> AnswerHead:
        return cast(AnswerHead, without_adapters(self.backbone).get_output_embeddings())

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """Of each prompt, float32: the logit of yes, [n, 1], or with `full_vocabulary` log p of no and yes, [n, 2].

        With `in_place` the backward pass adds to the gradient of token embeddings row by row (`token_lookup`).
        """
        with self.computing():
            hidden = self.hidden_states(chunk, in_place=in_place)
            if isinstance(chunk, Chunk):
                states = last_token(hidden, chunk.lengths)
            else:
                states = hidden[0, chunk.cu_seqlens[1:] - 1 if isinstance(chunk, PackedChunk) else chunk.ends]
            logits: Tensor = self.head(states, full_vocabulary=self.full_vocabulary, in_place=in_place)
            return logits

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        tokens_per_batch: int | None = None,
        progress: str | None = None,
    ) -> Tensor:
        """Probability of yes for each (query, document), [n] float32; pairs with equal queries are run together."""
        by_query: dict[str, list[int]] = {}
        for i, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(i)
        groups = [Group(query, [pairs[i][1] for i in rows], instruction) for query, rows in by_query.items()]
        result = torch.empty(len(pairs))
        logits = self.logits(groups, tokens_per_batch=tokens_per_batch, progress=progress)
        for rows, values in zip(by_query.values(), logits, strict=True):
            result[rows] = values.sigmoid().float()
        return result

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, instruction: str | None = None
    ) -> list[Ranked]:
        """The `top_k` documents that score highest, best first, all by default; equal scores keep their order."""
        scores = self.score([(query, document) for document in documents], instruction=instruction)
        order = scores.argsort(descending=True, stable=True)[:top_k]
        return [Ranked(int(i), float(scores[i])) for i in order]

    def logits(
        self,
        groups: Sequence[Group],
        *,
        tokens_per_batch: int | None = None,
        progress: str | None = None,
        tally: ScoreTally | None = None,
    ) -> list[Tensor]:
        """Of each group the logits of its documents, [documents] float32 each; arguments as in `score_groups`."""
        return list(score_groups(self, groups, tokens_per_batch=tokens_per_batch, progress=progress, tally=tally))


def read_settings(model: str | Path) -> RerankerSettings:
    """What a directory or hub id says that it reads; Qwen3-Reranker's prompt where it says nothing."""
    path = model_file(str(model), SETTINGS)
    if path is None:
        return RerankerSettings()
    found = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(found.keys() - {each.name for each in fields(RerankerSettings)})
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)}: not known; a newer Nestling may have written it")
    return RerankerSettings(**found)


def read_two_rows(causal: Any, pairs: PairTokenizer, source: str) -> None:
    """Put an `AnswerHead` in the place of a model's output layer, if its logits are states times that layer."""
    layer = causal.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise ValueError(f"{source}: the output layer is {type(layer).__name__}, expected a plain linear one")
    found = probed_logit(causal, layer)
    if abs(found - PROBE) > LOGIT_TOLERANCE * PROBE:
        raise ValueError(
            f"{source}: its logits are not its states times its output layer ({PROBE:g} by the layer comes out as "
            f"{found:g}); models that scale or cap logits are not supported"
        )
    causal.set_output_embeddings(AnswerHead(layer, no=pairs.no_id, yes=pairs.yes_id))


def probed_logit(causal: Any, layer: nn.Linear) -> float:
    """The logit that a model makes of a state whose product with the output layer, of a single word, is `PROBE`.

    The model's own code makes it, but no weight of the model takes part: ZeRO-3 has them in shards.
    """
    device, dtype, width = layer.weight.device, layer.weight.dtype, layer.in_features
    word = nn.Linear(width, 1, bias=False, device=device, dtype=dtype)
    nn.init.constant_(word.weight, 1 / width)
    name = causal.base_model_prefix
    transformer = getattr(causal, name)
    setattr(causal, name, GivenStates(torch.full((1, 1, width), PROBE, device=device, dtype=dtype)))
    causal.set_output_embeddings(word)
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.no_grad():
        logit = float(causal(input_ids=tokens, use_cache=False).logits)
    setattr(causal, name, transformer)
    return logit


class GivenStates(nn.Module):
    """Takes the place of a transformer, whatever it would read.

    Args:
        states: [B, L, D].
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, **inputs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.states)
