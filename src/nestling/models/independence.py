"""Whether the texts of a chunk leave each other alone, tried on a few tokens when a model is loaded.

A text must get the hidden states that transformers gives it alone, whatever stands beside it. What a model does is read
from its states, not from its name: bidirectional variants have the names of causal models, layers that carry a state
(Mamba, Qwen3.5, LFM2) go over the borders of packed texts, and some encoders mix a text with its padding.

Shapes: L tokens of a short text, D dimensions.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten

import torch
import transformers
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from nestling.batches.packing import concatenate, pad
from nestling.batches.prompts import padding_id
from nestling.console import say_once
from nestling.models.adapter_merging import without_adapters
from nestling.models.checked_loading import lacks_memory
from nestling.models.first_layers import FirstLayers, in_evaluation_mode, in_float32, plain_attention, short_windows
from nestling.models.remote_code import code_hashes, is_trusted
from nestling.models.token_model import TokenModel
from nestling.records.store import default_cache, digest, scratch_file, writable

# Part of every cache key: raise it when what is tried changes, or how chunks run through a model.
VERSION = 3
SHORT, LONG = 4, 6  # tokens of the texts
# In float32, differences up to these shares are rounding: of a text alone and in a chunk, whose shapes differ, a share
# of its states or of what another token changes in them; with other texts beside it, in equal shapes, a share of them.
OF_STATES, OF_CHANGES, OF_NEIGHBOURS = 1e-5, 1e-3, 2e-6


@dataclass(frozen=True)
class Findings:
    """What was found.

    Args:
        causal: Whether tokens depend on none after them.
        padded: Whether texts in a padded chunk have the states that they have alone.
        packed: The same of a packed chunk; False of a model that reads none.
    """

    causal: bool
    padded: bool
    packed: bool


def require_independent_texts(model: TokenModel, *, packed: bool, padded_attention: str) -> None:
    """Try a model, have it read padded chunks if it mixes packed texts, and take over whether it is causal.

    Args:
        model: The model, just loaded, without adapters.
        packed: Whether packed chunks are wanted of it.
        padded_attention: Name of the attention implementation for padded chunks.

    Raises:
        ValueError: It mixes a text with its padding, or with texts beside it.
    """
    found = cached_findings(model)
    name = type(model.transformer).__name__
    if found is not None:  # else what the config says holds
        model.causal = found.causal
        if not found.padded:
            raise ValueError(
                f"{model.source}: {name} gives a text other states beside a longer text than alone, so that embeddings "
                "would depend on the batch; take a model of another architecture"
            )
        if model.padding_free and not found.packed:
            without_adapters(model.backbone).set_attn_implementation(padded_attention)
    if packed and not model.padding_free:
        say_once(f"{model.source}: {name} cannot read packed texts one by one; they are padded")


def cached_findings(model: TokenModel) -> Findings | None:
    """What was found for the model's architecture, by an earlier process perhaps; None if it cannot be tried.

    The key is all that the findings depend on: the class, with the files of a model's own code, the config
    and the attention, not the values of the weights.
    """
    backbone = without_adapters(model.backbone)
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    libraries = [torch.__version__, transformers.__version__]
    code = code_hashes(model.source) if is_trusted(model.source) else {}
    key = [VERSION, type(backbone).__qualname__, config, model.config._attn_implementation, *libraries, code]
    name = f"{model.config.model_type}-{digest(json.dumps(key, sort_keys=True, default=str))}.json"
    path = default_cache() / "independence" / name
    found = read(path)
    if found is None and can_be_tried(model):
        found = try_out(model)
        if found is not None:
            write(path, found)
    return found


def read(path: Path) -> Findings | None:
    """Findings in a file of the cache; None if there is none, or it holds something else."""
    with suppress(OSError, ValueError, TypeError):
        return Findings(**json.loads(path.read_text(encoding="utf-8")))
    return None


def write(path: Path, found: Findings) -> None:
    """Keep findings for later processes, where the cache can be written."""
    with suppress(OSError, ValueError), writable(path.parent), scratch_file(path.parent) as scratch:
        scratch.write_text(json.dumps(asdict(found)), encoding="utf-8")
        os.replace(scratch, path)


def can_be_tried(model: TokenModel) -> bool:
    """Whether its weights are here, whole, and plain numbers: ZeRO-3 and FSDP load parts, and others are quantised."""
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_enabled()
    return not sharded and getattr(model.config, "quantization_config", None) is None


def try_out(model: TokenModel) -> Findings | None:
    """Run some tokens through the first layers in float32; None if the states say nothing, such as of weights of 0.

    Raises:
        ValueError: It cannot be run, by transformers or on token embeddings.
    """
    backbone = without_adapters(model.backbone)
    with torch.no_grad(), in_evaluation_mode(model), short_windows(backbone), in_float32(backbone):
        try:
            return Trial(model).findings()
        except Exception as error:
            if lacks_memory(error):
                raise
            reason = shorten(str(error), 300, placeholder=" …")
            raise ValueError(
                f"{model.source}: {type(model.transformer).__name__} cannot be run on padded texts by their token "
                f"embeddings ({type(error).__name__}: {reason}); take a model of another architecture"
            ) from error


class Trial:
    """A short text beside a longer one, in a padded and in a packed chunk, and beside another one.

    Args:
        model: The model, in evaluation mode.
    """

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        self.layers = FirstLayers(model)
        self.short, self.long, self.other = (token_ids(model, *each) for each in ((SHORT, 0), (LONG, 20), (LONG, 40)))

    def findings(self) -> Findings | None:
        """What is found; None if another token changes nothing, or states are no numbers."""
        with plain_attention(without_adapters(self.model.backbone)):
            alone, changed = self.layers.states([self.short, [*self.short[:-1], self.other[0]]])
            change = (alone - changed)[-1].norm()
            if not (alone.isfinite().all() and change > 0):
                return None
            limit = torch.maximum(OF_CHANGES * change, OF_STATES * alone.norm(dim=-1))  # [L]
            self.model.causal = bool(((alone - changed).norm(dim=-1) <= limit)[:-1].all())
            padded = independent(self.padded, alone, limit)
        packed = self.model.padding_free and all(
            independent(run, alone, limit)
            for run in (self.packed, self.padded)  # evaluation pads all the same
        )
        return Findings(self.model.causal, padded, packed)

    def padded(self) -> Iterator[Tensor]:
        """[1, L, D] states of the short text in a padded chunk with a longer one, and in one with another."""
        for long in (self.long, self.other):
            chunk = pad([long, self.short], padding_id(self.model.tokenizer)).to(self.model.device)
            yield self.layers.chunk_states(chunk)[1:, :SHORT]

    def packed(self) -> Iterator[Tensor]:
        """[2, L, D] states of the short text before and after a longer one in a packed chunk, and another one."""
        for long in (self.long, self.other):
            row = self.layers.chunk_states(concatenate([self.short, long, self.short]).to(self.model.device))[0]
            yield torch.stack([row[:SHORT], row[-SHORT:]])


def independent(run: Callable[[], Iterator[Tensor]], alone: Tensor, limit: Tensor) -> bool:
    """Whether a text has the states that it has alone, [L, D], and these do not change with the text beside it."""
    states, others = run()
    alike = (states - alone).norm(dim=-1) <= limit
    untouched = (states - others).norm(dim=-1) <= OF_NEIGHBOURS * states.norm(dim=-1)
    return bool(alike.all() and untouched.all())


def token_ids(model: TokenModel, count: int, start: int) -> list[int]:
    """Ids over all the vocabulary, without those that the config has a use for, such as padding."""
    config = model.config.to_dict()
    special = {value for name, value in config.items() if name.endswith("token_id") and isinstance(value, int)}
    size = int(model.config.vocab_size)
    ids = ((7919 * i + 11) % size for i in range(start, start + 100 * count))
    return list(islice((each for each in ids if each not in special), count))
