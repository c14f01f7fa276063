"""The bundle: everything of one model version that serving needs, in one immutable directory.

    metadata.json                      versions, config, metrics, sha256 of each file below
    towers.safetensors                 item tower and user tower; without encoders that were not trained from scratch
    item_tower.safetensors             those of them that pretraining changed, where it did
    reranker.safetensors
    taste_neighbours.safetensors       item-to-item tables, see NeighbourConfig
    session_neighbours.safetensors
    content.safetensors                a vector an item, by which its content is compared with other items'
    classes.safetensors                what each kind of user likes
    predictor.safetensors, .json       how items that join later get neighbours and such a vector
    items.parquet                      the catalogue: facts of each item, tags, popularity
    embeddings.parquet moments.parquet one row an item, one row a moment
    users.parquet                      hashed attributes and friends, only where the towers read them
    index/                             the vector index

A directory is written under another name and renamed when it is complete, so it exists whole or not at all. A loader
refuses missing or changed files, a mix of versions, and vectors that are not finite or of the wrong size.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray import __version__
from avrec_ray.catalogue import Catalogue, catalogue_from_table
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.durable import sync
from avrec_ray.errors import BundleError, ConfigError
from avrec_ray.media.config import MediaConfig
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.vector_tables import moment_arrays, vectors_of
from avrec_ray.training.profiles import UserProfiles, load_profiles

FORMAT = 6
"""Version of the directory layout."""

NEIGHBOUR_FILES = ("taste_neighbours.safetensors", "session_neighbours.safetensors")
CONTENT_FILE = "content.safetensors"
CLASSES_FILE = "classes.safetensors"
REQUIRED_FILES = (
    "towers.safetensors", "reranker.safetensors", *NEIGHBOUR_FILES, CONTENT_FILE, CLASSES_FILE,
    "items.parquet", "embeddings.parquet", "moments.parquet",
)  # fmt: skip
"""Files without which nothing can be served; the index checks its own."""


@dataclass(kw_only=True)
class BundleMetadata:
    """What metadata.json holds."""

    model_version: str
    """Name of the whole bundle."""
    towers_version: str
    """Name of the towers; embeddings, moments and index carry it, and must agree."""
    towers: TowersConfig
    reranker: RerankerConfig
    index: IndexConfig
    seed: int
    data_version: str
    """Digest of the tables that the models were fitted on."""
    media: MediaConfig | None = None
    """What clips were decoded with, which new items are decoded with too; None: the items came without media."""
    new_items_watermark: int = 0
    """Changes of new items up to this one are in the catalogue, see `NewItemStore.accepted_items`."""
    built_at_seconds: float = 0.0
    """POSIX time at which the bundle was put together; 0: a bundle from before this was noted."""
    code_version: str = __version__
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each file, by path inside the bundle."""
    format: int = FORMAT


@dataclass(eq=False)
class Bundle:
    """An opened bundle. Models are built by their owners from `path` and `metadata`."""

    path: Path
    metadata: BundleMetadata
    items: Catalogue
    embeddings: npt.NDArray[np.float32]
    """Unit vectors [N, D], in catalogue order."""
    moments: npt.NDArray[np.float32]
    """Unit vectors [N, M, D]; zero where `moment_mask` is false."""
    moment_mask: npt.NDArray[np.bool_]
    moment_spans: npt.NDArray[np.float32]
    """[N, M, 2]: start and end, seconds, half open."""
    profiles: UserProfiles | None = None
    """Attributes and friends of users; None where the towers read none."""
    num_built: int = field(init=False)
    """N as the bundle was built, for which weights and tables are; items that join later have rows behind."""

    def __post_init__(self) -> None:
        self.num_built = len(self.items)


def save_bundle(folder: Path, metadata: BundleMetadata, write_files: Callable[[Path], None]) -> Path:
    """Write a bundle: `write_files(staging)` puts every file but metadata.json into the staging directory.

    Returns:
        `folder`, complete and on disk. An existing bundle of that name is left alone: bundles are immutable.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists; bundles are immutable, choose another model_version")
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_files(staging)
    metadata.files = {str(p.relative_to(staging)): _sha256(p) for p in sorted(staging.rglob("*")) if p.is_file()}
    (staging / "metadata.json").write_text(json.dumps(to_dict(metadata), indent=1, sort_keys=True))
    for path in (*staging.rglob("*"), staging):
        sync(path)
    staging.rename(folder)
    sync(folder.parent)
    return folder


def load_metadata(folder: str | Path) -> BundleMetadata:
    """Read and check metadata.json.

    Raises:
        BundleError: no bundle there, or one of another layout version.
    """
    path = Path(folder) / "metadata.json"
    try:
        values: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} is not a bundle ({error}); build one with: python -m jobs.full_loop") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise BundleError(f"{path}: format {found!r}, this code reads {FORMAT}; rebuild the bundle")
    try:
        return from_dict(BundleMetadata, values)
    except ConfigError as error:
        raise BundleError(f"{path} does not hold a bundle's metadata ({error}); rebuild the bundle") from error


def verify_files(folder: str | Path, metadata: BundleMetadata) -> None:
    """Check the digest of every file, and that none is missing that serving needs.

    Raises:
        BundleError: naming the file.
    """
    for name in sorted({*REQUIRED_FILES, *metadata.files}):
        _verify_file(Path(folder), name, metadata)


def load_catalogue(folder: str | Path) -> Catalogue:
    """The catalogue of a bundle alone; needs no model."""
    metadata = load_metadata(folder)
    _verify_file(Path(folder), "items.parquet", metadata)
    return catalogue_from_table(pq.read_table(Path(folder) / "items.parquet"))


def load_bundle_profiles(folder: str | Path) -> UserProfiles | None:
    """Attributes and friends of a bundle alone, None where its towers read none; needs no model.

    Raises:
        BundleError: users.parquet is missing, changed, or does not fit the towers.
    """
    path, metadata = Path(folder), load_metadata(folder)
    towers = metadata.towers
    if not towers.reads_profiles:
        return None
    _verify_file(path, "users.parquet", metadata)
    num_items = pq.read_metadata(path / "items.parquet").num_rows
    return load_profiles(
        path / "users.parquet", num_items, towers.num_attribute_buckets, towers.num_friends, towers.friend_items
    )


def load_bundle(folder: str | Path) -> Bundle:
    """Open a bundle, every digest and shape checked.

    Raises:
        BundleError: naming the file that is missing, changed, of another version, or not finite.
    """
    path = Path(folder)
    metadata = load_metadata(path)
    verify_files(path, metadata)
    items = catalogue_from_table(pq.read_table(path / "items.parquet"))
    embeddings_table = _read_versioned(path, "embeddings.parquet", metadata)
    if embeddings_table["item_id"].to_pylist() != items.item_ids:
        raise BundleError(f"{path}: embeddings.parquet and items.parquet list different items; rebuild the bundle")
    dim = metadata.towers.embedding_dim
    embeddings = vectors_of(embeddings_table, "embedding", dim)
    moments, mask, spans = moment_arrays(
        _read_versioned(path, "moments.parquet", metadata), items.item_ids, metadata.towers
    )
    return Bundle(path, metadata, items, embeddings, moments, mask, spans, load_bundle_profiles(path))


def _read_versioned(path: Path, name: str, metadata: BundleMetadata) -> pa.Table:
    table = pq.read_table(path / name)
    version = (table.schema.metadata or {}).get(b"model_version", b"").decode()
    if version != metadata.towers_version:
        raise BundleError(
            f"{path / name} is of towers {version!r}, the bundle of {metadata.towers_version!r}: mixed bundle; rebuild"
        )
    return table


def _verify_file(path: Path, name: str, metadata: BundleMetadata) -> None:
    file = path / name
    if name not in metadata.files or not file.is_file():
        raise BundleError(f"{path}: {name} is missing; copy the whole bundle again")
    if _sha256(file) != metadata.files[name]:
        raise BundleError(f"{file} differs from its sha256 in metadata.json; copy the whole bundle again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
