"""Decoders that misbehave, named to the decoding process by their import path."""

import os
import time
from typing import BinaryIO

import numpy as np

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, extract


def by_content(file: BinaryIO, cfg: MediaConfig) -> Extract:
    """Do what the word behind the magic bytes of the file says."""
    word = file.read(64).removeprefix(b"OggS").decode()
    if word == "abort":
        os.abort()
    if word == "exit":
        os._exit(3)
    if word == "spin":
        while True:
            pass
    if word == "fork":
        if os.fork() == 0:
            time.sleep(600)
        time.sleep(600)
    if word == "eat":
        np.ones(cfg.max_memory_bytes, np.uint8)
    if word == "raise":
        raise RuntimeError("a defect of the decoder")
    if word == "refuse":
        raise MediaError("unsupported", "on purpose")
    if word == "clips":
        return Extract([(0.0, 1.0)] * (cfg.max_clips + 1), None, None, [False] * (cfg.max_clips + 1), "hostile")
    if word == "shape":
        return Extract([(0.0, 1.0)], np.zeros(7, np.uint8), None, [False], "hostile")
    frames = np.full((1, *cfg.frames_shape), ord(word[0]), np.uint8)
    return Extract([(0.0, 1.0)], frames, np.ones((1, cfg.num_samples), np.float32), [True], "hostile 1")


def extract_or_misbehave(file: BinaryIO, cfg: MediaConfig) -> Extract:
    """The real decoder, but for files that name a misdeed."""
    head = file.read(20)
    file.seek(0)
    return by_content(file, cfg) if head in (b"OggSspin", b"OggSabort") else extract(file, cfg)


def environment(file: BinaryIO, cfg: MediaConfig) -> Extract:
    """Tell the names of the environment and of the modules that matter, as the decoder's name."""
    import sys

    loaded = [name for name in ("torch", "ray", "pyarrow") if name in sys.modules]
    names = ",".join(sorted(os.environ))
    return Extract([(0.0, 0.0)], np.zeros((1, *cfg.frames_shape), np.uint8), None, [False], f"{loaded} {names}")


def abort_unless_pyav(file: BinaryIO, cfg: MediaConfig) -> Extract:
    """What decord does to some files."""
    if cfg.decoder != "pyav":
        os.abort()
    return by_content(file, cfg)
