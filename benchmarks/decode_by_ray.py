"""What a user of Ray Data alone writes to get 8 frames and a log-mel of each clip."""

from typing import Any

import numpy as np
import scipy.signal
import torch

from avrec_ray.media.log_mel import log_mel
from benchmarks.decode import CFG
from benchmarks.render_clips import FPS, RATE_HZ

Batch = dict[str, Any]
WANTED = ((np.arange(CFG.num_frames) + 0.5) / CFG.num_frames * CFG.clip_seconds * FPS).astype(int)


def keep_wanted(batch: Batch) -> Batch:
    """The frames at the middles of equal parts."""
    rows = np.isin(batch["frame_index"], WANTED)
    return {name: values[rows] for name, values in batch.items()}


def stack_frames(group: Batch) -> Batch:
    """Rows of one path to one row [T, H, W, 3]."""
    order = np.argsort(group["frame_index"])
    return {"path": group["path"][:1], "frames": group["frame"][order][None]}


def log_mels(batch: Batch) -> Batch:
    """Mono sound to a log-mel at 16 kHz."""
    torch.set_num_threads(1)
    size = CFG.num_samples
    mono = [np.asarray(sound).reshape(-1, np.asarray(sound).shape[-1]).mean(0) for sound in batch["amplitude"]]
    down = [scipy.signal.resample_poly(sound, CFG.sample_rate_hz, RATE_HZ)[:size] for sound in mono]
    waves = torch.from_numpy(np.stack([np.pad(sound, (0, size - len(sound))) for sound in down]).astype(np.float32))
    return {"path": batch["path"], "log_mel": log_mel(waves, CFG.num_mel_bins, CFG.sample_rate_hz).numpy()}
