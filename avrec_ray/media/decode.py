"""An item's media to its clips: gate, decode in the child, log-mel here."""

import hashlib
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import torch

from avrec_ray.errors import MediaError
from avrec_ray.media.child import DEFAULT_DECODER, DecodeProcess
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract
from avrec_ray.media.gate import kind_of, open_media
from avrec_ray.media.log_mel import log_mel
from avrec_ray.types import Clip


class ItemDecoder:
    """Decodes one item after another with a child process that is kept. Close it, or use it in a with statement."""

    def __init__(self, cfg: MediaConfig, decoder: str = DEFAULT_DECODER) -> None:
        self.cfg = cfg
        self._process = DecodeProcess(cfg, decoder)
        self._retry_cfg = replace(cfg, decoder="pyav")
        self._retry_decoder = decoder

    def __enter__(self) -> "ItemDecoder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    def decode(self, item_id: str, path: str) -> list[Clip]:
        """Clips of the file at `path`, an absolute local path: at least one, at most `cfg.max_clips`.

        Raises:
            MediaError: the reason to set the item aside for, a key of types.QUARANTINE_REASONS.
        """
        with open_media(path, self.cfg) as file:
            kind_of(file)  # text under a media name does not get as far as a decoder
            extract = self._extract(file)
            digest = _sha256(file)
        return _to_clips(item_id, extract, digest, self.cfg)

    def _extract(self, file: BinaryIO) -> Extract:
        """decord 0.6 aborts on some damaged mp4 that PyAV reads: after a crash, once more without decord."""
        try:
            return self._process.extract(file)
        except MediaError as error:
            if error.reason != "crashed" or self.cfg.decoder != "auto":
                raise
        with DecodeProcess(self._retry_cfg, self._retry_decoder) as process:
            return process.extract(file)


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def decode_item(item_id: str, path: str, cfg: MediaConfig) -> list[Clip]:
    """Clips of one file, with a child process of its own; for many files keep an `ItemDecoder`.

    Raises:
        MediaError: the reason to set the item aside for.
    """
    with ItemDecoder(cfg) as decoder:
        return decoder.decode(item_id, path)


def text_only_clip(item_id: str, cfg: MediaConfig) -> Clip:
    """The clip of an item without media: both flags false, arrays zero."""
    return Clip(
        item_id=item_id,
        clip_idx=0,
        start_seconds=0.0,
        end_seconds=0.0,
        frames=np.zeros(cfg.frames_shape, np.uint8),
        log_mel=np.zeros(cfg.log_mel_shape, np.float32),
        has_video=False,
        has_audio=False,
        decoder="",
        media_sha256="",
    )


def _to_clips(item_id: str, extract: Extract, digest: str, cfg: MediaConfig) -> list[Clip]:
    count = len(extract.spans)
    frames = extract.frames if extract.frames is not None else np.zeros((count, *cfg.frames_shape), np.uint8)
    mels = np.zeros((count, *cfg.log_mel_shape), np.float32)
    if extract.waveforms is not None:
        computed = log_mel(torch.from_numpy(extract.waveforms), cfg.num_mel_bins, cfg.sample_rate_hz).numpy()
        mels[extract.has_audio] = computed[extract.has_audio]
    return [
        Clip(
            item_id=item_id,
            clip_idx=row,
            start_seconds=extract.spans[row][0],
            end_seconds=extract.spans[row][1],
            frames=frames[row],
            log_mel=mels[row],
            has_video=extract.frames is not None,
            has_audio=extract.has_audio[row],
            decoder=extract.decoder,
            media_sha256=digest,
        )
        for row in range(count)
    ]
