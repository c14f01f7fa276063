"""Search of one query in the vector index against a plain NumPy product and partial sort, in the same run.

Run: python benchmarks/bench_index.py. Each line: catalogue, backend, recall at 100 against exact search, microseconds
a query, and the ratio to NumPy (above 1: faster). Medians over queries, one query at a time, as a request comes.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import VectorIndex, build_index, recall_against_exact

DIM, K, NUM_QUERIES = 64, 100, 200
Search = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


def main() -> None:
    """Catalogues of a laptop and of a service."""
    rng = np.random.default_rng(0)
    for num_items in (1_000, 10_000, 100_000):
        centres = rng.normal(size=(num_items // 50, DIM))
        items = unit(centres[rng.integers(0, len(centres), num_items)] + rng.normal(size=(num_items, DIM)))
        queries = unit(items[rng.integers(0, num_items, NUM_QUERIES)] + 0.1 * rng.normal(size=(NUM_QUERIES, DIM)))
        baseline = median_seconds(partial(numpy_search, items), queries)
        print(f"{num_items:>7} items  numpy     recall 1.000  {baseline * 1e6:8.0f} us  1.0x (baseline)")
        for backend in ("flat", "ivf_flat"):
            index = build_index(items, IndexConfig(backend=backend))
            seconds = median_seconds(partial(search, index), queries)
            recall = recall_against_exact(index, queries, K)
            ratio = baseline / seconds
            print(f"{num_items:>7} items  {backend:<8}  recall {recall:.3f}  {seconds * 1e6:8.0f} us  {ratio:.1f}x")


def numpy_search(items: npt.NDArray[np.float32], query: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The K best items of one query, best first."""
    scores = items @ query
    best = np.argpartition(-scores, K)[:K]
    return np.asarray(best[np.argsort(-scores[best])])


def search(index: VectorIndex, query: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The same through the index."""
    return index.search(query[None], K)[1][0]


def median_seconds(call: Search, queries: npt.NDArray[np.float32]) -> float:
    """Median time of `call(query)`; the first ten warm up."""
    times = []
    for query in queries:
        began = time.perf_counter()
        call(query)
        times.append(time.perf_counter() - began)
    return float(np.median(times[10:]))


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
