"""Whatever is added, changed, deleted, saved and opened again: the index answers as a dict of vectors does."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import PreparedFilter, VectorIndex, build_index, load_index
from tests.retrieval.test_index import DIM, brute_force, unit_vectors

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 6)


class ChangingIndex(RuleBasedStateMachine):
    """The model holds the vector of each living row; `num_rows` counts deleted ones too."""

    config: IndexConfig
    is_exact: bool
    index: VectorIndex
    model: dict[int, npt.NDArray[np.float32]]
    num_rows: int
    prepared: PreparedFilter | None

    @initialize(num=st.integers(1, 25), seed=SEEDS)
    def build(self, num: int, seed: int) -> None:
        vectors = unit_vectors(num, seed)
        lists = min(self.config.num_lists, num)
        self.index = build_index(vectors, IndexConfig(**(vars(self.config) | {"num_lists": lists})))
        self.model = dict(enumerate(vectors))
        self.num_rows = num
        self.prepared = None

    @rule(seed=SEEDS, share=st.sampled_from([0.0, 0.2, 0.8, 1.0]))
    def prepare(self, seed: int, share: float) -> None:
        self.prepared = self.index.prepare(np.random.default_rng(seed).random(self.num_rows) < share)

    @rule(num=SIZES, seed=SEEDS)
    def add(self, num: int, seed: int) -> None:
        vectors = unit_vectors(num, seed)
        rows = self.index.add(vectors)
        assert rows.tolist() == list(range(self.num_rows, self.num_rows + num))
        self.model |= dict(zip(rows.tolist(), vectors, strict=True))
        self.num_rows += num

    @rule(num=SIZES, seed=SEEDS)
    def update(self, num: int, seed: int) -> None:
        rows = np.random.default_rng(seed).permutation(sorted(self.model))[:num].astype(np.int64)
        if len(rows):
            vectors = unit_vectors(len(rows), seed)
            self.index.update(rows, vectors)
            self.model |= dict(zip(rows.tolist(), vectors, strict=True))

    @rule(num=SIZES, seed=SEEDS)
    def delete(self, num: int, seed: int) -> None:
        rows = np.random.default_rng(seed).permutation(self.num_rows)[:num]
        assert self.index.delete(rows) == len(self.model.keys() & set(rows.tolist()))
        for row in rows.tolist():
            self.model.pop(row, None)

    @rule(mmap=st.booleans())
    def save_and_load(self, mmap: bool) -> None:
        query = unit_vectors(3, 7)
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(folder, "v1")
            loaded = load_index(Path(folder), "v1", mmap=mmap)
            for found, expected in zip(loaded.search(query, 9), self.index.search(query, 9), strict=True):
                assert np.array_equal(found, expected)
            if not mmap:
                self.index = loaded
                if self.prepared is not None:
                    missing = np.zeros(self.num_rows - len(self.prepared.mask), bool)
                    self.prepared.mask = np.append(self.prepared.mask, missing)  # an opened index wants whole masks

    @rule(k=st.integers(1, 40), seed=SEEDS)
    def search_prepared(self, k: int, seed: int) -> None:
        if self.prepared is not None:
            missing = np.zeros(self.num_rows - len(self.prepared.mask), bool)
            query, mask = unit_vectors(2, seed), np.append(self.prepared.mask, missing)
            for found, expected in zip(
                self.index.search(query, k, self.prepared), self.index.search(query, k, mask), strict=True
            ):
                assert np.array_equal(found, expected)

    @rule(
        k=st.integers(1, 40), seed=SEEDS, share=st.sampled_from([None, 0.0, 0.2, 0.8]), num_excluded=st.integers(0, 9)
    )
    def search(self, k: int, seed: int, share: float | None, num_excluded: int) -> None:
        rng = np.random.default_rng(seed)
        allowed = None if share is None else rng.random(self.num_rows) < share
        exclude = rng.permutation(self.num_rows)[:num_excluded]
        usable = np.zeros(self.num_rows, bool)
        usable[list(self.model)] = True
        if allowed is not None:
            usable &= allowed
        usable[exclude] = False
        query = unit_vectors(1, seed)
        scores, rows = self.index.search(query, k, allowed, [exclude] if num_excluded else None)
        vectors = np.zeros((self.num_rows, DIM), np.float32)
        for row, vector in self.model.items():
            vectors[row] = vector
        expected, _ = brute_force(vectors, query[0], k, usable)
        found = rows[0, : len(expected)]
        assert usable[found].all()
        assert len(set(found.tolist())) == len(expected)
        assert (rows[0, len(expected) :] == -1).all()
        assert np.allclose(scores[0, : len(expected)], vectors[found] @ query[0], atol=1e-5)
        if self.is_exact:
            assert np.allclose(scores[0, : len(expected)], expected, atol=1e-5)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "index"):
            assert (self.index.num_items, self.index.num_deleted) == (self.num_rows, self.num_rows - len(self.model))


class ChangingFlat(ChangingIndex):
    config, is_exact = IndexConfig(backend="flat"), True


class ChangingLists(ChangingIndex):
    """All lists probed: approximate in nothing."""

    config, is_exact = IndexConfig(backend="ivf_flat", num_lists=5, num_probes=5), True


class ChangingListsProbedOnce(ChangingIndex):
    config, is_exact = IndexConfig(backend="ivf_flat", num_lists=5, num_probes=1), False


for machine in (ChangingFlat, ChangingLists, ChangingListsProbedOnce):
    machine.TestCase.settings = settings(
        max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
TestFlat = ChangingFlat.TestCase
TestLists = ChangingLists.TestCase
TestListsProbedOnce = ChangingListsProbedOnce.TestCase
