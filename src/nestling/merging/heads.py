"""The modules behind an embedder's pooling, whose weights are merged like those of its transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from nestling.merging.sources import RenamedTensors, Source, Spec, open_weights
from nestling.models.modules import Head, ModuleSettings, has_weights

# Prefix of their tensors in embedders, and so in checkpoints.
HEAD = "head."


@dataclass(frozen=True)
class JoinedTensors:
    """The tensors of several sources, whose names differ.

    Args:
        label: What errors and reports call the model.
        parts: The sources.
    """

    label: str
    parts: Sequence[Source]

    @cached_property
    def specs(self) -> Mapping[str, Spec]:
        return {name: spec for part in self.parts for name, spec in part.specs.items()}

    @cached_property
    def _owners(self) -> Mapping[str, Source]:
        return {name: part for part in self.parts for name in part.specs}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._owners[name].read(name, start, stop)


def with_head(transformer: Source, model: str, head: Sequence[ModuleSettings]) -> Source:
    """The weights of a transformer and of the modules of a head, under the names that they have in an embedder.

    Args:
        transformer: The weights of the transformer.
        model: Directory or hub id that has the head.
        head: Its modules.
    """
    parts = []
    for number, module in enumerate(head):
        if has_weights(module):
            stored = open_weights(model, module.folder)
            parts.append(RenamedTensors(stored, {f"{HEAD}{number}.{name}": name for name in stored.specs}))
    return JoinedTensors(transformer.label, [transformer, *parts]) if parts else transformer


class WholeEmbedder(nn.Module):
    """A transformer and a head, whose state_dict has the names of `with_head`: where merged weights are copied to."""

    def __init__(self, transformer: nn.Module, head: Head) -> None:
        super().__init__()
        self.transformer, self.head = transformer, head

    def state_dict(self, *arguments: object, **settings: object) -> dict[str, Tensor]:  # type: ignore[override]
        head = {f"{HEAD}{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {**self.transformer.state_dict(), **head}
