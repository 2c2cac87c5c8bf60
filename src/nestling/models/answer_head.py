"""The output layer of a causal language model, read at one position and for two words only."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from nestling.models.token_lookup import rows_in_place


class AnswerHead(nn.Module):
    """Takes the place of a model's output layer, holds its weight under the same name, and computes two rows of it.

    What is sharded can be gathered, since the weight is read inside this module's own forward.

    Args:
        layer: The output layer; its weight may be the token embeddings'.
        no: Token of the answer no.
        yes: Token of the answer yes.
    """

    def __init__(self, layer: nn.Linear, *, no: int, yes: int) -> None:
        super().__init__()
        self.weight = layer.weight  # [V, D]
        self.bias = layer.bias  # [V] or None
        self.answers: Tensor
        self.register_buffer("answers", torch.tensor([no, yes]), persistent=False)

    def forward(self, states: Tensor, *, full_vocabulary: bool = False, in_place: bool = False) -> Tensor:
        """What last states [n, D] say, in float32 outside of autocast.

        Args:
            states: Of the last token of each prompt.
            full_vocabulary: Give log p of no and yes among all words, [n, 2]; else the logit
                z = h . (w_yes - w_no) of yes between the two, [n, 1].
            in_place: The backward pass adds to the gradient of the two rows alone (`token_lookup`).
        """
        wide = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            if full_vocabulary:
                logits = linear(states.to(self.weight.dtype), self.weight, self.bias).to(wide)  # [n, V]
                return logits.log_softmax(dim=1)[:, self.answers]
            # One index for both: every separate one would make a gradient of the whole weight.
            rows = rows_in_place(self.weight, self.answers) if in_place else embedding(self.answers, self.weight)
            no, yes = rows.to(wide)
            logit = states.to(wide) @ (yes - no)[:, None]  # no view, of which FSDP2 warns
            if self.bias is not None:
                logit = logit + (self.bias[self.answers[1]] - self.bias[self.answers[0]])
            return cast(Tensor, logit)
