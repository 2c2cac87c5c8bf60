"""The columns of Parquet files and datasets that are read."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from nestling.records.dialects import recognise
from nestling.records.field_names import is_always_read
from nestling.records.record import FieldError

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def used_columns(columns: Mapping[str, str] | None, schema: Any) -> list[str]:
    """The columns that records are made of, or that may hold what a reader refuses to leave out.

    Args:
        columns: Field -> column, as the user named them.
        schema: Of the file or dataset, a `pyarrow.Schema`.
    """
    if columns:
        return [name for name in schema.names if name in set(columns.values())] or schema.names
    try:
        dialect = recognise(tuple(schema.names))
    except FieldError:  # the first row says it with its line
        return list(schema.names)
    return [field.name for field in schema if dialect.has_field(field.name) or _is_always_read(field)]


def _is_always_read(field: Any) -> bool:
    """Whether a field may hold documents by its name, or by its type, a list of anything but numbers; or only nulls."""
    of_numbers = any(is_list(field.type) for is_list in LISTS) and pa.types.is_primitive(field.type.value_type)
    is_nested = pa.types.is_nested(field.type) and not of_numbers
    return is_nested or pa.types.is_null(field.type) or is_always_read(field.name)
