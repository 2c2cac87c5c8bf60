"""Names of tensors, which have the backbone's prefix (`model.`, `bert.`) before them in some files only."""

from collections.abc import Collection, Iterator, Mapping

from nestling.merging.sources import Renamed, Source, Spec


def align(names: Collection[str], reference: Collection[str]) -> dict[str, str]:
    """From names to those of `reference`, with one prefix put before them, or taken off them, where that helps.

    Names that have no counterpart are left out. The prefix is whatever gives most of them one.
    """
    best: dict[str, str] = {}
    for candidate in candidates(names, reference):
        found = {name: to for name, to in candidate.items() if to in reference}
        if len(found) > len(best) and len(set(found.values())) == len(found):
            best = found
    return best


def candidates(names: Collection[str], reference: Collection[str]) -> Iterator[dict[str, str]]:
    yield {name: name for name in names}
    for prefix in sorted({name.partition(".")[0] + "." for name in names}):
        yield {name: name.removeprefix(prefix) if name.removeprefix(prefix) in reference else name for name in names}
    for prefix in sorted({name.partition(".")[0] + "." for name in reference}):
        yield {name: prefix + name if prefix + name in reference else name for name in names}


def without_lacking_integers(reference: Source, sources: Collection[Source]) -> Source:
    """`reference` without tensors of integers that one of the others lacks.

    These are counters such as `position_ids`, which older releases of transformers saved and newer ones make.
    """
    found = [set(align(source.specs.keys(), reference.specs.keys()).values()) for source in sources]
    kept = [
        name
        for name, spec in reference.specs.items()
        if spec.dtype.is_floating_point or all(name in names for names in found)
    ]
    return Renamed(reference, {name: name for name in kept})


def matched(source: Source, reference: Source) -> Source:
    """`source` under the names of `reference`, without integers that it alone has.

    Raises:
        ValueError: One has a tensor that the other lacks, or in another shape.
    """
    own = {to: name for name, to in align(source.specs.keys(), reference.specs.keys()).items()}
    require_none(reference, [name for name in reference.specs if name not in own], source)
    known = set(own.values())
    more = [name for name, spec in source.specs.items() if spec.dtype.is_floating_point and name not in known]
    require_none(source, more, reference)
    for name, spec in reference.specs.items():
        require_like(name, reference.label, spec, source.label, source.specs[own[name]])
    return Renamed(source, {name: own[name] for name in reference.specs})


def require_none(source: Source, names: Collection[str], other: Source) -> None:
    """Raise ValueError if `source` has tensors that `other` lacks."""
    if names:
        listed = ", ".join(list(names)[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(f"{source.label} has {len(names)} tensors that {other.label} lacks: {listed}")


def require_like(name: str, label: str, spec: Spec, other_label: str, other: Spec) -> None:
    """Raise ValueError unless two tensors have one shape, and both or neither are of floating point."""
    if spec.shape != other.shape:
        raise ValueError(f"{name} is {list(spec.shape)} in {label} and {list(other.shape)} in {other_label}")
    floats = spec.dtype.is_floating_point and other.dtype.is_floating_point
    if not floats and spec.dtype != other.dtype:
        raise ValueError(f"{name} is {spec.dtype} in {label} and {other.dtype} in {other_label}")


def own_names(names: Collection[str], specs: Mapping[str, Spec], label: str, base: str) -> dict[str, str]:
    """From names of a model's trained tensors to those of its base.

    Raises:
        ValueError: The base has no such tensor.
    """
    found = align(names, specs.keys())
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"{label} is not of {base}, which has no {unknown[0]} ({len(unknown)} tensors in all)")
    return found
