"""An item's media to its clips: gate or fetch, decode in the child, log-mel here."""

import time
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import torch

from avrec_ray.errors import MediaError
from avrec_ray.media.child import DEFAULT_DECODER, DecodeProcess
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.confine import Layers
from avrec_ray.media.extract import Extract
from avrec_ray.media.fetch import fetch_media, scheme_of
from avrec_ray.media.file_report import FileReport
from avrec_ray.media.front_ends import features
from avrec_ray.media.gate import kind_of, open_media
from avrec_ray.media.unchanged import check_times, check_unchanged, snapshot
from avrec_ray.types import Clip

_LEAST_RETRY_SECONDS = 0.1


class ItemDecoder:
    """Decodes one item after another with a child process that is kept. Close it, or use it in a with statement."""

    def __init__(self, cfg: MediaConfig, decoder: str = DEFAULT_DECODER) -> None:
        self.cfg = cfg
        self._process = DecodeProcess(cfg, decoder)
        self._decoder = decoder

    def __enter__(self) -> "ItemDecoder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    @property
    def layers(self) -> Layers:
        """The layers of the sandbox that the child has. Raises StageError when it cannot be started."""
        return self._process.layers

    @property
    def sandbox(self) -> str:
        """The layers as text; "" while no file has needed a child."""
        return self._process.sandbox

    def decode(self, item_id: str, path: str, draw: int | None = None) -> list[Clip]:
        """Clips of the file at `path`: an absolute local path, or a URL where `cfg.remote_schemes` has its scheme.

        At least one clip, at most `cfg.max_clips`; with a `draw` (0 to 2**64 - 1) one random clip.

        Raises:
            MediaError: the reason to set the item aside for, a key of types.QUARANTINE_REASONS.
        """
        return to_clips(item_id, *self.extract(path, draw), self.cfg)

    def extract(self, path: str, draw: int | None = None) -> tuple[Extract, str]:
        """What the child decodes of a file, and the file's sha256: all of `decode` but the features of the sound.

        Raises as `decode` does.
        """
        with open_item(path, self.cfg) as file:
            kind_of(file)  # text under a media name does not get as far as a decoder
            before = snapshot(file)
            try:
                extract = self._extract(file, draw)
            except MediaError:
                check_times(file, before)  # half a file that is still being written is not a broken one
                raise
            return extract, check_unchanged(file, before)

    def report(self, path: str) -> FileReport:
        """What a probe finds in the file, without decoding. Raises as `decode` does."""
        with open_item(path, self.cfg) as file:
            kind_of(file)
            return self._process.report(file)

    def _extract(self, file: BinaryIO, draw: int | None) -> Extract:
        """decord 0.6 aborts on some damaged mp4 that PyAV reads: after a crash, once more without decord.

        Both tries together have `cfg.timeout_seconds`.
        """
        began = time.monotonic()
        try:
            return self._process.extract(file, draw)
        except MediaError as error:
            left = self.cfg.timeout_seconds - (time.monotonic() - began)
            if error.reason != "crashed" or self.cfg.decoder != "auto" or left < _LEAST_RETRY_SECONDS:
                raise
        cfg = replace(self.cfg, decoder="pyav", timeout_seconds=left)
        with DecodeProcess(cfg, self._decoder) as process:
            return process.extract(file, draw)


def open_item(uri: str, cfg: MediaConfig) -> BinaryIO:
    """The media of an item as an open local file: fetched where the URI has a scheme of `cfg.remote_schemes`.

    Raises:
        MediaError: as `gate.open_media` and `fetch.fetch_media`.
    """
    return fetch_media(uri, cfg) if scheme_of(uri) in cfg.remote_schemes else open_media(uri, cfg)


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


def to_clips(item_id: str, extract: Extract, digest: str, cfg: MediaConfig) -> list[Clip]:
    """Clips of an item from what was decoded of its file; computes the log-mel."""
    count = len(extract.spans)
    frames = extract.frames if extract.frames is not None else np.zeros((count, *cfg.frames_shape), np.uint8)
    mels = np.zeros((count, *cfg.log_mel_shape), np.float32)
    if extract.waveforms is not None:
        computed = features(torch.from_numpy(extract.waveforms), cfg).numpy()
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
