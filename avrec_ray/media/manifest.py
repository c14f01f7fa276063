"""An items table from a folder of media. Run: python -m avrec_ray.media.manifest FOLDER ITEMS.parquet"""

import csv
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.errors import StageError
from avrec_ray.types import check_items

_NOT_MEDIA = {".csv", ".json", ".md", ".parquet"}


def items_from_folder(folder: str | Path) -> pa.Table:
    """Items table of every file below `folder`: item_id is the relative path, title the file's stem.

    A `manifest.csv` in the folder with the columns path, title and label overrides titles and gives tags; its paths
    are relative to the folder or to the folder's parent. Hidden files, csv, json, md and parquet are no items.

    Raises:
        StageError: the folder does not exist or holds no file.
    """
    root = Path(folder).resolve()
    paths = sorted(path for path in root.rglob("*") if _is_item(path, root))
    if not paths:
        raise StageError(f"{root} is no folder with files; give one that holds media")
    notes = _read_manifest(root)
    rows = [notes.get(path, {}) for path in paths]
    return check_items(
        pa.table(
            {
                "item_id": [path.relative_to(root).as_posix() for path in paths],
                "media_uri": [str(path) for path in paths],
                "title": [row.get("title") or path.stem for row, path in zip(rows, paths, strict=True)],
                "tags": pa.array([[row["label"]] if row.get("label") else [] for row in rows], pa.list_(pa.string())),
            }
        )
    )


def _is_item(path: Path, root: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not path.is_dir() and not is_hidden and path.suffix.lower() not in _NOT_MEDIA


def _read_manifest(root: Path) -> dict[Path, dict[str, str]]:
    manifest = root / "manifest.csv"
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {base / row["path"]: row for row in rows if row.get("path") for base in (root, root.parent)}


def main(folder: str, output: str) -> None:
    """Write the items table of `folder` to the Parquet file `output`."""
    table = items_from_folder(folder)
    pq.write_table(table, output)
    print(f"{table.num_rows} items -> {output}\nnext: python -m jobs.decode_media data.items={output}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m avrec_ray.media.manifest FOLDER ITEMS.parquet")
    main(*sys.argv[1:])
