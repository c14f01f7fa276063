"""The index on disk: index.faiss, and index.json that says what it must be."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import BundleError, ConfigError
from avrec_ray.retrieval.index_rows import list_of_rows

FORMAT = 1
"""Version of the two files."""
CLASSES = {"flat": "IndexFlatIP", "ivf_flat": "IndexIVFFlat"}
"""The faiss class of each backend."""


@dataclass(kw_only=True)
class IndexMetadata:
    """What index.json holds."""

    backend: str
    num_probes: int
    num_items: int = 0
    """Rows, deleted ones too."""
    deleted: list[int] = field(default_factory=list)
    """Rows that are deleted, ascending."""
    dim: int = 0
    model_version: str = ""
    """Version of the towers that made the embeddings."""
    sha256: str = ""
    """Of index.faiss."""
    format: int = FORMAT


def write_index_files(folder: Path, index: Any, metadata: IndexMetadata) -> None:
    """Write both files; index.json last, so that a torn save has none.

    Args:
        metadata: what index.json shall say; `dim` and `sha256` are filled in.
    """
    (folder / "index.json").unlink(missing_ok=True)
    faiss.write_index(index, str(folder / "index.faiss"))
    written = replace(metadata, dim=int(index.d), sha256=_sha256(folder / "index.faiss"))
    (folder / "index.json").write_text(json.dumps(to_dict(written), indent=1, sort_keys=True) + "\n")


def read_index_files(folder: Path, model_version: str, mmap: bool) -> tuple[Any, IndexMetadata]:
    """Read both files and check everything that index.json claims before and after faiss reads its own.

    Raises:
        BundleError: saying what differs.
    """
    metadata = _read_metadata(folder)
    if metadata.model_version != model_version:
        raise BundleError(
            f"{folder}: index of towers {metadata.model_version!r}, expected {model_version!r}: "
            "mixed versions, build the index again"
        )
    path = folder / "index.faiss"
    if not path.is_file() or _sha256(path) != metadata.sha256:
        raise BundleError(f"{path} is missing or differs from its sha256 in index.json; build or copy the index again")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        raise BundleError(f"{path} cannot be read by faiss ({str(error).splitlines()[0]}); build it again") from error
    _check_index(index, metadata, path)
    return index, metadata


def _read_metadata(folder: Path) -> IndexMetadata:
    path = folder / "index.json"
    try:
        metadata = from_dict(IndexMetadata, json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError, ConfigError, TypeError) as error:
        raise BundleError(f"{path} is no index description ({error}); build the index again") from error
    if metadata.format != FORMAT or metadata.backend not in CLASSES:
        raise BundleError(
            f"{path}: format {metadata.format}, backend {metadata.backend!r}; this code reads format {FORMAT} "
            f"with one of {sorted(CLASSES)}; build the index again"
        )
    return metadata


def _check_index(index: Any, metadata: IndexMetadata, path: Path) -> None:
    got = (type(index).__name__, int(index.ntotal), int(index.d), int(index.metric_type))
    num_stored = metadata.num_items - (len(metadata.deleted) if metadata.backend == "ivf_flat" else 0)
    expected = (CLASSES[metadata.backend], num_stored, metadata.dim, int(faiss.METRIC_INNER_PRODUCT))
    if got[0] == "IndexFlat" and expected[0] == "IndexFlatIP":  # faiss reads one back as the other, by metric
        got = (expected[0], *got[1:])
    if got != expected:
        raise BundleError(f"{path}: class, items, dim and metric are {got}, index.json says {expected}; build it again")
    num_values = 0
    for block in _vector_blocks(index):
        num_values += block.size
        if not np.isfinite(block).all():
            raise BundleError(f"{path} holds a vector that is not finite; train, embed and build again")
    if num_values != num_stored * metadata.dim:  # faiss counts, but does not store, a vector it cannot assign
        raise BundleError(f"{path} holds {num_values} numbers for {got[1]} vectors of {got[2]}; embed and build again")
    _check_deleted(index, metadata, path)


def _check_deleted(index: Any, metadata: IndexMetadata, path: Path) -> None:
    """Rows that are said to be deleted must exist and, in inverted lists, be the ones that no list holds."""
    deleted = metadata.deleted
    if deleted != sorted(set(deleted)) or (deleted and not 0 <= deleted[0] <= deleted[-1] < metadata.num_items):
        raise BundleError(f"{path}: index.json names deleted rows twice or outside [0, {metadata.num_items})")
    if metadata.backend != "ivf_flat":
        return
    try:
        missing = np.flatnonzero(list_of_rows(index, metadata.num_items) == index.nlist).tolist()
    except ValueError as error:
        raise BundleError(f"{path}: {error}; build it again") from error
    if missing != deleted:
        raise BundleError(f"{path} lacks rows {missing[:3]} ... that index.json does not call deleted; build it again")


def _vector_blocks(index: Any) -> Iterator[npt.NDArray[np.float32]]:
    """The stored vectors without a copy, a block at a time."""
    if not isinstance(index, faiss.IndexIVF):
        yield faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
        return
    lists: Any = index.invlists
    for number in range(index.nlist):
        if size := lists.list_size(number):
            codes = lists.get_codes(number)
            yield faiss.rev_swig_ptr(codes, size * index.code_size).view(np.float32)
            lists.release_codes(number, codes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
