"""The weights of a model in memory with LoRA adapters merged, without a copy of the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.models.adapter_merging import bare_name, lora_delta, lora_layers, merged_weight, without_adapters
from nestling.models.attention import VARLEN
from nestling.models.replaced_weights import weights_replaced
from nestling.models.safetensors_writer import Spec
from nestling.models.token_model import TokenModel


class MergedWeights(Mapping[str, Tensor]):
    """The weights of a backbone under the names that they have without adapters; each is computed when accessed.

    An adapted weight is merged in float32 by `nestling.models.adapter_merging`; every other tensor is the model's own.
    The model is not changed. Iteration lists only the first name of tied tensors; the others can be accessed as well.

    Args:
        backbone: A transformers model, possibly wrapped by peft.

    Raises:
        ValueError: The backbone has adapters that cannot be merged exactly.
    """

    def __init__(self, backbone: nn.Module) -> None:
        model = without_adapters(backbone)
        self._layers = lora_layers(backbone)
        self._tensors: dict[str, Tensor] = {}
        self._tied: dict[str, str] = {}  # to the first name of the tensor
        seen: dict[tuple[int, torch.Size], str] = {}
        for name, tensor in model.state_dict().items():
            if ".lora_" in name:
                continue
            bare, identity = bare_name(name), (tensor.data_ptr(), tensor.shape)
            if identity in seen and tensor.numel():
                self._tied[bare] = seen[identity]
                continue
            seen[identity] = bare
            self._tensors[bare] = tensor

    def __getitem__(self, name: str) -> Tensor:
        name = self.first_name(name)
        tensor = self._tensors[name]
        layer = self._layers.get(name)
        return tensor if layer is None else merged_weight(layer, tensor, lora_delta(layer))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def first_name(self, name: str) -> str:
        """The name under which iteration lists the tensor."""
        return self._tied.get(name, name)

    def specs(self, dtype: torch.dtype) -> dict[str, Spec]:
        """Shape and dtype of each tensor once those of floating point have been rounded to `dtype`."""
        return {
            name: Spec(tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in `dtype`."""
        return sum(spec.nbytes() for spec in self.specs(dtype).values())


@contextmanager
def computing_with(
    model: TokenModel, weights: Mapping[str, Tensor] | None = None, *, precision: torch.dtype = torch.float32
) -> Iterator[None]:
    """A context in which `model` computes with other weights, or with its own, all of them cast to float32.

    Only one module at a time has a copy in float32, and autocast keeps no casts: memory never holds a second copy.

    Args:
        model: The model, with adapters or without.
        weights: By the names that `MergedWeights` has; the adapters are off. None for the model's own with its
            adapters on.
        precision: Of the computation, as the model's own `precision`.
    """
    own, backbone = model.precision, without_adapters(model.backbone)
    model.precision = precision
    try:
        with (
            weights_replaced(backbone, weights),
            nullcontext() if weights is None else _adapters_off(model.backbone),
            _float32_attention(backbone) if precision == torch.float32 else nullcontext(),
            torch.autocast(backbone.device.type, enabled=False, cache_enabled=False),
        ):
            yield
    finally:
        model.precision = own


@contextmanager
def _adapters_off(backbone: nn.Module) -> Iterator[None]:
    if isinstance(backbone, PeftModel):
        with backbone.disable_adapter():
            yield
    else:
        yield


@contextmanager
def _float32_attention(model: PreTrainedModel) -> Iterator[None]:
    attention = model.config._attn_implementation
    if attention not in ("flash_attention_2", VARLEN):
        yield
        return
    model.set_attn_implementation("sdpa")  # FlashAttention, which varlen uses on a GPU, does not support float32
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
