"""The models of a merge, under the same names, and the products between them.

Shapes: k models, x_i a model's tensor as one long vector, b the base, d_i = x_i - b a model's change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from nestling.merging.names import matched, without_lacking_integers
from nestling.merging.sources import Source, Spec, same
from nestling.merging.workers import BLOCK, Workers


@dataclass(frozen=True)
class Inputs:
    """Models that have the same tensors.

    Args:
        models: Their tensors have the names of the base's, or of the first's.
        base: What they were trained from, for methods that merge changes to it.

    Attributes:
        grams: Of each tensor the products that were measured, [k, k] float64: x_i . x_j; or with a base [k + 1, k + 1]
            those of the changes and, last, the base itself. A second merge of the same inputs finds them here.
    """

    models: tuple[Source, ...]
    base: Source | None = None
    grams: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, models: Sequence[Source], base: Source | None = None) -> Self:
        """Bring the models under one set of names.

        Raises:
            ValueError: A tensor is missing in one, or has another shape; or one of integers differs.
        """
        if not models:
            raise ValueError("there are no models to merge")
        reference = without_lacking_integers(base or models[0], models)
        inputs = cls(tuple(matched(model, reference) for model in models), reference if base else None)
        for name in inputs.buffers:
            for model in inputs.models:
                if not same(inputs.reference, name, model, name):
                    raise ValueError(
                        f"{name} of {inputs.reference.label} and {model.label} differs; it holds "
                        f"{inputs.specs[name].dtype}, which cannot be merged"
                    )
        return inputs

    @property
    def reference(self) -> Source:
        """Whose names, dtypes and tensors of integers the merge has."""
        return self.base or self.models[0]

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.reference.specs

    @cached_property
    def buffers(self) -> list[str]:
        """Tensors that do not hold numbers of floating point."""
        return [name for name, spec in self.specs.items() if not spec.dtype.is_floating_point]

    @property
    def labels(self) -> list[str]:
        return [model.label for model in self.models]

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of the merge, in `dtype` or in the reference's own."""
        return sum(spec.nbytes(dtype) for spec in self.specs.values())

    def measure(self, names: Sequence[str], workers: Workers) -> None:
        """Find the grams of some tensors.

        Raises:
            ValueError: A number is not finite.
        """
        rows = len(self.models) + (self.base is not None)
        found = {name: torch.zeros(rows, rows, dtype=torch.float64) for name in names if name not in self.grams}
        pieces = [(name, *piece) for name in found for piece in workers.pieces(self.specs[name].numel)]
        for (name, _, _), blocks in zip(pieces, workers.map(self._products, pieces), strict=True):
            for block in blocks:
                found[name] += block
        for name, gram in found.items():
            self._require_finite(name, gram)
            self.grams[name] = gram

    def _products(self, piece: tuple[str, int, int]) -> list[Tensor]:
        """Of each block of a piece; added up block by block, a gram does not depend on how tensors are cut."""
        name, start, stop = piece
        read = [model.read(name, start, stop) for model in self.models]
        base = self.base.read(name, start, stop) if self.base else None
        return [block_products(read, base, first, first + BLOCK) for first in range(0, stop - start, BLOCK)]

    def _require_finite(self, name: str, gram: Tensor) -> None:
        bad = (~gram.diagonal().isfinite()).tolist()
        if any(bad):
            sources = [*self.models, *([self.base] if self.base else [])]
            which = sources[-1] if bad[-1] else sources[bad.index(True)]
            raise ValueError(f"{name} of {which.label} holds infinite numbers or none (nan); it cannot be merged")


def block_products(read: Sequence[Tensor], base: Tensor | None, start: int, stop: int) -> Tensor:
    """The gram of a block of what was read."""
    stop = min(stop, len(read[0]))
    rows = torch.empty(len(read) + (base is not None), stop - start, dtype=torch.float64)
    for row, values in zip(rows, read, strict=False):
        row.copy_(values[start:stop])
    if base is not None:
        rows[-1].copy_(base[start:stop])
        rows[:-1] -= rows[-1]
    return rows @ rows.T


def of_models(gram: Tensor) -> Tensor:
    """x_i . x_j, [k, k], from a gram of changes and base."""
    with_base, base = gram[:-1, -1], gram[-1, -1]
    return gram[:-1, :-1] + with_base + with_base[:, None] + base
