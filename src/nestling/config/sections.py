"""Settings of one script inside a larger file, read as the script itself reads them."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from nestling.config.arguments import import_no_classes, itemised
from nestling.config.messages import explain
from nestling.config.yaml_files import require_no_classes

Config = TypeVar("Config")


def read_section(name: str, cls: type[Config], settings: Mapping[str, object]) -> Config:
    """Fill the dataclass `cls` from a mapping.

    Args:
        name: Of the section, for errors.
        cls: The script's settings.
        settings: Nested as in the script's own YAML file.

    Raises:
        ValueError: A key is unknown, of which the nearest is named, or a value cannot be; with the section's name.
    """
    require_no_classes(name, settings)
    import_no_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=True)
    try:
        parsed = parser.parse_object(deepcopy(itemised(cls, settings)))  # in which the parser puts objects of its own
        parser.validate(parsed, skip_unset=False)  # null too
        return cls(**parser.instantiate(parsed).as_dict())
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{name}: {explain(error, cls)}") from None
