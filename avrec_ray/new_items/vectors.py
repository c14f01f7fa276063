"""What serving needs of one new item, and its form in the store: safetensors and JSON, no pickle.

Dimension key: D embedding, M moments, C content.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from avrec_ray.errors import BundleError
from avrec_ray.new_items.submission import Submission
from avrec_ray.towers.config import TowersConfig, moment_layout

TABLES = ("taste", "session")
"""Item-to-item tables of a bundle, as `ItemToItem` names them."""
_MAX_NORM_ERROR = 1e-3


@dataclass(eq=False)
class Predicted:
    """What one bundle's tables and content say of an item that nobody chose; of use to that bundle alone."""

    model_version: str
    content: npt.NDArray[np.float16]
    """[C], see `ContentLikeness`."""
    speakers: dict[str, tuple[list[str], npt.NDArray[np.float32]]] = field(default_factory=dict)
    """A name of TABLES to the items that speak for this one, and how strongly."""


@dataclass(eq=False)
class NewItem:
    """One item through the served item tower."""

    facts: Submission
    duration_seconds: float
    """NaN where unknown."""
    embedding: npt.NDArray[np.float32]
    """Unit [D]."""
    moments: npt.NDArray[np.float32]
    """Unit [M, D]; zero where `moment_mask` is false."""
    moment_mask: npt.NDArray[np.bool_]
    moment_spans: npt.NDArray[np.float32]
    """[M, 2] seconds."""
    predicted: Predicted | None = None

    def to_bytes(self) -> bytes:
        """Everything but `facts`."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "embedding": self.embedding,
            "moments": self.moments,
            "moment_mask": self.moment_mask.astype(np.uint8),
            "moment_spans": self.moment_spans,
            "duration_seconds": np.array([self.duration_seconds], np.float32),
        }
        notes: dict[str, str] = {}
        if self.predicted is not None:
            arrays["content"] = self.predicted.content
            notes["model_version"] = self.predicted.model_version
            for name, (item_ids, weights) in self.predicted.speakers.items():
                arrays[f"{name}_weights"], notes[f"{name}_ids"] = weights, json.dumps(item_ids)
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, notes or None)


def item_from_bytes(facts: Submission, data: bytes, towers: TowersConfig) -> NewItem:
    """What `to_bytes` wrote, checked against the towers that serve it.

    Raises:
        BundleError: torn, of other shapes, not finite, or no unit vector.
    """
    try:
        arrays, notes = load(data), _notes(data)
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"vectors of new item {facts.item_id!r} cannot be read ({error}); submit it again") from error
    dim, num_moments = towers.embedding_dim, len(moment_layout(towers.max_clips))
    shapes = {
        "embedding": (dim,), "moments": (num_moments, dim), "moment_mask": (num_moments,),
        "moment_spans": (num_moments, 2), "duration_seconds": (1,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else "nothing"
            raise BundleError(f"new item {facts.item_id!r}: {name} is {found}, expected {shape}; submit it again")
    if not all(np.isfinite(arrays[name]).all() for name in ("embedding", "moments", "moment_spans")):
        raise BundleError(f"new item {facts.item_id!r}: vectors are not finite; submit it again")
    if abs(float(np.linalg.norm(arrays["embedding"])) - 1) > _MAX_NORM_ERROR:
        raise BundleError(f"new item {facts.item_id!r}: its embedding has not length 1; submit it again")
    predicted = None
    if "model_version" in notes:
        speakers = {
            name: (list(json.loads(notes[f"{name}_ids"])), arrays[f"{name}_weights"])
            for name in TABLES
            if f"{name}_ids" in notes
        }
        predicted = Predicted(notes["model_version"], arrays["content"], speakers)
    return NewItem(
        facts=facts,
        duration_seconds=float(arrays["duration_seconds"][0]),
        embedding=arrays["embedding"],
        moments=arrays["moments"],
        moment_mask=arrays["moment_mask"].astype(bool),
        moment_spans=arrays["moment_spans"],
        predicted=predicted,
    )


def _notes(data: bytes) -> dict[str, str]:
    """The texts in a safetensors header; `load` has checked it."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
