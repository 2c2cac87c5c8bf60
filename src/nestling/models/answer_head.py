"""The head of a reranker: the output layer of a causal language model, for one position and two answers only."""

from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.modeling_outputs import BaseModelOutputWithPast

from nestling.models.token_lookup import rows_in_place

# Products of states and output layer from which a model's scale and cap of logits are read (the first two), and with
# which they are checked. Powers of two are exact.
SMALL, LARGE = 2.0**-10, 2.0**40
PROBED = (SMALL, LARGE, -(2.0**9), -(2.0**4), -0.5, 2.0, 2.0**5, 2.0**7)
PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class LogitTransform:
    """What a model makes of the product z of states and output layer: scale z, or cap tanh(scale z / cap).

    Args:
        scale: Such as 1 / logits_scaling of Granite, or logit_scale of Cohere.
        cap: Such as final_logit_softcapping of Gemma 2; None for logits without limit.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        scaled = products if self.scale == 1 else products * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


class AnswerHead(nn.Module):
    """Replaces a model's output layer: holds its weight under the same name, and computes the logits of two tokens.

    The weight is used only inside this module's `forward`, where ZeRO-3 and FSDP2 gather sharded weights.

    Args:
        layer: The output layer; its weight may be tied to the token embeddings.
        no: Id of the token of the answer no.
        yes: Id of the token of the answer yes.
        transform: What the model makes of the layer's output.
    """

    def __init__(self, layer: nn.Linear, *, no: int, yes: int, transform: LogitTransform = LogitTransform()) -> None:
        super().__init__()
        self.transform = transform
        self.weight = layer.weight  # [V, D]
        self.bias = layer.bias  # [V] or None
        self.answers: Tensor
        self.register_buffer("answers", torch.tensor([no, yes]), persistent=False)

    def forward(self, states: Tensor, *, full_vocabulary: bool = False, in_place: bool = False) -> Tensor:
        """The answers' logits or log-probabilities, computed in float32 (at least) outside of autocast.

        Args:
            states: [n, D] hidden states h of the last token of each prompt.
            full_vocabulary: Return log p of no and yes over the full vocabulary, [n, 2], instead of the logit of yes
                against no, [n, 1]: h . (w_yes - w_no), scaled, or the difference of two capped logits.
            in_place: Whether the backward pass adds the gradient of the two rows in place, as
                `nestling.models.token_lookup` does.
        """
        wide = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            if full_vocabulary:
                logits = linear(states.to(self.weight.dtype), self.weight, self.bias).to(wide)  # [n, V]
                return self.transform(logits).log_softmax(dim=1)[:, self.answers]
            # Both rows by one lookup: each lookup makes a gradient of the size of the whole weight.
            rows = rows_in_place(self.weight, self.answers) if in_place else embedding(self.answers, self.weight)
            rows, bias = rows.to(wide), None if self.bias is None else self.bias[self.answers].to(wide)
            if self.transform.cap is not None:
                no, yes = self.transform(linear(states.to(wide), rows, bias)).unbind(dim=1)
                return (yes - no)[:, None]
            no, yes = rows
            logit = states.to(wide) @ (yes - no)[:, None]  # not a view of a row, of which FSDP2 warns
            if bias is not None:
                logit = logit + (bias[1] - bias[0])
            return self.transform(logit)


def replace_output_layer(causal: Any, *, no: int, yes: int, source: str) -> None:
    """Replace the output layer of a causal language model by an `AnswerHead`.

    Args:
        causal: The transformers model.
        no: Id of the token of the answer no.
        yes: Id of the token of the answer yes.
        source: The model's directory or hub id, for errors.

    Raises:
        ValueError: The model's logits are no function of its hidden states times its output layer, as far as
            `LogitTransform` goes.
    """
    layer = causal.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise ValueError(f"{source}: the output layer is {type(layer).__name__}, expected a plain linear one")
    try:
        transform = read_transform(causal, layer)
    except Exception as error:  # whatever the model's code raises on states that it did not compute
        raise ValueError(
            f"{source}: {type(causal).__name__} makes its logits in a way that a reranker cannot follow "
            f"({type(error).__name__}: {shorten(str(error), 200)}); train another causal language model"
        ) from error
    causal.set_output_embeddings(AnswerHead(layer, no=no, yes=yes, transform=transform))


def read_transform(causal: Any, layer: nn.Linear) -> LogitTransform:
    """What a model makes of the output of its output layer, read from what it makes of known products.

    Leaves the model without its output layer.

    Raises:
        ValueError: It is neither a scale nor a cap, or other states reach the output layer than the transformer's.
    """
    products, logits = probe_logits(causal, layer)
    scale, large = float(logits[0, 0]) / SMALL, float(logits[0, 1])
    transform = LogitTransform(scale, large if large < scale * LARGE / 2 else None)
    if not (scale > 0 and torch.allclose(logits, transform(products), rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE)):
        raise ValueError(f"products {products[0].tolist()} come out as {logits[0].tolist()}")
    return transform


def probe_logits(causal: Any, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Products of states and output layer, [2, n] float32, and the logits that a model makes of them.

    The model's own code runs, but with an output layer of n tokens and without its transformer: its states are ones,
    and at the second position twos. Each row of the output layer has its product in another column, and where there is
    a bias, every other row has it there instead.
    """
    device, width = layer.weight.device, layer.in_features
    wanted = torch.tensor(PROBED, device=device)
    rows = torch.arange(len(wanted), device=device)
    in_bias = (rows % 2 == 1) & (layer.bias is not None)
    probe = nn.Linear(width, len(wanted), bias=layer.bias is not None, device=device, dtype=torch.float32)
    states = torch.ones(1, 2, width, device=device) * torch.tensor([1.0, 2.0], device=device)[:, None]
    name = causal.base_model_prefix
    transformer = getattr(causal, name)
    setattr(causal, name, FixedStates(states, transformer))
    causal.set_output_embeddings(probe)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        probe.weight[rows, rows % width] = wanted.masked_fill(in_bias, 0)
        if probe.bias is not None:
            probe.bias.copy_(wanted.masked_fill(~in_bias, 0))
        products = probe(states)[0]
        logits = causal(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device)).logits[0]
    setattr(causal, name, transformer)
    return products, logits


class FixedStates(nn.Module):
    """Replaces a transformer: returns the same hidden states for any input.

    Args:
        states: [B, L, D] hidden states.
        replaced: The transformer, of which a model may read other attributes.
    """

    def __init__(self, states: Tensor, replaced: nn.Module) -> None:
        super().__init__()
        self.states = states
        self.replaced = (replaced,)  # in a tuple, so that it is no part of this module

    @property
    def decoder(self) -> "FixedStates":
        """What OPT and BART call instead of their transformer."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.replaced[0], name)

    def forward(self, *inputs: Any, **settings: Any) -> "FixedOutput":
        return FixedOutput(last_hidden_state=self.states)


class FixedOutput(BaseModelOutputWithPast):
    """Without all that a transformer may return beside its states, such as router logits or states of Mamba."""

    def __getattr__(self, name: str) -> None:
        return None
