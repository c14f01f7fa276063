"""A bundle that takes new items, a store, and small real media."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.ingest import IngestWorker
from avrec_ray.new_items.store import NewItemStore
from tests.feedback.conftest import new_url, postgres_server  # noqa: F401
from tests.media.render import tone, write_media
from tests.tiny_bundle import build_tiny_bundle, tiny_media


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty items i00 to i39; the reranker has an opinion of its own."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "v-tiny", head_std=1.0, media=tiny_media())


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of picture and sound."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    return write_media(path, num_frames=20, fps=10, sound=tone(2.0))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NewItemStore]:
    opened = NewItemStore(f"sqlite:///{tmp_path / 'events.db'}")
    yield opened
    opened.close()


@pytest.fixture
def make_worker(bundle: Path, store: NewItemStore, tmp_path: Path) -> Iterator[Callable[..., IngestWorker]]:
    """Workers over `store`, with the keywords of NewItemsConfig, and `decoder`; closed at the end."""
    made: list[IngestWorker] = []

    def make(bundle: Path = bundle, decoder: str = "", **settings: object) -> IngestWorker:
        cfg = NewItemsConfig(**settings)  # type: ignore[arg-type]
        options = {"decoder": decoder} if decoder else {}
        made.append(IngestWorker(bundle, store, cfg, tmp_path / "uploads", **options))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
