"""The vector index against bare faiss in the same run: recall at 100, queries a second, and what changes cost.

Run: python benchmarks/bench_index.py --items 100000 1000000

Items and queries are unit vectors of 64 numbers in clusters of about 500 (deviation .8 of the clusters' own). A line:
backend, filter, recall of the true 100 nearest (bare exact search of the allowed items), the fewest items that any
query got, the probes of bare faiss, then queries a second of CPU time, one at a time and in batches of 16, and the
ratio to bare faiss: the same faiss index, k and one thread, parameters and filter of both made before. Without a filter
it has the same number of probes; with one, the first of 32, 36, 40 ... (each a tenth more) that finds as much. Both
answer the same queries in turns, a pass over all queries at a time; the fastest pass of each counts, because other work
on the machine only ever adds time, and the ratio of medians stands in brackets. "random" filters allow items by
chance, "cluster" ones whole clusters.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import VectorIndex, build_index
from avrec_ray.retrieval.index_rows import Mask, Rows, Vectors

DIM, K, NUM_QUERIES, BATCHES = 64, 100, 192, (1, 16)
Search = Callable[[Vectors], object]


def main() -> None:
    """A table for each catalogue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000])
    parser.add_argument("--backends", nargs="+", default=["ivf_flat", "flat"])
    parser.add_argument("--passes", type=int, default=25)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    for num_items in args.items:
        items, cluster_of, queries = clustered(num_items)
        for backend in args.backends:
            began = time.perf_counter()
            index = build_index(items, IndexConfig(backend=backend))
            print(f"{num_items} items, {backend}, built in {time.perf_counter() - began:.1f} s", flush=True)
            print("filter         allowed recall@100 fewest probes |   QPS x1   ratio      |  QPS x16   ratio")
            for name, allowed in filters(cluster_of):
                print(line(name, index, items, queries, allowed, args.passes), flush=True)
            changes(index, items)


def clustered(num_items: int) -> tuple[Vectors, Rows, Vectors]:
    """Items, the cluster of each, and queries from the same clusters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, num_items // 500), DIM), dtype=np.float32)
    cluster_of = rng.integers(0, len(centres), num_items + NUM_QUERIES)
    vectors = centres[cluster_of] + 0.8 * rng.standard_normal((len(cluster_of), DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:num_items], cluster_of[:num_items], vectors[num_items:]


def filters(cluster_of: Rows) -> Iterator[tuple[str, Mask | None]]:
    """None, and both kinds at 10 % and at 1 %."""
    rng = np.random.default_rng(1)
    num_clusters = int(cluster_of.max()) + 1
    yield "none", None
    for share in (0.1, 0.01):
        yield f"random {share:4.0%}", rng.random(len(cluster_of)) < share
        chosen = rng.permutation(num_clusters)[: max(1, round(share * num_clusters))]
        yield f"cluster {share:4.0%}", np.isin(cluster_of, chosen)


def line(name: str, index: VectorIndex, items: Vectors, queries: Vectors, allowed: Mask | None, passes: int) -> str:
    """One line of the table."""
    truth = faiss.IndexFlatIP(DIM)
    truth.add(items if allowed is None else items[allowed])
    least = truth.search(queries, K)[0][:, -1:] - 1e-6
    scores, rows = index.search(queries, K, allowed)
    recall, fewest = (scores >= least).mean(), (rows >= 0).sum(1).min()
    bare, probes, held = bare_search(index, queries, allowed, least, float(recall))
    text = f"{name:<13} {int(truth.ntotal):>8} {recall:>10.4f} {fewest:>6} {probes:>6}"
    slow = index.backend == "flat" and len(items) > 500_000
    asked = queries[:48] if slow else queries
    for batch in BATCHES:
        prepared = None if allowed is None else index.prepare(allowed)
        searches = (partial(index.search, k=K, allowed=prepared), bare)
        ours, faiss_alone, typical = queries_a_second(*searches, asked, batch, passes)
        text += f" | {ours:>8.0f} {ours / faiss_alone:>5.2f} ({typical:.2f})"
    del held
    return text


def bare_search(
    index: VectorIndex, queries: Vectors, allowed: Mask | None, least: Vectors, recall: float
) -> tuple[Search, int, object]:
    """faiss alone, its number of probes, and what its parameters point to."""
    raw = index._rows.raw
    params: Any = faiss.SearchParameters() if index.backend == "flat" else faiss.SearchParametersIVF()
    bits = np.packbits(np.ones(1, bool) if allowed is None else allowed, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    params.sel = None if allowed is None else selector
    bare = partial(raw.search, k=K, params=params)
    if index.backend == "flat":
        return bare, 0, (bits, selector)
    params.nprobe = IndexConfig().num_probes
    while allowed is not None and params.nprobe < raw.nlist and (bare(queries)[0] >= least).mean() < recall:
        params.nprobe = min(math.ceil(1.1 * params.nprobe), raw.nlist)
    return bare, params.nprobe, (bits, selector)


def queries_a_second(
    ours: Search, bare: Search, queries: Vectors, batch: int, passes: int
) -> tuple[float, float, float]:
    """Of both, by CPU time: fastest of passes that take turns; and the ratio of their medians."""
    seconds: npt.NDArray[np.float64] = np.zeros((passes, 2))
    for number in range(passes):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.thread_time()
            for start in range(0, len(queries), batch):
                (ours, bare)[which](queries[start : start + batch])
            seconds[number, which] = time.thread_time() - began
    fastest, medians = len(queries) / seconds.min(0), np.median(seconds, axis=0)
    return float(fastest[0]), float(fastest[1]), float(medians[1] / medians[0])


def changes(index: VectorIndex, items: Vectors) -> None:
    """What adding, changing and deleting take, one item and a thousand at a time."""
    for num in (1, 1000):
        rows, added = np.arange(num), items[:num]
        joined = np.arange(index.num_items, index.num_items + num)
        took = {
            "add": milliseconds(partial(index.add, added)),
            "update": milliseconds(partial(index.update, joined, items[rows + num])),
            "delete": milliseconds(partial(index.delete, joined)),
        }
        print(f"{num} at once: " + ", ".join(f"{name} {value:.1f} ms" for name, value in took.items()), flush=True)


def milliseconds(change: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    change()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
