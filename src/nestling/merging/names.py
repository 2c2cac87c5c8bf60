"""Matching of tensor names between models: some files have the backbone's prefix (`model.`, `bert.`), others do not."""

from collections.abc import Collection, Iterator, Mapping

from nestling.merging.sources import RenamedTensors, Source
from nestling.models.checked_loading import LAYER
from nestling.models.safetensors_writer import Spec


def align(names: Collection[str], reference: Collection[str]) -> dict[str, str]:
    """Map names to the same tensors' names in `reference`, by adding or removing one prefix where needed.

    The prefix that matches the most names is taken. Names without a match are left out, and no two names are mapped to
    the same one.
    """
    best: dict[str, str] = {}
    for mapping in prefix_mappings(names, reference):
        matches = {name: match for name, match in mapping.items() if match in reference}
        if len(matches) > len(best) and len(set(matches.values())) == len(matches):
            best = matches
    return best


def prefix_mappings(names: Collection[str], reference: Collection[str]) -> Iterator[dict[str, str]]:
    """Names as they are; then without each first part that they have; then with each first part of the reference."""
    yield {name: name for name in names}
    for prefix in sorted({name.partition(".")[0] + "." for name in names}):
        yield {name: name.removeprefix(prefix) if name.removeprefix(prefix) in reference else name for name in names}
    for prefix in sorted({name.partition(".")[0] + "." for name in reference}):
        yield {name: prefix + name if prefix + name in reference else name for name in names}


def without_unused(reference: Source, sources: Collection[Source], *, base: bool) -> Source:
    """`reference` without what one of the sources need not have.

    These are buffers of integers such as `position_ids`, which older releases of transformers saved and newer ones
    compute, poolers, and of a base its heads, such as an output layer, which embedders made of it are without.

    Args:
        reference: The base or, without one, the first model.
        sources: The models to merge.
        base: Whether `reference` is the base.
    """
    matches = [set(align(source.specs.keys(), reference.specs.keys()).values()) for source in sources]

    def is_used(name: str) -> bool:
        if may_lack(name, reference.specs[name]):
            return all(name in names for names in matches)
        may_be_head = base and LAYER.search(name) is None
        return not may_be_head or any(name in names for names in matches)

    return RenamedTensors(reference, {name: name for name in reference.specs if is_used(name)})


def may_lack(name: str, spec: Spec) -> bool:
    """Whether models may lack a tensor: one of integers, or of the pooler of an encoder without a head.

    Of a base whose files lack that pooler transformers makes one at random, and nothing reads it.
    """
    return not spec.dtype.is_floating_point or is_unread_pooler(name)


def is_unread_pooler(name: str) -> bool:
    """Whether a tensor is of the pooler of an encoder; in a classifier, which reads it, its name has a prefix."""
    return name.startswith("pooler.")


def with_names_of(source: Source, reference: Source) -> Source:
    """`source` under the names of `reference`, without tensors that `may_lack` and `reference` lacks.

    Raises:
        ValueError: One has a tensor of floating point that the other lacks, or a shape differs.
    """
    own = {match: name for name, match in align(source.specs.keys(), reference.specs.keys()).items()}
    require_no_extra(reference, [name for name in reference.specs if name not in own], source)
    matched = set(own.values())
    extra = [name for name, spec in source.specs.items() if name not in matched and not may_lack(name, spec)]
    require_no_extra(source, extra, reference)
    for name, spec in reference.specs.items():
        require_matching_specs(name, reference.label, spec, source.label, source.specs[own[name]])
    return RenamedTensors(source, {name: own[name] for name in reference.specs})


def require_no_extra(source: Source, names: Collection[str], other: Source) -> None:
    """Raise ValueError if there are names; they are tensors of `source` that `other` lacks."""
    if names:
        listed = ", ".join(list(names)[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(f"{source.label} has {len(names)} tensors that {other.label} lacks: {listed}")


def require_matching_specs(name: str, label: str, spec: Spec, other_label: str, other: Spec) -> None:
    """Raise ValueError unless two tensors have the same shape and, if not both of floating point, the same dtype."""
    if spec.shape != other.shape:
        raise ValueError(f"{name} is {list(spec.shape)} in {label} and {list(other.shape)} in {other_label}")
    floats = spec.dtype.is_floating_point and other.dtype.is_floating_point
    if not floats and spec.dtype != other.dtype:
        raise ValueError(f"{name} is {spec.dtype} in {label} and {other.dtype} in {other_label}")


def names_in_base(names: Collection[str], specs: Mapping[str, Spec], label: str, base: str) -> dict[str, str]:
    """Map names of an adapter's or checkpoint's tensors to the same tensors' names in the base.

    Args:
        names: Names of the tensors.
        specs: The base's tensors.
        label: What errors call the adapter or checkpoint.
        base: What errors call the base.

    Raises:
        ValueError: The base lacks one of the tensors.
    """
    base_names = align(names, specs.keys())
    unknown = [name for name in names if name not in base_names]
    if unknown:
        raise ValueError(f"{label} is not of {base}, which has no {unknown[0]} ({len(unknown)} tensors in all)")
    return base_names
