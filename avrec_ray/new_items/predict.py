"""What users would say of a new item, by its content, as `cold_items` and `content_likeness` say it of a bundle's.

The bundle keeps what that took: words and tags that count, the directions of known items, weights and ridge. No pickle.

Dimension key: N catalogue, K known items, V kinds of content, C content vector.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from avrec_ray.errors import BundleError
from avrec_ray.evaluation.text_vectors import WordWeights
from avrec_ray.new_items.submission import Submission
from avrec_ray.new_items.vectors import Predicted
from avrec_ray.ranking.content_likeness import LikenessMap
from avrec_ray.retrieval.cold_items import (
    ContentView,
    ContentWeights,
    Matrix,
    dense_kernel,
    inverse_of,
    joined,
    time_kernel,
    unit_rows,
)
from avrec_ray.retrieval.neighbours import ItemNeighbours, Rows, largest

FILES = ("predictor.safetensors", "predictor.json")
TAGS, WORDS, PUBLISHED = "tags", "words", "published"
"""Kinds of content beside the modalities, as `content_views` names them."""


@dataclass(frozen=True, eq=False)
class ContentSpace:
    """How the content of one more item becomes a direction of each kind."""

    tags: dict[str, int]
    """Tag or category to its place."""
    words: WordWeights

    def tag_vector(self, tags: Sequence[str], category: str | None) -> npt.NDArray[np.float32]:
        """[1, tags]: 1 where the item has a tag or is of a category."""
        vector = np.zeros((1, max(len(self.tags), 1)), np.float32)
        vector[0, [self.tags[t] for t in {*tags, *([category] if category else [])} if t in self.tags]] = 1.0
        return vector


@dataclass(eq=False)
class Predictor:
    """Content of an item to what speaks for it and to its content vector. See `build_predictor`."""

    space: ContentSpace
    kinds: dict[str, str]
    """Name of each kind of content to its `ContentView.kind`, in their order."""
    means: dict[str, npt.NDArray[np.float32]]
    """Of dense kinds."""
    known: Rows
    directions: dict[str, npt.NDArray[np.float16]]
    """[K, width] of each kind that is no time; zeros where an item tells nothing."""
    published_days: npt.NDArray[np.float64]
    """[K], NaN where unknown."""
    time_scale: float
    weights: dict[str, ContentWeights]
    """By the name of the table; a table without is not predicted."""
    likeness: LikenessMap

    def __call__(
        self,
        facts: Submission,
        token_means: Mapping[str, npt.NDArray[np.floating]],
        tables: "Mapping[str, SpokenFor]",
        item_ids: Sequence[str],
        model_version: str,
    ) -> Predicted:
        """Of one item.

        Args:
            token_means: mean token [W] of each modality, zeros where the item lacks it.
            tables: by name, see `spoken_for`.
            item_ids: of the catalogue, [N].
        """
        own = self._directions(facts, token_means)
        kernels = self._kernels(facts, own)
        speakers = {}
        for name, table in tables.items():
            weights = self.weights[name]
            used = {kind: kernel for kind, kernel in kernels.items() if weights.views[kind]}
            if used:
                watched, _, values = table.of(joined(used, weights.views)[0])
                speakers[name] = ([item_ids[row] for row in watched.tolist()], values.astype(np.float32))
        return Predicted(model_version, self.likeness.vector(own), speakers)

    def known_kernel(self, name: str) -> Matrix:
        """[K, K] of a table's weights."""
        kernels: dict[str, Matrix] = {}
        for kind, sort in self.kinds.items():
            if not self.weights[name].views[kind]:
                continue
            if sort == "time":
                kernels[kind] = time_kernel(self.published_days, self.published_days, self.time_scale)
                continue
            known = self.directions[kind].astype(np.float32)
            cosine = (known @ known.T).astype(np.float64)
            told = np.any(known, axis=1)
            kernels[kind] = cosine if sort == "words" else dense_kernel(cosine, told, told)
        size = (len(self.known), len(self.known))
        return joined(kernels, self.weights[name].views) if kernels else np.zeros(size)

    def _directions(
        self, facts: Submission, token_means: Mapping[str, npt.NDArray[np.floating]]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Unit vector, or zeros, of each kind that is no time."""
        raw: dict[str, npt.NDArray[np.floating]] = {
            TAGS: self.space.tag_vector(facts.tags, facts.category),
            WORDS: self.space.words.vectors([facts.text]),
            **{name: mean[None] for name, mean in token_means.items()},
        }
        found = {}
        for kind, sort in self.kinds.items():
            if sort != "time":
                vector = raw[kind]
                found[kind] = unit_rows(vector - self.means.get(kind, np.float32(0)), np.any(vector, axis=1))[0]
        return found

    def _kernels(self, facts: Submission, own: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Matrix]:
        """[1, K] of each kind."""
        kernels: dict[str, Matrix] = {}
        for kind, sort in self.kinds.items():
            if sort == "time":
                at_seconds = facts.published_at_seconds
                day = np.array([np.nan if at_seconds is None else at_seconds / 86_400])
                kernels[kind] = time_kernel(day, self.published_days, self.time_scale)
                continue
            known = self.directions[kind]
            cosine = own[kind][None] @ known.astype(np.float64).T
            told = np.array([bool(own[kind].any())])
            kernels[kind] = cosine if sort == "words" else dense_kernel(cosine, told, np.any(known, axis=1))
        return kernels

    def save(self, folder: Path) -> None:
        """Both FILES."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "known": self.known,
            "published_days": self.published_days,
            "word_weights": self.space.words.weights,
            **{f"mean.{name}": mean for name, mean in self.means.items()},
            **{f"directions.{name}": rows for name, rows in self.directions.items()},
        }
        if self.likeness.projection is not None:
            arrays["projection"] = self.likeness.projection
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(folder / FILES[0]))
        values = {
            "tags": list(self.space.tags),
            "words": list(self.space.words.column),
            "kinds": self.kinds,
            "time_scale": self.time_scale,
            "weights": {name: [w.views, w.ridge, w.error] for name, w in self.weights.items()},
            "shares": self.likeness.shares,
        }
        (folder / FILES[1]).write_text(json.dumps(values))


class SpokenFor:
    """A table of neighbours, ready to say what it would of an item that its users could not choose."""

    def __init__(self, table: ItemNeighbours, predictor: Predictor, name: str, num_neighbours: int) -> None:
        """Inverts a matrix of as many rows as there are known items: seconds for thousands."""
        size = len(table)
        said = sparse.csr_matrix((table.weights, table.items, table.starts), shape=(size, size)).tocsc()
        self._of_known = said[:, predictor.known]
        self._mean_N = np.asarray(self._of_known.mean(1)).ravel()
        kernel = predictor.known_kernel(name)
        self._inverse = inverse_of(kernel + predictor.weights[name].ridge * np.eye(len(kernel)))
        self._num_neighbours = num_neighbours

    def of(self, kernel_K: npt.NDArray[np.float64]) -> tuple[Rows, int, Matrix]:
        """Who speaks for an item that is so much like each known one, and how strongly: a column of `by_watched`."""
        share_K = kernel_K @ self._inverse
        said_N = self._of_known @ share_K + (1.0 - share_K.sum()) * self._mean_N
        return largest(said_N, -1, self._num_neighbours)


def build_predictor(
    space: ContentSpace,
    views: Sequence[ContentView],
    known: Rows,
    weights: Mapping[str, ContentWeights],
    likeness: LikenessMap,
) -> Predictor:
    """From what a bundle's tables were made of.

    Args:
        known: rows of `cold_items.known_rows`.
        weights: by the name of each table that is predicted.
    """
    times = next((view for view in views if view.kind == "time"), None)
    days = np.full(len(known), np.nan) if times is None else times.vectors[known, 0].astype(np.float64)
    return Predictor(
        space=space,
        kinds={view.name: view.kind for view in views},
        means={view.name: np.asarray(view.mean, np.float32) for view in views if view.kind == "dense"},
        known=known,
        directions={view.name: view.directions(known).astype(np.float16) for view in views if view.kind != "time"},
        published_days=days,
        time_scale=1.0 if times is None else times.time_scale,
        weights=dict(weights),
        likeness=likeness,
    )


def load_predictor(folder: Path) -> Predictor:
    """Read what `save` wrote.

    Raises:
        BundleError: a file is torn, or one does not fit the other.
    """
    try:
        arrays, values = load_file(str(folder / FILES[0])), json.loads((folder / FILES[1]).read_text())
        words = {word: place for place, word in enumerate(values["words"])}
        predictor = Predictor(
            space=ContentSpace(
                {tag: place for place, tag in enumerate(values["tags"])}, WordWeights(words, arrays["word_weights"])
            ),
            kinds=dict(values["kinds"]),
            means={n.removeprefix("mean."): a for n, a in arrays.items() if n.startswith("mean.")},
            known=arrays["known"],
            directions={n.removeprefix("directions."): a for n, a in arrays.items() if n.startswith("directions.")},
            published_days=arrays["published_days"],
            time_scale=float(values["time_scale"]),
            weights={name: ContentWeights(*value) for name, value in values["weights"].items()},
            likeness=LikenessMap(dict(values["shares"]), arrays.get("projection")),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: {FILES} cannot be read ({error}); rebuild the bundle") from error
    if not all(np.isfinite(array).all() for name, array in arrays.items() if name != "published_days"):
        raise BundleError(f"{folder / FILES[0]} holds values that are not finite; rebuild the bundle")
    return predictor
