"""The head of a reranker: the output layer of a causal language model, for one position and two answers only."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.modeling_outputs import BaseModelOutputWithPast

from nestling.models.token_lookup import rows_in_place

# Models whose logits are not the product of hidden states and output layer (scaled or capped logits) are refused. This
# is tested with a logit that is larger than any cap in use.
PROBE_LOGIT = 256.0
PROBE_TOLERANCE = 1e-2


class AnswerHead(nn.Module):
    """Replaces a model's output layer: holds its weight under the same name, and computes the logits of two tokens.

    The weight is used only inside this module's `forward`, where ZeRO-3 and FSDP2 gather sharded weights.

    Args:
        layer: The output layer; its weight may be tied to the token embeddings.
        no: Id of the token of the answer no.
        yes: Id of the token of the answer yes.
    """

    def __init__(self, layer: nn.Linear, *, no: int, yes: int) -> None:
        super().__init__()
        self.weight = layer.weight  # [V, D]
        self.bias = layer.bias  # [V] or None
        self.answers: Tensor
        self.register_buffer("answers", torch.tensor([no, yes]), persistent=False)

    def forward(self, states: Tensor, *, full_vocabulary: bool = False, in_place: bool = False) -> Tensor:
        """The answers' logits or log-probabilities, computed in float32 (at least) outside of autocast.

        Args:
            states: [n, D] hidden states h of the last token of each prompt.
            full_vocabulary: Return log p of no and yes over the full vocabulary, [n, 2], instead of the logit of yes
                against no, z = h . (w_yes - w_no), [n, 1].
            in_place: Whether the backward pass adds the gradient of the two rows in place, as
                `nestling.models.token_lookup` does.
        """
        wide = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            if full_vocabulary:
                logits = linear(states.to(self.weight.dtype), self.weight, self.bias).to(wide)  # [n, V]
                return logits.log_softmax(dim=1)[:, self.answers]
            # Both rows by one lookup: each lookup makes a gradient of the size of the whole weight.
            rows = rows_in_place(self.weight, self.answers) if in_place else embedding(self.answers, self.weight)
            no, yes = rows.to(wide)
            logit = states.to(wide) @ (yes - no)[:, None]  # not a view of a row, of which FSDP2 warns
            if self.bias is not None:
                logit = logit + (self.bias[self.answers[1]] - self.bias[self.answers[0]])
            return cast(Tensor, logit)


def replace_output_layer(causal: Any, *, no: int, yes: int, source: str) -> None:
    """Replace the output layer of a causal language model by an `AnswerHead`.

    Args:
        causal: The transformers model.
        no: Id of the token of the answer no.
        yes: Id of the token of the answer yes.
        source: The model's directory or hub id, for errors.

    Raises:
        ValueError: The model's logits are not the product of its hidden states and its output layer.
    """
    layer = causal.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise ValueError(f"{source}: the output layer is {type(layer).__name__}, expected a plain linear one")
    logit = probe_logit(causal, layer)
    if abs(logit - PROBE_LOGIT) > PROBE_TOLERANCE * PROBE_LOGIT:
        raise ValueError(
            f"{source}: its logits are not its states times its output layer ({PROBE_LOGIT:g} by the layer comes out "
            f"as {logit:g}); models that scale or cap logits are not supported"
        )
    causal.set_output_embeddings(AnswerHead(layer, no=no, yes=yes))


def probe_logit(causal: Any, layer: nn.Linear) -> float:
    """The logit that a model computes from a hidden state whose product with its output layer is `PROBE_LOGIT`.

    The model's own code runs, but with an output layer for a single token and without its transformer, so that no
    weight of the model is used: under ZeRO-3 they are sharded. Leaves the model without its output layer.
    """
    device, dtype, width = layer.weight.device, layer.weight.dtype, layer.in_features
    one_token = nn.Linear(width, 1, bias=False, device=device, dtype=dtype)
    nn.init.constant_(one_token.weight, 1 / width)
    name = causal.base_model_prefix
    transformer = getattr(causal, name)
    setattr(causal, name, FixedStates(torch.full((1, 1, width), PROBE_LOGIT, device=device, dtype=dtype)))
    causal.set_output_embeddings(one_token)
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.no_grad():
        logit = float(causal(input_ids=tokens, use_cache=False).logits)
    setattr(causal, name, transformer)
    return logit


class FixedStates(nn.Module):
    """Replaces a transformer: returns the same hidden states for any input.

    Args:
        states: [B, L, D] hidden states.
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, **inputs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.states)
