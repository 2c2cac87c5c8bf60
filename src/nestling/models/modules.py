"""The modules of a sentence-transformers directory behind its pooling, the head: Dense, LayerNorm, Dropout, Normalize.

A Normalize at the very end is none of them: whether embeddings are normalised at last is a setting of an embedder.

Shapes: B texts, D dimensions before a module, E behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nestling.models.json_files import Module, read_object, value_of
from nestling.models.weights import StoredWeights

Kind = Literal["Dense", "LayerNorm", "Dropout", "Normalize"]

# Functions without arguments that work on each number alone; sentence-transformers would import any class of torch.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    each.__name__: each
    for each in (
        *(nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
        *(nn.ReLU6, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    )
}
SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class ModuleSettings:
    """What a directory says about a module of its head.

    Args:
        kind: Its class.
        folder: Where its files lie inside the directory.
        settings: What sentence-transformers' constructor takes, as its older releases write it into config.json.
    """

    kind: Kind
    folder: str
    settings: Mapping[str, Any]

    def width(self, before: int) -> int:
        """Dimensions behind it."""
        return int(self.settings["out_features"]) if self.kind == "Dense" else before


class Dense(nn.Module):
    """A linear layer with an activation, and perhaps its input added: [B, D] -> [B, E].

    Its weights are called as sentence-transformers calls them, as are those of `LayerNorm`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        into, out = settings["in_features"], settings["out_features"]
        self.linear = nn.Linear(into, out, bias=settings["bias"])
        self.activation = ACTIVATIONS[settings["activation_function"].rpartition(".")[2]]()
        self.adds_input = bool(settings.get("use_residual"))
        if self.adds_input and into != out:
            self.residual = nn.Linear(into, out, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.activation(self.linear(embeddings))
        if not self.adds_input:
            return output
        same = self.linear.in_features == self.linear.out_features
        return output + (embeddings if same else self.residual(embeddings))


class LayerNorm(nn.Module):
    """LayerNorm with weights, [B, D] -> [B, D]."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings["dimension"])

    def forward(self, embeddings: Tensor) -> Tensor:
        output: Tensor = self.norm(embeddings)
        return output


class Normalize(nn.Module):
    """Each embedding divided by its norm, [B, D] -> [B, D]."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return nn.functional.normalize(embeddings, dim=-1)


class Head(nn.Sequential):
    """The modules of a head: [B, D] -> [B, E] float32; without modules it returns its input.

    They compute in the type of their weights, float32 unless FSDP2 gathers them in bfloat16.

    Args:
        settings: Of its modules, in their order.
        dropout: Dropout probability of its Dropout modules; None for their own.
    """

    def __init__(self, settings: Sequence[ModuleSettings] = (), dropout: float | None = 0.0) -> None:
        super().__init__(*(build(each, dropout) for each in settings))
        self.settings = tuple(settings)

    def forward(self, pooled: Tensor) -> Tensor:
        dtype = next((each.dtype for each in self.parameters()), torch.float32)
        with torch.autocast(pooled.device.type, enabled=False):
            return cast(Tensor, super().forward(pooled.to(dtype))).float()


def build(module: ModuleSettings, dropout: float | None) -> nn.Module:
    """A module with random weights."""
    match module.kind:
        case "Dense":
            return Dense(module.settings)
        case "LayerNorm":
            return LayerNorm(module.settings)
        case "Dropout":
            return nn.Dropout(module.settings["dropout"] if dropout is None else dropout)
        case "Normalize":
            return Normalize()


def has_weights(module: ModuleSettings) -> bool:
    """Whether a module has weights."""
    return module.kind in ("Dense", "LayerNorm")


def numbered(settings: Sequence[ModuleSettings]) -> list[ModuleSettings]:
    """The modules of a head in the folders that an export gives them, behind those of transformer and pooling."""
    return [replace(each, folder=f"{number}_{each.kind}") for number, each in enumerate(settings, 2)]


def output_width(head: Sequence[ModuleSettings], pooled: int) -> int:
    """Dimensions behind the last module, given those behind the pooling."""
    for module in head:
        pooled = module.width(pooled)
    return pooled


def read_head(model: str, modules: Sequence[Module]) -> tuple[ModuleSettings, ...]:
    """The settings of the modules behind the pooling, given those of modules.json; no weight is read.

    Raises:
        ValueError: They stand in another order than Transformer, Pooling, others; or the file of one asks for something
            that Nestling cannot reproduce exactly.
    """
    kinds = [each.kind for each in modules]
    first = [kind for kind in ("Transformer", "Pooling") if kind in kinds]
    others = kinds[len(first) :]
    pooled = "Pooling" in kinds or set(others) <= {"Normalize"}
    if kinds[: len(first)] != first or set(first) & set(others) or not pooled:
        raise ValueError(
            f"{model}/modules.json: the modules are {', '.join(kinds)}; expected Transformer, Pooling, then others"
        )
    return tuple(read_module(model, each) for each in modules[len(first) :])


def read_module(model: str, module: Module) -> ModuleSettings:
    """The settings of one module, checked."""
    name = f"{module.folder}/config.json"
    config, file = read_object(model, name), f"{model}/{name}"
    for key in ("module_input_name", "module_output_name"):
        if (value_of(file, config, key, str) or SENTENCE) != SENTENCE:
            raise ValueError(f"{file}: {key} is {config[key]!r}; expected {SENTENCE}, the pooled embedding")
    kind = cast(Kind, module.kind)
    match kind:
        case "Dense":
            settings: dict[str, Any] = read_dense(file, config)
        case "LayerNorm":
            settings = {"dimension": size(file, config, "dimension")}
        case "Dropout":
            settings = {"dropout": probability(file, config)}
        case _:
            settings = {}
    return ModuleSettings(kind, module.folder, settings)


def read_dense(file: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Dense module; its activation is one of `ACTIVATIONS`, Tanh if it names none."""
    activation = value_of(file, config, "activation_function", str) or "torch.nn.modules.activation.Tanh"
    if not activation.startswith("torch.nn.") or activation.rpartition(".")[2] not in ACTIVATIONS:
        raise ValueError(
            f"{file}: activation_function is {activation!r}; expected one of torch.nn: {', '.join(ACTIVATIONS)}"
        )
    bias, residual = (value_of(file, config, key, bool) for key in ("bias", "use_residual"))
    return {
        "in_features": size(file, config, "in_features"),
        "out_features": size(file, config, "out_features"),
        "bias": bias is not False,
        "activation_function": activation,
        **({"use_residual": True} if residual else {}),
    }


def size(file: str, config: Mapping[str, Any], key: str) -> int:
    found = value_of(file, config, key, int)
    if found is None or found < 1:
        raise ValueError(f"{file}: {key} is {found!r}, expected a whole number above 0")
    return found


def probability(file: str, config: Mapping[str, Any]) -> float:
    found = config.get("dropout", 0.2)  # sentence-transformers' own default
    if not isinstance(found, int | float) or not 0 <= found < 1:
        raise ValueError(f"{file}: dropout is {found!r}, expected 0 <= dropout < 1")
    return float(found)


def require_widths(model: str, head: Sequence[ModuleSettings], pooled: int) -> None:
    """Raise ValueError unless each module takes as many dimensions as the one before it gives."""
    for module in head:
        key = {"Dense": "in_features", "LayerNorm": "dimension"}.get(module.kind)
        taken = pooled if key is None else module.settings[key]
        if taken != pooled:
            raise ValueError(
                f"{model}/{module.folder}/config.json: {key} is {taken}, and {pooled} dimensions come before it; name "
                "the pooling that the modules were trained with"
            )
        pooled = module.width(pooled)


def load_head(model: str, settings: Sequence[ModuleSettings], dropout: float | None = 0.0) -> Head:
    """A head with the weights in the folders of its modules, in float32.

    Raises:
        ValueError: The weights of a module are not there, damaged, or not those that its config.json asks for.
    """
    head = Head(settings, dropout)
    for module, described in zip(head, head.settings, strict=True):
        wanted = module.state_dict()
        if not wanted:
            continue
        stored = StoredWeights(model, described.folder)
        found = {name: tuple(stored[name].shape) for name in stored}
        expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
        if found != expected:
            raise ValueError(f"{model}/{described.folder}: its weights are {found}, expected {expected}")
        module.load_state_dict({name: stored[name].float() for name in stored})
    return head


def modules_beside(adapter: str, base: Sequence[ModuleSettings]) -> list[ModuleSettings] | None:
    """The modules of a head that was trained with an adapter and lies in its folder; None where there is none.

    Args:
        adapter: Folder of the adapter.
        base: The modules of the model that it was trained on.
    """
    modules = numbered(base)
    found = any((Path(adapter) / each.folder / "model.safetensors").is_file() for each in modules)
    return modules if found else None
