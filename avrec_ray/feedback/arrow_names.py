"""Names of users in Arrow tables, however deep a column nests them."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

OTHER_THINGS = frozenset({"item_id", "creator_id"})
"""Columns of names that are no users': an item may be called as a user is."""


def strings_in(array: pa.Array) -> Iterator[pa.Array]:
    """The string arrays within an array: those of lists, structs, maps and dictionaries, too."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield array
    elif pa.types.is_dictionary(kind):
        # Values that no row has are left out: a dictionary may be shared with rows that were filtered away.
        yield from strings_in(array.dictionary.take(pc.unique(array.indices.drop_null())))
    elif pa.types.is_map(kind):
        yield from strings_in(array.keys)
        yield from strings_in(array.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from strings_in(array.flatten())
    elif pa.types.is_struct(kind):
        for inner in array.flatten():
            yield from strings_in(inner)


def may_hold_names(field: pa.Field) -> bool:
    """Whether a column is worth reading: it has text somewhere, and not of another kind of thing."""
    return field.name not in OTHER_THINGS and _has_text(field.type)


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_map(kind):
        return _has_text(kind.key_type) or _has_text(kind.item_type)
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_struct(kind):
        return any(_has_text(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def names_any(array: pa.Array, names: pa.Array) -> bool:
    """Whether one of `names` is among the strings of an array."""
    return any(bool(pc.any(pc.is_in(strings, value_set=names)).as_py()) for strings in strings_in(array))


def rows_naming(table: pa.Table, names: pa.Array) -> pa.ChunkedArray:
    """Bool, a row each: whether a text column of the row is one of `names`."""
    hit = pa.chunked_array([pa.array([False] * table.num_rows, pa.bool_())])
    for number, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if may_hold_names(field) and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            column = table.column(number)
            plain = column.cast(kind) if pa.types.is_dictionary(field.type) else column
            hit = pc.or_(hit, pc.is_in(plain, value_set=names))
    return hit


def without_listed(table: pa.Table, names: pa.Array) -> pa.Table:
    """A table whose lists of texts hold none of `names`."""
    wanted = set(names.to_pylist())
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type) and may_hold_names(field):
            lists: list[list[Any] | None] = table.column(number).to_pylist()
            kept = [None if row is None else [text for text in row if text not in wanted] for row in lists]
            table = table.set_column(number, field, pa.array(kept, field.type))
    return table
