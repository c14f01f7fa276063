"""What the running service did to the catalogue, into the tables of the next bundle."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.new_items.store import NewItemStore
from avrec_ray.types import ITEMS, NEW_ITEMS_WATERMARK

_DELETED = b"deleted_items"


@dataclass(frozen=True, eq=False)
class CatalogueChanges:
    """Items that were accepted or taken down since a bundle was built, as of one moment."""

    accepted: pa.Table
    """An items table."""
    deleted: frozenset[str]
    """Taken down, and not submitted again."""
    watermark: int
    """Number of the last change that is in here; later ones are for replicas to apply."""

    def __bool__(self) -> bool:
        return bool(self.accepted.num_rows or self.deleted)

    @property
    def replaced(self) -> frozenset[str]:
        """Items of which a table from before must hold nothing."""
        return self.deleted | frozenset(self.accepted["item_id"].to_pylist())

    def digest(self) -> str:
        """Another one for other changes."""
        text = json.dumps([self.accepted.to_pylist(), sorted(self.deleted), self.watermark], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def without_accepted(self) -> "CatalogueChanges":
        """What was taken down alone. The watermark is 0, so that replicas apply all that was accepted."""
        return CatalogueChanges(ITEMS.empty_table(), self.deleted, 0)

    def save(self, path: Path) -> None:
        """Write them as one Parquet file: the accepted items, the rest in its metadata."""
        metadata = {
            NEW_ITEMS_WATERMARK: str(self.watermark).encode(),
            _DELETED: json.dumps(sorted(self.deleted)).encode(),
        }
        pq.write_table(self.accepted.replace_schema_metadata(metadata), path)


def read_changes(path: Path) -> CatalogueChanges:
    """What `CatalogueChanges.save` wrote."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    deleted = frozenset(json.loads(metadata[_DELETED]))
    return CatalogueChanges(table.replace_schema_metadata(None), deleted, int(metadata[NEW_ITEMS_WATERMARK]))


def catalogue_changes(store: NewItemStore, uploads: str) -> CatalogueChanges:
    """All changes up to now.

    Args:
        uploads: folder of the uploads.
    """
    accepted, watermark = store.accepted_items(0, uploads)
    # Read after the watermark: what is deleted in between is left out, and replicas delete it once more.
    deleted = frozenset(store.deleted_items())
    kept = accepted.filter(pc.invert(pc.is_in(accepted["item_id"], value_set=_strings(deleted))))
    return CatalogueChanges(kept, deleted, watermark)


def with_changes(items: pa.Table, changes: CatalogueChanges) -> pa.Table:
    """An items table as the running service has it: accepted items added or replaced, deleted ones left out.

    The table says in its metadata up to which change it goes; `pipelines.bundle` writes that into the bundle, whose
    replicas then need not apply those changes again.

    Args:
        items: a checked items table; columns beyond the schema are null for items that it lacks.
    """
    kept = items.filter(pc.invert(pc.is_in(items["item_id"], value_set=_strings(changes.replaced))))
    merged = pa.concat_tables([kept, changes.accepted], promote_options="permissive")
    metadata = {**(items.schema.metadata or {}), NEW_ITEMS_WATERMARK: str(changes.watermark).encode()}
    return merged.select(items.column_names).cast(items.schema).replace_schema_metadata(metadata)


def watermark_of(schema: pa.Schema) -> int:
    """Up to which change an items table goes; 0: it knows of none."""
    return int((schema.metadata or {}).get(NEW_ITEMS_WATERMARK, b"0"))


def _strings(values: frozenset[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())
