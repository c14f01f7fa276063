"""The bundle: whole or absent, and anything damaged, mixed or wrong is refused by name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.bundle import (
    REQUIRED_FILES,
    BundleMetadata,
    _sha256,
    load_bundle,
    load_catalogue,
    load_metadata,
    save_bundle,
)
from avrec_ray.errors import BundleError
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.retrieval.config import IndexConfig
from tests.tiny_bundle import TOWERS_VERSION, build_tiny_bundle, tiny_catalogue
from tests.tiny_models import tiny_towers

ALL_FILES = sorted([*REQUIRED_FILES, "index/index.faiss", "index/index.json"])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-tiny")


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "v-tiny"))


def metadata_of(name: str) -> BundleMetadata:
    return BundleMetadata(
        model_version=name, towers_version=TOWERS_VERSION, towers=tiny_towers(), reranker=RerankerConfig(),
        index=IndexConfig(), seed=0, data_version="d",
    )  # fmt: skip


def reseal(folder: Path, **changed: Any) -> None:
    """Write metadata.json with the digests of the files as they are now, and `changed` values."""
    values = json.loads((folder / "metadata.json").read_text())
    values["files"] = {name: _sha256(folder / name) for name in values["files"] if (folder / name).is_file()}
    (folder / "metadata.json").write_text(json.dumps({**values, **changed}))


def rewrite(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table and reseal: what a wrong writer would leave, its digest in order."""
    pq.write_table(change(pq.read_table(folder / name)), folder / name)
    reseal(folder)


def test_bundle_round_trips(pristine: Path) -> None:
    bundle = load_bundle(pristine)
    expected = tiny_catalogue(40)
    assert bundle.metadata.model_version == "v-tiny"
    assert bundle.metadata.towers == tiny_towers()
    assert bundle.metadata.reranker == RerankerConfig(num_interests=5, hidden_dim=8)
    assert sorted(bundle.metadata.files) == ALL_FILES
    for name in ("item_ids", "titles", "categories", "tags", "creator_ids", "languages"):
        assert getattr(bundle.items, name) == getattr(expected, name)
    for name in ("durations", "popularity", "recent_popularity", "choices_per_day", "warm"):
        np.testing.assert_array_equal(getattr(bundle.items, name), getattr(expected, name))
        assert getattr(bundle.items, name).dtype == getattr(expected, name).dtype
    assert (bundle.embeddings.shape, bundle.embeddings.dtype) == ((40, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(bundle.embeddings, axis=1), 1, atol=1e-5)
    assert bundle.moments.shape == (40, 5, 8)
    np.testing.assert_allclose(np.linalg.norm(bundle.moments, axis=2), bundle.moment_mask, atol=1e-5)
    assert bundle.moment_mask[0].tolist() == [False, False, False, False, True]  # item 0 has text alone
    assert bundle.moment_spans[1].tolist() == [[0, 4], [4, 8], [0, 4], [4, 8], [0, 8]]


def test_bundle_of_before_says_that_it_does_not_know_its_age(copy: Path) -> None:
    values = json.loads((copy / "metadata.json").read_text())
    del values["built_at_seconds"]
    (copy / "metadata.json").write_text(json.dumps(values))
    assert load_bundle(copy).metadata.built_at_seconds == 0.0
    reseal(copy, built_at_seconds=1.7e9)
    assert load_bundle(copy).metadata.built_at_seconds == 1.7e9


def test_bundle_opens_from_a_string_too(pristine: Path) -> None:
    assert load_bundle(str(pristine)).items.item_ids == load_catalogue(str(pristine)).item_ids


def test_bundle_of_the_same_seed_has_the_same_files(pristine: Path, tmp_path: Path) -> None:
    again = build_tiny_bundle(tmp_path / "v-tiny")
    assert load_metadata(again).files == load_metadata(pristine).files


def test_bundle_holds_no_pickle(pristine: Path) -> None:
    found = {path.suffix for path in pristine.rglob("*") if path.is_file()}
    assert found == {".json", ".parquet", ".safetensors", ".faiss"}


@pytest.mark.parametrize("name", ALL_FILES)
def test_bundle_with_a_tampered_file_is_refused_by_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} differs from its sha256 in metadata.json; copy the whole bundle"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ALL_FILES)
def test_bundle_with_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_bundle_whose_metadata_forgets_a_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    reseal(copy)
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["embeddings.parquet", "moments.parquet"])
@pytest.mark.parametrize("version", [b"v-other", None])
def test_bundle_of_mixed_versions_is_refused(copy: Path, name: str, version: bytes | None) -> None:
    rewrite(copy, name, lambda table: table.replace_schema_metadata(version and {"model_version": version}))
    with pytest.raises(BundleError, match=rf"{name} is of towers '(v-other)?', the bundle of 'v-towers': mixed bundle"):
        load_bundle(copy)


def test_bundle_of_other_towers_than_its_vectors_is_refused(copy: Path) -> None:
    reseal(copy, towers_version="v-newer")
    with pytest.raises(BundleError, match="mixed bundle"):
        load_bundle(copy)


def with_vector(vector: list[float | None]) -> Callable[[pa.Table], pa.Table]:
    """A change that gives the first row another embedding."""

    def change(table: pa.Table) -> pa.Table:
        column = pa.array([vector, *table["embedding"].to_pylist()[1:]], pa.list_(pa.float32()))
        return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)

    return change


@pytest.mark.parametrize("name", ["embeddings.parquet", "moments.parquet"])
@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0] * 7 + [float("nan")], "holds a value that is not finite in row 0"),
        ([float("inf")] * 8, "holds a value that is not finite in row 0"),
        ([1.0] * 9, "holds 9 values in row 0, expected 8"),
        ([], "holds 0 values in row 0, expected 8"),
    ],
)
def test_bundle_with_a_bad_vector_is_refused(copy: Path, name: str, vector: list[float | None], message: str) -> None:
    rewrite(copy, name, with_vector(vector))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_bundle_whose_tables_list_other_items_is_refused(copy: Path) -> None:
    rewrite(copy, "items.parquet", lambda table: table.slice(1))
    with pytest.raises(BundleError, match="embeddings.parquet and items.parquet list different items"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a bundle .*python -m jobs.full_loop"),
        ("{", "is not a bundle"),
        ("\udcff", "is not a bundle"),
        ("[]", "format None, this code reads 6"),
        ('{"format": 1}', "format 1, this code reads 6"),
        ('{"format": 6}', "does not hold a bundle's metadata .*'model_version' is missing"),
        ('{"format": 6, "flavour": 3}', "does not hold a bundle's metadata .*unknown key 'flavour'"),
    ],
)
def test_bundle_with_unreadable_metadata_is_refused(copy: Path, content: str | None, message: str) -> None:
    path = copy / "metadata.json"
    path.unlink() if content is None else path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is not a bundle"):
        load_metadata(tmp_path / "nowhere")


def test_load_catalogue_checks_its_own_file_alone(copy: Path) -> None:
    (copy / "towers.safetensors").unlink()
    assert len(load_catalogue(copy)) == 40
    (copy / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(BundleError, match=r"items\.parquet differs"):
        load_catalogue(copy)


def test_save_bundle_does_not_overwrite(copy: Path) -> None:
    before = load_metadata(copy)
    with pytest.raises(BundleError, match="v-tiny exists; bundles are immutable"):
        save_bundle(copy, metadata_of("v-tiny"), lambda staging: None)
    assert load_metadata(copy) == before


def test_save_bundle_that_fails_leaves_no_bundle_and_can_be_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "v-1"

    def die(staging: Path) -> None:
        (staging / "half").write_text("written")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_bundle(folder, metadata_of("v-1"), die)
    assert not folder.exists()
    save_bundle(folder, metadata_of("v-1"), lambda staging: (staging / "whole").touch())
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v-1"]


def test_save_bundle_puts_every_file_and_every_name_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", recorded)
    folder = build_tiny_bundle(tmp_path / "v-tiny")
    staging = tmp_path / "v-tiny.part"
    written = {staging / path.relative_to(folder) for path in folder.rglob("*")}
    assert {staging, *written} <= set(synced)
    assert synced[-1] == tmp_path, "the bundle's own name comes last"
