"""Media to one clip an item, for training straight from the files: a callable that any executor can run; no Ray."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import MediaError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, text_only_clip
from avrec_ray.types import Clip

NO_DRAW = -1
"""In the column `draw`: take the clip `clip_idx` of those that decode_media makes."""


class DecodeDraws:
    """Callable: columns order, item_id, media_uri, draw, clip_idx -> one row an item, in the same order.

    Rows hold order, frames, log_mel, has_video, has_audio, and for an item that cannot be decoded a `reason` ("" for a
    clip) and a `detail`; such a row's arrays are zero and its flags false, so that every batch keeps its size.
    """

    def __init__(self, config: Mapping[str, Any], decoder: str = DEFAULT_DECODER) -> None:
        self.cfg = from_dict(MediaConfig, config)
        self.decoder = ItemDecoder(self.cfg, decoder)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        columns = (batch[name] for name in ("item_id", "media_uri", "draw", "clip_idx"))
        found = [
            self._decode(str(item_id), str(uri), int(draw), int(clip_idx))
            for item_id, uri, draw, clip_idx in zip(*columns, strict=True)
        ]
        clips = [clip for clip, _, _ in found]
        return {
            "order": np.asarray(batch["order"], np.int64),
            "frames": np.stack([clip.frames for clip in clips]),
            "log_mel": np.stack([clip.log_mel for clip in clips]),
            "has_video": np.array([clip.has_video for clip in clips]),
            "has_audio": np.array([clip.has_audio for clip in clips]),
            "reason": np.array([reason for _, reason, _ in found], object),
            "detail": np.array([detail for _, _, detail in found], object),
        }

    def _decode(self, item_id: str, uri: str, draw: int, clip_idx: int) -> tuple[Clip, str, str]:
        try:
            clips = self._clips(item_id, uri, None if draw == NO_DRAW else draw)
        except MediaError as error:
            return text_only_clip(item_id, self.cfg), error.reason, error.detail
        if draw != NO_DRAW:
            return clips[0], "", ""
        if clip_idx >= len(clips):
            detail = f"holds {len(clips)} clips now, decode_media found clip {clip_idx}; run jobs.decode_media"
            return text_only_clip(item_id, self.cfg), "corrupt", detail
        return clips[clip_idx], "", ""

    def _clips(self, item_id: str, uri: str, draw: int | None) -> list[Clip]:
        """The media were decoded before: if the process dies now, something else may have killed it, so once more."""
        try:
            return self.decoder.decode(item_id, uri, draw=draw)
        except MediaError as error:
            if error.reason != "crashed":
                raise
        return self.decoder.decode(item_id, uri, draw=draw)
