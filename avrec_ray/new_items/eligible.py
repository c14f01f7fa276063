"""Whether a bundle can take new items in. Needs no model."""

from avrec_ray.bundle import BundleMetadata
from avrec_ray.towers.config import GIVEN
from avrec_ray.types import MODALITIES


def why_not_encodable(metadata: BundleMetadata) -> str:
    """Why a bundle cannot take new items in; "" if it can."""
    towers = metadata.towers
    if not towers.content_weight:
        return "its towers know items by their ids alone (towers.content_weight=0)"
    if all(towers.encoder_of(name) in GIVEN for name in MODALITIES):
        return "its towers read given vectors, and no media or text"
    if metadata.media is None:
        return "it does not say how media become clips; build it anew"
    return ""
