"""What decoding has done so far: a folder a block of items, beside the clips table, kept until both tables are out.

    <clips>.parts/<fingerprint>/manifest.json    what is decoded how; written last, without it nothing counts
                                manifest.arrow   item_id, media_uri; one record batch a block
                                begun/<run>/     a byte each time a worker of this run begins a block
                                blocks/00012/    clips.parquet, quarantine.parquet, tally.json: appears as a whole
                                publish/         the two tables, once every block has been checked

A block takes its place by one rename and the first one stays, so clips and quarantine of a block are of one attempt.
The fingerprint is in the path: a worker that outlived its driver writes what the next run wants, or nothing. It begins
no further block either, since the next run removes the folder of its run.
"""

import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError, TableError
from avrec_ray.media.clips import write_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.pipelines.atomic import write_atomically, write_text_atomically
from avrec_ray.pipelines.stage import fingerprint_of
from avrec_ray.types import check_items

BLOCK_BYTES = 32 * 2**20
"""Most decoded bytes a block: what an actor holds in memory, a few times over."""
MAX_BLOCK_ITEMS = 64
"""Most items with media a block: seconds of work, which is what a killed worker loses."""
BLOCKS_OF_FEW = 64
"""Few items are cut finer, so that every actor gets several blocks."""
MAX_BEGINNINGS = 5
"""How often a block is begun before its worker's deaths are called the block's fault."""


@dataclass(frozen=True)
class Tally:
    """What came of one block."""

    items: int
    clips: int
    reasons: Mapping[str, int]
    """Items set aside, by reason."""
    file_bytes: Mapping[str, int]
    """Size of each file of the block."""


@dataclass(frozen=True)
class DecodeParts:
    """The blocks of one manifest under one set of settings."""

    folder: Path
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    """Of the driver that opened them."""

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return int(_open_manifest(self.folder).num_record_batches)

    def missing(self) -> list[int]:
        """Blocks that are not there as a whole, in order."""
        return [block for block in range(self.num_blocks) if self.tally(block) is None]

    def tally(self, block: int) -> Tally | None:
        """What came of a block; None while it is not there as a whole."""
        path = self.block_path(block)
        try:
            tally = Tally(**json.loads((path / "tally.json").read_text()))
            whole = all((path / name).stat().st_size == size for name, size in tally.file_bytes.items())
        except (OSError, ValueError, TypeError):
            return None
        return tally if whole else None

    def read_items(self, block: int) -> pa.RecordBatch:
        """item_id and media_uri of a block."""
        return _open_manifest(self.folder).get_batch(block)

    def item_ids(self) -> pa.ChunkedArray:
        """Of all items."""
        return _open_manifest(self.folder).read_all()["item_id"]

    def begin(self, block: int) -> None:
        """Note that a worker begins a block.

        Raises:
            StageError: it was begun too often in this run, or a later run has taken over.
        """
        try:
            with (self.folder / "begun" / self.run / f"{block:05d}").open("ab") as file:
                file.write(b".")
                times = file.tell()
        except FileNotFoundError as error:
            raise StageError(f"decode_media: another run works in {self.folder} now; this one ends") from error
        if times > MAX_BEGINNINGS:
            ids = self.read_items(block)["item_id"]
            raise StageError(
                f"decode_media: the worker of items {ids[0]} to {ids[-1]} died {MAX_BEGINNINGS} times; see its log for "
                "why (out of memory, most often), then run the same command again: what is done is kept"
            )

    def write(self, block: int, clips: pa.Table, aside: pa.Table, reasons: Mapping[str, int]) -> Tally:
        """Put a block in its place, unless it is there already; returns the tally of the one that stays."""
        place = self.block_path(block)
        staged = place.with_name(f"{place.name}.{secrets.token_hex(4)}.part")
        staged.mkdir()
        try:
            if clips.num_rows:
                write_clips(clips, staged / "clips.parquet")
            if aside.num_rows:
                pq.write_table(aside, staged / "quarantine.parquet")
            sizes = {path.name: _synced_bytes(path) for path in staged.iterdir()}
            items = aside.num_rows + sum(map(int, pc.equal(clips["clip_idx"], 0).to_pylist()))
            tally = Tally(items, clips.num_rows, dict(reasons), sizes)
            (staged / "tally.json").write_text(json.dumps(tally.__dict__))
            _synced_bytes(staged / "tally.json")
            staged.rename(place)
        except OSError:
            stays = self.tally(block)
            if stays is None:
                raise
            return stays
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return tally

    def block_path(self, block: int) -> Path:
        """Folder of a block."""
        return self.folder / "blocks" / f"{block:05d}"

    def remove(self) -> None:
        """Delete the parts: the tables hold them."""
        remove_parts(self.folder.parent)


def open_parts(
    folder: Path, manifest: pa.Table, items_digest: str, cfg: MediaConfig, decoder: str, log: Callable[[str], None]
) -> DecodeParts:
    """The parts under `folder` if they are of this very work; others are removed and the items are cut anew."""
    libraries = {name: version(name) for name in ("av", "decord", "pillow")}
    settings = {"media": to_dict(cfg), "decoder": decoder, **libraries}
    fingerprint = fingerprint_of("decode_media.parts", settings, {"items": items_digest})
    parts = DecodeParts(folder / fingerprint[:16])
    if (parts.folder / "manifest.json").is_file():
        _clear_unfinished(parts)
        checked = (parts.folder / "checked.json").is_file()  # then files of blocks may have been moved to publish/
        done = parts.num_blocks - (0 if checked else len(parts.missing()))
        log(f"resumed: {done} of {parts.num_blocks} blocks were decoded before and are kept")
    else:
        if any(folder.glob("*/manifest.json")):
            log(f"{folder} holds decoded blocks of other settings or items: removed, decoding starts anew")
        remove_parts(folder)
        (parts.folder / "blocks").mkdir(parents=True)
        _write_manifest(parts.folder / "manifest.arrow", cut_blocks(manifest, cfg))
        text = json.dumps({"fingerprint": fingerprint, "num_items": manifest.num_rows, **settings}, indent=1)
        write_text_atomically(parts.folder / "manifest.json", text)
    (parts.folder / "begun" / parts.run).mkdir(parents=True)
    return parts


def read_manifest(items: Path) -> pa.Table:
    """item_id and media_uri of an items table.

    Raises:
        TableError: it cannot be read or breaks its schema.
        StageError: it has no row.
    """
    try:
        table = check_items(pq.read_table(items))
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"items: {items} cannot be read as Parquet: {error}") from error
    if not table.num_rows:
        raise StageError(f"{items} has no row; give a table with at least one item")
    return table.select(["item_id", "media_uri"])


def cut_blocks(manifest: pa.Table, cfg: MediaConfig) -> list[pa.Table]:
    """Rows of the manifest in blocks, those with media first.

    The size of a block depends on the items and the shapes alone: more actors must not throw away what is done.
    """
    has_media = pc.fill_null(pc.not_equal(manifest["media_uri"], ""), False)
    media, text_only = manifest.filter(has_media), manifest.filter(pc.invert(has_media))
    fitting = max(1, BLOCK_BYTES // (cfg.clip_bytes * cfg.max_clips))
    size = max(1, min(-(-media.num_rows // BLOCKS_OF_FEW), MAX_BLOCK_ITEMS, fitting))
    blocks = [media.slice(start, size) for start in range(0, media.num_rows, size)]
    size = max(1, BLOCK_BYTES // cfg.clip_bytes)
    return blocks + [text_only.slice(start, size) for start in range(0, text_only.num_rows, size)]


def parts_folder(out_clips: Path) -> Path:
    """Where the parts of a clips table lie."""
    return out_clips.with_name(out_clips.name + ".parts")


def remove_parts(folder: Path) -> None:
    """Remove what `open_parts` made; anything else that lies in `folder` stays."""
    for path in folder.glob("*"):
        if path.is_dir() and re.fullmatch(r"[0-9a-f]{16}", path.name):
            (path / "manifest.json").unlink(missing_ok=True)  # first: half of the rest must not count
            shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def reasons_of(aside: pa.Table) -> Counter[str]:
    """Rows of a quarantine table by reason."""
    return Counter(aside["reason"].to_pylist())


def _clear_unfinished(parts: DecodeParts) -> None:
    """Remove what earlier runs left half done, and with their folders under begun/ their workers' leave to go on."""
    shutil.rmtree(parts.folder / "begun", ignore_errors=True)
    if (parts.folder / "checked.json").is_file():
        return  # blocks may have been moved to publish/ already
    for path in (parts.folder / "blocks").iterdir():
        if not path.name.isdigit() or parts.tally(int(path.name)) is None:
            shutil.rmtree(path, ignore_errors=True)


def _open_manifest(folder: Path) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(folder / "manifest.arrow")))


def _write_manifest(path: Path, blocks: list[pa.Table]) -> None:
    def write(staged: Path) -> None:
        with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_file(file, blocks[0].schema) as writer:
            for block in blocks:
                (batch,) = block.combine_chunks().to_batches()
                writer.write_batch(batch)

    write_atomically(path, write)


def _synced_bytes(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
