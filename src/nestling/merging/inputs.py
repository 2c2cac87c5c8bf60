"""The models of a merge under one set of tensor names, and the products between their tensors.

Notation: k models, x_i a model's tensor as one flat vector, b the base's, d_i = x_i - b the model's change to it, which
is called task vector or delta elsewhere. The gram of a tensor is the matrix of products x_i . x_j, or d_i . d_j.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import local
from typing import Self

import torch
from torch import Tensor

from nestling.merging.names import with_names_of, without_unused
from nestling.merging.sources import Source, equal_tensors
from nestling.merging.workers import BLOCK_SIZE, Workers
from nestling.models.safetensors_writer import Spec


@dataclass(frozen=True)
class Inputs:
    """Models that have the same tensors under the same names; built by `Inputs.of`.

    Args:
        models: The models to merge.
        base: The model that they were trained from, for methods that merge changes to it.

    Attributes:
        grams: The grams that have been computed, by tensor name, float64. Without a base [k, k], of x. With a base
            [k + 1, k + 1], of d_1 to d_k and b. A second merge of the same inputs does not compute them again.
    """

    models: tuple[Source, ...]
    base: Source | None = None
    grams: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, models: Sequence[Source], base: Source | None = None) -> Self:
        """Rename the models' tensors to the base's names, or without a base to the first model's.

        Raises:
            ValueError: A tensor is missing in one model, or has another shape; or a tensor of integers differs.
        """
        if not models:
            raise ValueError("there are no models to merge")
        reference = without_unused(base or models[0], models, base=base is not None)
        inputs = cls(tuple(with_names_of(model, reference) for model in models), reference if base else None)
        for name in inputs.integer_tensors:
            for model in inputs.models:
                if not equal_tensors(inputs.reference, name, model, name):
                    raise ValueError(
                        f"{name} of {inputs.reference.label} and {model.label} differs; it holds "
                        f"{inputs.specs[name].dtype}, which cannot be merged"
                    )
        return inputs

    @property
    def reference(self) -> Source:
        """The model that gives the merge its names, its dtypes and its tensors of integers: the base or the first."""
        return self.base or self.models[0]

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Shape and dtype of each tensor of the merge."""
        return self.reference.specs

    @cached_property
    def integer_tensors(self) -> list[str]:
        """Names of tensors of integers or booleans, which are copied and not merged."""
        return [name for name, spec in self.specs.items() if not spec.dtype.is_floating_point]

    @property
    def labels(self) -> list[str]:
        """What errors and reports call the models."""
        return [model.label for model in self.models]

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of the merged weights, in `dtype` or in the reference's own."""
        return sum(spec.nbytes(dtype) for spec in self.specs.values())

    def compute_grams(self, names: Sequence[str], workers: Workers) -> None:
        """Add the grams of these tensors to `grams`, where they are not there yet.

        Raises:
            ValueError: A tensor holds nan or infinity.
        """
        rows = len(self.models) + (self.base is not None)
        new = {name: torch.zeros(rows, rows, dtype=torch.float64) for name in names if name not in self.grams}
        slices = [(name, *bounds) for name in new for bounds in workers.slices(self.specs[name].numel)]
        work = partial(self._block_grams, BlockBuffer(rows))
        for (name, _, _), blocks in zip(slices, workers.map(work, slices), strict=True):
            for block in blocks:
                new[name] += block
        for name, gram in new.items():
            self._require_finite(name, gram)
            self.grams[name] = gram

    def _block_grams(self, buffer: "BlockBuffer", bounds: tuple[str, int, int]) -> list[Tensor]:
        """The gram of each block of a slice.

        Blocks have a fixed size and are added in order, so that rounding does not depend on the size of slices.
        """
        name, start, stop = bounds
        values = [model.read(name, start, stop) for model in self.models]
        base = self.base.read(name, start, stop) if self.base else None
        return [
            block_gram(values, base, buffer.rows, first, first + BLOCK_SIZE)
            for first in range(0, stop - start, BLOCK_SIZE)
        ]

    def _require_finite(self, name: str, gram: Tensor) -> None:
        bad = (~gram.diagonal().isfinite()).tolist()
        if any(bad):
            sources = [*self.models, *([self.base] if self.base else [])]
            # nan in the base makes all changes nan, so the base, which is last, is looked at first.
            source = sources[-1] if bad[-1] else sources[bad.index(True)]
            raise ValueError(f"{name} of {source.label} holds infinite numbers or none (nan); it cannot be merged")


class BlockBuffer(local):
    """Memory of each thread for the values of a block.

    It is used again for every block: glibc cuts the small grams out of a freed block, which then is too small for the
    next one, so that the heap would grow by megabytes a block.

    Attributes:
        rows: [models, and one more with a base; BLOCK_SIZE] float64.
    """

    def __init__(self, rows: int) -> None:
        self.rows = torch.empty(rows, BLOCK_SIZE, dtype=torch.float64)


def block_gram(values: Sequence[Tensor], base: Tensor | None, buffer: Tensor, start: int, stop: int) -> Tensor:
    """The gram of elements start to stop of a slice, float64, laid out as in `Inputs.grams`.

    Args:
        values: The slice of each model, [n].
        base: The slice of the base, [n].
        buffer: Memory for the values, which is overwritten, as in `BlockBuffer`.
        start: First element.
        stop: Element after the last; more than n means n.
    """
    stop = min(stop, len(values[0]))
    rows = buffer[:, : stop - start]
    for row, of_model in zip(rows, values, strict=False):
        row.copy_(of_model[start:stop])
    if base is not None:
        rows[-1].copy_(base[start:stop])
        rows[:-1] -= rows[-1]
    return rows @ rows.T


def gram_of_models(gram: Tensor) -> Tensor:
    """The products x_i . x_j, [k, k], from the gram of changes and base, [k + 1, k + 1]: x = d + b."""
    with_base, base = gram[:-1, -1], gram[-1, -1]
    return gram[:-1, :-1] + with_base + with_base[:, None] + base
