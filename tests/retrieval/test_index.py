import hashlib
import json
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import BundleError, ConfigError
from avrec_ray.retrieval import index_search
from avrec_ray.retrieval.config import BACKENDS, IndexConfig, MatcherConfig
from avrec_ray.retrieval.index import BUILDERS, build_index, load_index

DIM = 8
FEW_PROBES = IndexConfig(backend="ivf_flat", num_lists=7, num_probes=1)
CONFIGS = {"flat": IndexConfig(backend="flat"), "ivf_flat": FEW_PROBES}


def unit_vectors(num: int, seed: int = 0, dim: int = DIM) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(
    embeddings: npt.NDArray[np.float32], query: npt.NDArray[np.float32], k: int, allowed: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rows = np.flatnonzero(allowed)
    scores = embeddings[rows] @ query
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> IndexConfig:
    return CONFIGS[request.param]


def test_every_backend_has_a_builder() -> None:
    assert set(BUILDERS) == set(BACKENDS) - {"auto"}


@pytest.mark.parametrize(("limit", "backend"), [(100, "flat"), (99, "ivf_flat")])
def test_auto_chooses_by_catalogue_size(limit: int, backend: str) -> None:
    assert build_index(unit_vectors(100), IndexConfig(flat_max_items=limit)).backend == backend


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.integers(8, 60),
    st.integers(1, 70),
    st.floats(0, 1),
    st.lists(st.sets(st.integers(0, 59), max_size=60), min_size=1, max_size=3),
    st.integers(0, 5),
)
@settings(max_examples=120, deadline=None)
def test_search_is_full_and_true_under_filters_and_exclusions(
    backend: str, num_items: int, k: int, share: float, excluded: list[set[int]], seed: int
) -> None:
    embeddings, queries = unit_vectors(num_items, seed), 3 * unit_vectors(len(excluded), seed + 100)
    allowed = np.random.default_rng(seed).random(num_items) < share
    exclude = [np.array(sorted(e for e in rows if e < num_items), np.int64) for rows in excluded]
    scores, rows = build_index(embeddings, CONFIGS[backend]).search(queries, k, allowed, exclude)
    assert scores.shape == rows.shape == (len(queries), k)
    for q, query in enumerate(queries):
        usable = allowed.copy()
        usable[exclude[q]] = False
        expected = min(k, int(usable.sum()))
        found = rows[q, :expected]
        assert usable[found].all()
        assert len(set(found.tolist())) == expected
        assert scores[q, :expected] == pytest.approx(embeddings[found] @ query, abs=1e-5)
        assert (np.diff(scores[q, :expected]) <= 0).all()
        assert (rows[q, expected:] == -1).all()
        assert np.isneginf(scores[q, expected:]).all()
        if backend == "flat":
            assert scores[q, :expected] == pytest.approx(brute_force(embeddings, query, k, usable)[0], abs=1e-5)


def test_search_of_one_row_gives_it_and_padding(config: IndexConfig) -> None:
    one = build_index(unit_vectors(1), IndexConfig(backend=config.backend))
    scores, rows = one.search(unit_vectors(1), 3)
    assert rows.tolist() == [[0, -1, -1]]
    assert scores[0, 0] == pytest.approx(1)
    assert one.search(unit_vectors(1), 2, exclude=[np.array([0])])[1].tolist() == [[-1, -1]]


def test_search_for_more_than_there_are_gives_all(config: IndexConfig) -> None:
    scores, rows = build_index(unit_vectors(20), config).search(unit_vectors(2, seed=1), 50)
    assert [sorted(row[:20]) for row in rows.tolist()] == [list(range(20))] * 2
    assert (rows[:, 20:] == -1).all()
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_search_with_nothing_allowed_gives_nothing(config: IndexConfig) -> None:
    index = build_index(unit_vectors(20), config)
    assert (index.search(unit_vectors(2), 5, allowed=np.zeros(20, bool))[1] == -1).all()
    assert index.search(np.zeros((0, DIM), np.float32), 5)[1].shape == (0, 5)


def test_search_under_a_narrow_filter_is_exact(config: IndexConfig) -> None:
    embeddings, queries = unit_vectors(600), unit_vectors(30, seed=1)
    allowed = np.zeros(600, bool)
    allowed[::60] = True  # 10 items: one list in seven may hold none of them
    _, rows = build_index(embeddings, config).search(queries, 5, allowed)
    for query, found in zip(queries, rows, strict=True):
        assert found.tolist() == brute_force(embeddings, query, 5, allowed)[1].tolist()


def test_search_answers_do_not_depend_on_the_batch(config: IndexConfig) -> None:
    index, queries = build_index(unit_vectors(500), config), unit_vectors(70, seed=1)
    exclude = [np.arange(q % 9) for q in range(len(queries))]
    scores, rows = index.search(queries, 20, exclude=exclude)
    for q in range(len(queries)):
        alone = index.search(queries[q : q + 1], 20, exclude=[exclude[q]])
        assert np.array_equal(alone[0][0], scores[q])
        assert np.array_equal(alone[1][0], rows[q])


def test_search_with_long_exclusions_masks_them_out(config: IndexConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = build_index(unit_vectors(300), config), unit_vectors(3, seed=1)
    allowed = np.arange(300) % 2 == 0
    exclude = [np.arange(200), np.zeros(0, np.int64), np.array([5, 5, 4, 299])]
    overfetched = index.search(queries, 40, allowed, exclude)
    monkeypatch.setattr(index_search, "OVERFETCH", 2)
    masked = index.search(queries, 40, allowed, exclude)
    assert ((masked[1] >= 0).sum(1) == 40).all()
    assert not np.isin(masked[1][0], exclude[0]).any()
    if index.backend == "flat":
        assert np.array_equal(overfetched[1], masked[1])


def test_search_orders_equal_scores_by_row(config: IndexConfig) -> None:
    twins = np.repeat(unit_vectors(4), 5, axis=0)
    _, rows = build_index(twins, IndexConfig(backend=config.backend)).search(unit_vectors(4), 20)
    assert rows[:, :5].tolist() == [list(range(5 * q, 5 * q + 5)) for q in range(4)]


def test_two_builds_answer_the_same(config: IndexConfig) -> None:
    queries = unit_vectors(10, seed=1)
    first, second = (build_index(unit_vectors(400), config).search(queries, 30) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((0, DIM), np.float32), r"\(0, 8\): an index needs at least one item"),
        (np.zeros((3, 0), np.float32), "at least one item"),
        (unit_vectors(3).astype(np.float64), r"float64 \(3, 8\); expected float32 \[N, D\]"),
        (unit_vectors(3)[0], r"float32 \(8,\); expected float32 \[N, D\]"),
        ([[1.0]], r"<class 'list'>; expected float32 \[N, D\]"),
        (unit_vectors(3) * np.array([[1], [np.nan], [1]], np.float32), "embedding 1 is not finite"),
        (unit_vectors(3) * np.array([[1], [1], [np.inf]], np.float32), "embedding 2 is not finite"),
        (
            unit_vectors(3) * np.array([[1], [1.01], [1]], np.float32),
            r"embedding 1 has length 1\.01\d\d; expected unit",
        ),
        (np.zeros((2, DIM), np.float32), r"embedding 0 has length 0\.0000"),
    ],
)
def test_build_refuses_embeddings_that_cannot_be_served(embeddings: npt.NDArray[np.float32], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_index(embeddings, IndexConfig())


def test_build_takes_unit_vectors_within_rounding() -> None:
    assert build_index(unit_vectors(3) * np.float32(1.0005), IndexConfig()).num_items == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": unit_vectors(2, dim=5)}, r"float32 \(2, 5\); expected float32 \[Q, 8\]"),
        ({"queries": unit_vectors(2).astype(np.float64)}, "float64"),
        ({"queries": unit_vectors(2)[0]}, r"\(8,\)"),
        ({"queries": unit_vectors(2) * np.array([[1], [np.nan]], np.float32)}, "query 1 is not finite"),
        ({"k": 0}, "k=0; expected at least 1"),
        ({"allowed": np.ones(19, bool)}, r"allowed is bool \(19,\); expected bool \[20\]"),
        ({"allowed": np.ones(20)}, "allowed is float64"),
        ({"exclude": [np.array([1])]}, "exclude has 1 entries for 2 queries"),
        ({"exclude": [np.array([1]), np.array([20])]}, r"outside \[0, 20\)"),
        ({"exclude": [np.array([-1]), np.array([2])]}, r"outside \[0, 20\)"),
    ],
)
def test_search_names_the_wrong_argument(arguments: dict[str, object], message: str) -> None:
    index = build_index(unit_vectors(20), IndexConfig())
    with pytest.raises(ValueError, match=message):
        index.search(**({"queries": unit_vectors(2), "k": 3} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("mmap", [False, True])
def test_saved_index_answers_the_same(config: IndexConfig, mmap: bool, tmp_path: Path) -> None:
    built, queries = build_index(unit_vectors(200), config), unit_vectors(5, seed=1)
    built.save(tmp_path, "v1")
    loaded = load_index(tmp_path, "v1", mmap=mmap)
    assert (loaded.num_items, loaded.dim, loaded.backend) == (200, DIM, config.backend)
    for arguments in ({}, {"allowed": np.arange(200) % 3 == 0}):
        expected, found = (i.search(queries, 12, **arguments) for i in (built, loaded))
        assert np.array_equal(expected[0], found[0])
        assert np.array_equal(expected[1], found[1])


def saved(folder: Path, backend: str = "flat") -> Path:
    build_index(unit_vectors(60), CONFIGS[backend]).save(folder, "v1")
    return folder


def change_json(folder: Path, **values: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_load_refuses_another_version(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="towers 'v1', expected 'v2': mixed versions"):
        load_index(saved(tmp_path), "v2")


@pytest.mark.parametrize("position", [0, 40, -1])
def test_load_refuses_a_changed_file(position: int, tmp_path: Path) -> None:
    path = saved(tmp_path) / "index.faiss"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="differs from its sha256"):
        load_index(tmp_path, "v1")


@pytest.mark.parametrize("name", ["index.json", "index.faiss"])
def test_load_refuses_a_missing_file(name: str, tmp_path: Path) -> None:
    (saved(tmp_path) / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is"):
        load_index(tmp_path, "v1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_items": 61}, r"index.json says .*61"),
        ({"dim": 9}, "index.json says"),
        ({"backend": "ivf_flat"}, "IndexIVFFlat"),
        ({"backend": "hnsw"}, "backend 'hnsw'"),
        ({"format": 2}, "format 2"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_load_refuses_a_description_that_does_not_fit(values: dict[str, object], message: str, tmp_path: Path) -> None:
    change_json(saved(tmp_path), **values)
    with pytest.raises(BundleError, match=message):
        load_index(tmp_path, "v1")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_load_refuses_what_is_no_description(text: str, tmp_path: Path) -> None:
    (saved(tmp_path) / "index.json").write_text(text)
    with pytest.raises(BundleError, match="is no index description"):
        load_index(tmp_path, "v1")


@pytest.mark.parametrize("backend", sorted(CONFIGS))
def test_load_refuses_vectors_that_are_not_finite(backend: str, tmp_path: Path) -> None:
    built = build_index(unit_vectors(60), CONFIGS[backend])
    raw = built._rows.raw
    if backend == "flat":
        faiss.rev_swig_ptr(raw.get_xb(), 60 * DIM)[77] = np.nan
    else:
        number = int(np.argmax([raw.invlists.list_size(n) for n in range(raw.nlist)]))
        faiss.rev_swig_ptr(raw.invlists.get_codes(number), 4).view(np.float32)[0] = np.inf
    built.save(tmp_path, "v1")
    with pytest.raises(BundleError, match="holds a vector that is not finite"):
        load_index(tmp_path, "v1")


def test_load_refuses_an_index_that_stores_fewer_vectors_than_it_counts(tmp_path: Path) -> None:
    built = build_index(unit_vectors(60), FEW_PROBES)
    built._rows.raw.add(np.full((1, DIM), np.nan, np.float32))  # belongs to no list
    built.save(tmp_path, "v1")
    change_json(tmp_path, num_items=61)
    with pytest.raises(BundleError, match="holds 480 numbers for 61 vectors of 8"):
        load_index(tmp_path, "v1")


def test_load_refuses_a_file_that_faiss_cannot_read(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "index.faiss").write_bytes(b"no index at all")
    change_json(tmp_path, sha256=index_sha256(tmp_path / "index.faiss"))
    with pytest.raises(BundleError, match="cannot be read by faiss"):
        load_index(tmp_path, "v1")


def index_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_refuses_another_metric(tmp_path: Path) -> None:
    saved(tmp_path)
    other = faiss.IndexFlatL2(DIM)
    other.add(unit_vectors(60))
    faiss.write_index(other, str(tmp_path / "index.faiss"))
    change_json(tmp_path, sha256=index_sha256(tmp_path / "index.faiss"))
    with pytest.raises(BundleError, match="metric"):
        load_index(tmp_path, "v1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "hnsw"}, r"index.backend='hnsw' is not one of \['auto', 'flat', 'ivf_flat'\]"),
        ({"num_probes": 0}, "index.num_probes=0"),
        ({"num_lists": -1}, "index.num_lists=-1"),
        ({"min_recall": 1.01}, "index.min_recall=1.01"),
    ],
)
def test_config_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexConfig(**settings)  # type: ignore[arg-type]


def test_more_lists_than_items_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"index\.num_lists=21 for 20 items"):
        build_index(unit_vectors(20), IndexConfig(backend="ivf_flat", num_lists=21))


def test_matcher_config_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"matcher.num_candidates=0"):
        MatcherConfig(num_candidates=0)
