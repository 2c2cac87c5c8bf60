"""Weights on their way to and from disk, one tensor at a time: a model is never held twice."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

SHARD_BYTES = 5 * 10**9


class MergedWeights(Mapping[str, Tensor]):
    """The weights of a backbone under the names that it has without adapters; each is computed when it is read.

    A LoRA layer gives W + scale B A in float32 (arXiv 2106.09685), every other tensor is the live one. The model is
    not changed. Tied tensors appear once, under their first name.

    Raises:
        ValueError: The backbone has adapters other than plain LoRA on linear layers.
    """

    def __init__(self, backbone: nn.Module) -> None:
        model = without_adapters(backbone)
        adapted = [(name, each) for name, each in model.named_modules() if isinstance(each, BaseTunerLayer)]
        self._layers = {name: _plain_lora(name, each) for name, each in adapted}
        self._tensors: dict[str, Tensor] = {}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in model.state_dict().items():
            identity = (tensor.data_ptr(), tensor.shape)
            if ".lora_" in name or (identity in seen and tensor.numel()):
                continue
            seen.add(identity)
            self._tensors[name.replace(".base_layer.", ".")] = tensor

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        layer = self._layers.get(name.removesuffix(".weight"))
        return tensor if layer is None or not name.endswith(".weight") else tensor.float() + lora_delta(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in `dtype`."""
        return sum(tensor.numel() * dtype.itemsize for tensor in self._tensors.values())


def without_adapters(backbone: nn.Module) -> PreTrainedModel:
    """The transformers model inside a peft model, or `backbone` itself."""
    inner = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    return cast(PreTrainedModel, inner)


def lora_delta(layer: LoraLinear) -> Tensor:
    """scale B A of the active adapters, float32, in the shape of the layer's weight."""
    weight = cast(Tensor, layer.get_base_layer().weight)
    delta = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
    for adapter in layer.active_adapters:
        b, a = (cast(Tensor, part[adapter].weight).detach().float() for part in (layer.lora_B, layer.lora_A))
        delta += layer.scaling[adapter] * (b @ a)
    return delta


def _plain_lora(name: str, layer: BaseTunerLayer) -> LoraLinear:
    plain = (
        isinstance(layer, LoraLinear)
        and isinstance(layer.get_base_layer(), nn.Linear)
        and not (layer.lora_variant or any(layer.lora_bias.values()) or layer.merged)
    )
    if not plain:
        raise ValueError(
            f"{name} has an adapter of type {type(layer).__name__} that cannot be merged exactly; "
            "expected plain LoRA (no DoRA, no bias, not merged already) on linear layers"
        )
    return cast(LoraLinear, layer)


@contextmanager
def computing_with(backbone: nn.Module, weights: MergedWeights, dtype: torch.dtype) -> Iterator[None]:
    """Inside, `backbone` computes in float32 with `weights` rounded to `dtype`, as a reload of the written files would.

    Each module's own weights are exchanged just before it runs and put back after it, so that only one module at a time
    exists in float32; the adapters rest, since `weights` holds them merged.
    """
    model = without_adapters(backbone)
    originals: list[tuple[nn.Parameter, Tensor]] = []

    def exchange(prefix: str) -> Any:
        def before(module: nn.Module, inputs: object) -> None:
            for name, parameter in module.named_parameters(recurse=False):
                originals.append((parameter, parameter.data))
                parameter.data = weights[f"{prefix}{name}"].detach().to(dtype).float()

        return before

    def restore(module: nn.Module, inputs: object = None, output: object = None) -> None:
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        for parameter, data in [each for each in originals if id(each[0]) in own]:
            parameter.data = data
        originals[:] = [each for each in originals if id(each[0]) not in own]

    handles = []
    for name, module in model.named_modules():
        if ".lora_" not in f".{name}" and any(True for _ in module.parameters(recurse=False)):
            prefix = f"{name}.".replace(".base_layer.", ".").removeprefix(".")
            handles += [module.register_forward_pre_hook(exchange(prefix)), module.register_forward_hook(restore)]
    try:
        with _adapters_off(backbone), _float32_attention(model), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        for handle in handles:
            handle.remove()


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
    if attention != "flash_attention_2":
        yield
        return
    model.set_attn_implementation("sdpa")  # flash attention computes in bfloat16 only
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


def write_weights(
    weights: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype, prefix: str = "", shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors into `folder`: one file, or shards of about `shard_bytes` with their index.

    Floating-point tensors are cast to `dtype`. At most one shard is held in memory.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0
    for name, tensor in weights.items():
        cast_to = dtype if tensor.is_floating_point() else tensor.dtype
        ready = tensor.detach().to("cpu", cast_to).contiguous()
        if pending and sum(each.nbytes for each in pending.values()) + ready.nbytes > shard_bytes:
            shards.append(_write_shard(pending, folder, len(shards)))
            pending = {}
        pending[f"{prefix}{name}"] = ready
        total += ready.nbytes
    shards.append(_write_shard(pending, folder, len(shards)))
    _name_shards(folder, shards, total)


def _write_shard(tensors: dict[str, Tensor], folder: Path, number: int) -> list[str]:
    save_file(tensors, folder / f"shard-{number}", metadata={"format": "pt"})
    return list(tensors)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a model directory or a hub id in the cache, each read from disk when asked for.

    Args:
        model: Directory or hub id.
        subfolder: Where the transformer lies inside it.

    Raises:
        ValueError: There are no weights.
    """

    def __init__(self, model: str, subfolder: str = "") -> None:
        self._pickled: dict[str, Tensor] = {}
        self._places: dict[str, Any] = {}
        for path in weight_files(model, subfolder):
            if path.suffix == ".bin":
                self._pickled |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            else:
                opened: Any = safe_open(path, framework="pt")
                self._places |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pickled:
            return self._pickled[name]
        return cast(Tensor, self._places[name].get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *self._pickled])

    def __len__(self) -> int:
        return len(self._places) + len(self._pickled)


def model_file(model: str, name: str, subfolder: str = "") -> Path | None:
    """A file of a model directory or hub id; None where it does not exist."""
    path = cached_file(
        model,
        name,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def weight_files(model: str, subfolder: str = "") -> list[Path]:
    """The files that hold a model's weights: safetensors, else pickles."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        single = model_file(model, name, subfolder)
        if single is not None:
            return [single]
        index = model_file(model, f"{name}.index.json", subfolder)
        if index is not None:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = [model_file(model, file, subfolder) for file in sorted(set(places.values()))]
            if all(shards):
                return [path for path in shards if path is not None]
            raise ValueError(f"{model}: {index.name} names files that are not there")
    raise ValueError(f"{model}: no weights; expected model.safetensors, pytorch_model.bin or either in shards")
