"""Blocks of a manifest to parts on disk: what each decode actor does. Knows no Ray."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from avrec_ray.errors import StageError
from avrec_ray.media.clips import clip_columns, clips_table
from avrec_ray.media.decode import text_only_clip
from avrec_ray.media.decode_clips import DecodeClips, split_rows
from avrec_ray.pipelines.decode_parts import DecodeParts, Tally, reasons_of
from avrec_ray.types import QUARANTINE


class DecodeBlocks:
    """Numbers of blocks to parts in `folder`. One thread, and one child process from the first file on."""

    def __init__(self, folder: str, run: str, config: Mapping[str, Any], decoder: str) -> None:
        torch.set_num_threads(1)
        self.parts = DecodeParts(Path(folder), run)
        self.decode = DecodeClips(config, decoder)
        self._blank: pa.Table | None = None
        # What is loaded by now stays. Looking through it for garbage, over and over, costs a Ray worker a few percent.
        gc.collect()
        gc.freeze()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`block` int64 [B] to `items`, `reasons` (a JSON object of counts), `error` (any but "" ends the run) and
        `sandbox` (its layers, "" until a file was decoded).

        The block is on disk then: what flows on is small, whatever the clips weigh. An error is told, not raised: Ray
        would wrap it until nobody can read it.
        """
        tallies, errors = [], []
        for block in batch["block"]:
            try:
                tally, error = self.write_block(int(block)), ""
            except StageError as caught:
                tally, error = Tally(0, 0, {}, {}), str(caught)
            tallies.append(tally)
            errors.append(error)
        return {
            "items": np.array([tally.items for tally in tallies], np.int64),
            "reasons": np.array([json.dumps(tally.reasons) for tally in tallies], object),
            "error": np.array(errors, object),
            "sandbox": np.array([self.decode.decoder.sandbox] * len(errors), object),
        }

    def write_block(self, block: int) -> Tally:
        """Decode the items of one block and write its part."""
        self.parts.begin(block)
        items = self.parts.read_items(block)
        if not any(items["media_uri"].to_pylist()):
            return self.parts.write(block, self._text_only(items["item_id"]), QUARANTINE.empty_table(), {})
        rows = self.decode({name: np.array(items[name].to_pylist(), object) for name in ("item_id", "media_uri")})
        clips, aside = split_rows(rows)
        return self.parts.write(block, clips, aside, reasons_of(aside))

    def _text_only(self, item_ids: pa.Array) -> pa.Table:
        """Clips of items without media. They differ in their ids alone, so the zeros are made once for all blocks."""
        if self._blank is None or self._blank.num_rows < len(item_ids):
            self._blank = clips_table(clip_columns([text_only_clip("", self.decode.cfg)] * len(item_ids)))
        blank = self._blank.slice(0, len(item_ids))
        return blank.set_column(0, blank.schema.field("item_id"), item_ids)
