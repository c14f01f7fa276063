"""Texts to what the text encoder of a config reads: hashed words, or ids by the tokenizer of its checkpoint."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.towers.config import GIVEN, TowersConfig
from avrec_ray.towers.text_checkpoints import tokenize
from avrec_ray.towers.text_tokens import hash_tokens


def text_ids(texts: Sequence[str], cfg: TowersConfig) -> npt.NDArray[np.int64]:
    """Ids int64 [len(texts), max_text_tokens], 0 is padding; zeros where no encoder reads text."""
    if cfg.text_encoder in GIVEN:
        return np.zeros((len(texts), cfg.max_text_tokens), np.int64)
    if cfg.text_encoder == "scratch":
        return hash_tokens(texts, cfg.num_text_buckets, cfg.max_text_tokens)
    return tokenize(texts, cfg)
