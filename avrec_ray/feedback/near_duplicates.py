"""Groups of nearly the same sets, found without comparing all with all.

MinHash (Broder, "On the resemblance and containment of documents", 1997): the chance that the smallest hash of two sets
is the same is their Jaccard likeness. Sets that agree on a band of such hashes meet in a bucket (locality-sensitive
hashing), and only those that meet are compared, exactly.

Dimension key: S sets, H hashes, R members (a set and an element each).
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

Codes = npt.NDArray[np.int64]

NUM_BANDS, ROWS_PER_BAND = 24, 3
"""A pair of likeness j is compared with chance 1 - (1 - j^3)^24: 0.96 at 0.5, 0.99997 at 0.7."""
MOST_COMPARED = 8
"""Sets of a bucket that each is compared with: those before it."""
_PRIME = (1 << 31) - 1


def near_duplicates(
    set_R: Codes, element_R: Codes, least_jaccard: float, min_elements: int, min_links: int = 1, seed: int = 0
) -> list[Codes]:
    """Groups of sets, each linked to `min_links` others of its group by a likeness of at least `least_jaccard`.

    Without several links each, a chain of sets that are like the next one, and unlike at its ends, would be a group.

    Args:
        set_R, element_R: int64 [R]; set set_R[r] holds element_R[r], each pair once.
        min_elements: smaller sets are in no group.
        min_links: at most MOST_COMPARED: of large groups not all links are looked for.

    Returns:
        Sets of each group, ascending; groups by their first set. Likenesses are exact; a link may be missed with the
        chance that NUM_BANDS says.
    """
    sizes = np.bincount(set_R)
    large = sizes[set_R] >= min_elements
    if not large.any():
        return []
    sets, row = np.unique(set_R[large], return_inverse=True)
    elements = np.unique(element_R[large], return_inverse=True)[1]
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row))])
    left, right = _candidates(elements[order], starts, seed)
    is_linked = _jaccard(elements[order], starts, left, right) >= least_jaccard
    left, right = _well_linked(left[is_linked], right[is_linked], len(sets), min_links)
    graph = csr_matrix((np.ones(len(left)), (left, right)), (len(sets), len(sets)))
    _, component = connected_components(graph, directed=False)
    by_group = np.argsort(component, kind="stable")
    groups = np.split(sets[by_group], np.cumsum(np.bincount(component))[:-1])
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _well_linked(left: Codes, right: Codes, num_sets: int, min_links: int) -> tuple[Codes, Codes]:
    """The links that stay when sets with fewer than `min_links` of them go, again and again (k-core)."""
    while True:
        num_links = np.bincount(np.concatenate([left, right]), minlength=num_sets)
        stays = (num_links[left] >= min_links) & (num_links[right] >= min_links)
        if stays.all():
            return left, right
        left, right = left[stays], right[stays]


def _jaccard(elements: Codes, starts: Codes, left: Codes, right: Codes) -> npt.NDArray[np.float64]:
    """Shared elements of each pair of sets as a share of all of both."""
    holds = csr_matrix((np.ones(len(elements), np.int32), elements, starts))
    sizes = np.diff(starts)
    shared = np.asarray(holds[left].multiply(holds[right]).sum(1)).reshape(-1)
    return shared / (sizes[left] + sizes[right] - shared)


def _candidates(elements: Codes, starts: Codes, seed: int) -> tuple[Codes, Codes]:
    """Pairs of sets that agree on a band. Elements of set s are elements[starts[s] : starts[s + 1]]; none is empty."""
    rng = np.random.default_rng(seed)
    num_sets = len(starts) - 1
    met = [np.zeros(0, np.int64)]
    for _ in range(NUM_BANDS):
        factors, offsets = rng.integers(1, _PRIME, ROWS_PER_BAND), rng.integers(0, _PRIME, ROWS_PER_BAND)
        smallest = [
            np.minimum.reduceat((factor * (elements + 1) + offset) % _PRIME, starts[:-1])
            for factor, offset in zip(factors, offsets, strict=True)
        ]
        band = np.unique(np.stack(smallest, 1), axis=0, return_inverse=True)[1].reshape(-1)
        in_bucket = np.argsort(band, kind="stable")
        bucket = band[in_bucket]
        for back in range(1, MOST_COMPARED + 1):
            meets = np.flatnonzero(bucket[back:] == bucket[:-back])
            met.append(in_bucket[meets] * num_sets + in_bucket[meets + back])
    pairs = np.unique(np.concatenate(met))
    return pairs // num_sets, pairs % num_sets
