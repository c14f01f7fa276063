"""Accepted items into the tables of the next bundle."""

import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.new_items.store import NewItemStore
from avrec_ray.types import NEW_ITEMS_WATERMARK


def with_accepted(items: pa.Table, store: NewItemStore, uploads: str) -> pa.Table:
    """An items table as the running service has it: accepted items added or replaced, deleted ones left out.

    The table says in its metadata up to which change it goes; `pipelines.bundle` writes that into the bundle, whose
    replicas then need not apply those changes again.

    Args:
        items: a checked items table; columns beyond the schema are null for items that it lacks.
        uploads: folder of the uploads.
    """
    accepted, watermark = store.accepted_items(0, uploads)
    gone = pa.array([*store.deleted_items(), *accepted["item_id"].to_pylist()], pa.string())
    kept = items.filter(pc.invert(pc.is_in(items["item_id"], value_set=gone)))
    merged = pa.concat_tables([kept, accepted], promote_options="permissive")
    metadata = {**(items.schema.metadata or {}), NEW_ITEMS_WATERMARK: str(watermark).encode()}
    return merged.select(items.column_names).cast(items.schema).replace_schema_metadata(metadata)


def watermark_of(schema: pa.Schema) -> int:
    """Up to which change an items table goes; 0: it knows of none."""
    return int((schema.metadata or {}).get(NEW_ITEMS_WATERMARK, b"0"))
