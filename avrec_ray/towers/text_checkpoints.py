"""Pretrained text encoders: one token a text, as its checkpoint was trained to sum a text up.

Ids are the tokenizer's plus one, so that 0 is padding here as everywhere.

Dimension key: B batch, S ids of a text, W the encoder's width.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.towers.checkpoints import family_of, from_source, load_model, part_config
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.offline import minilm_folder
from avrec_ray.towers.pretrained import pretrained

Pool = Callable[[Tensor, Tensor], Tensor]
"""(states [B, S, W], presence bool [B, S]) -> [B, W]."""


def mean_of_words(states_BSW: Tensor, present_BS: Tensor) -> Tensor:
    """The mean over what is there, as sentence transformers and E5 are trained."""
    weight_BS1 = present_BS.unsqueeze(2).to(states_BSW.dtype)
    return (states_BSW * weight_BS1).sum(1) / weight_BS1.sum(1).clamp(min=1)


def last_word(states_BSW: Tensor, present_BS: Tensor) -> Tensor:
    """The state of the last id, the end mark, which has seen all before it: CLIP."""
    places = torch.arange(present_BS.shape[1], device=present_BS.device)
    last_B = (present_BS * places).amax(1)
    return states_BSW[torch.arange(len(states_BSW), device=last_B.device), last_B]


FAMILIES: dict[str, tuple[str, Pool]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "mpnet", "distilbert"), ("AutoModel", mean_of_words)),
    **dict.fromkeys(("clip", "clip_text_model"), ("CLIPTextModel", last_word)),
}
"""`model_type` -> class of transformers, and how a text is summed up."""


class TextCheckpoint(nn.Module):
    """Ids int64 [B, S] (0 is padding) to one token [B, 1, W]; zeros for a text without ids."""

    def __init__(self, model: Any, pool: Pool, pad_id: int) -> None:
        super().__init__()
        self.model, self.pool, self.pad_id = model, pool, pad_id
        self.width = int(model.config.hidden_size)

    def forward(self, word_ids: Tensor) -> Tensor:
        present_BS = word_ids > 0
        longest = max(
            1, int((present_BS.any(0) * torch.arange(1, len(present_BS[0]) + 1, device=word_ids.device)).max())
        )
        word_ids, present_BS = word_ids[:, :longest], present_BS[:, :longest]  # what is padding in all rows costs time
        ids_BS = torch.where(present_BS, word_ids - 1, self.pad_id)
        # A text without ids looks at its first slot, lest a softmax over nothing give NaN; it is zeroed below.
        seen_BS = present_BS.clone()
        seen_BS[:, 0] |= ~present_BS.any(1)
        states_BSW = self.model(input_ids=ids_BS, attention_mask=seen_BS.long()).last_hidden_state
        summed_BW: Tensor = self.pool(states_BSW, present_BS) * present_BS.any(1, keepdim=True)
        return summed_BW.unsqueeze(1)


def build_text(cfg: TowersConfig) -> nn.Module:
    """The encoder of `text_checkpoint`, or of the package of MiniLM."""
    return pretrained(partial(_load, cfg), "text", cfg)


def text_width(cfg: TowersConfig) -> int:
    """W, from the checkpoint's config alone."""
    return cfg.text_width or int(part_config("text", checkpoint_of(cfg)).hidden_size)


def checkpoint_of(cfg: TowersConfig) -> str:
    """Name or folder of the text checkpoint."""
    return minilm_folder() if cfg.text_encoder == "minilm" else cfg.text_checkpoint


def tokenize(texts: Sequence[str], cfg: TowersConfig) -> npt.NDArray[np.int64]:
    """Ids [len(texts), max_text_tokens] by the checkpoint's own tokenizer, plus one; an empty text has none."""
    ids = np.zeros((len(texts), cfg.max_text_tokens), np.int64)
    written = [row for row, text in enumerate(texts) if text.strip()]
    if written:
        given = [cfg.text_prefix + texts[row] for row in written]
        found = _tokenizer(checkpoint_of(cfg))(given, truncation=True, max_length=cfg.max_text_tokens)["input_ids"]
        for row, mine in zip(written, found, strict=True):
            ids[row, : len(mine)] = np.array(mine, np.int64) + 1
    return ids


@lru_cache(maxsize=4)
def _tokenizer(checkpoint: str) -> Any:
    from transformers import AutoTokenizer

    return from_source("text", checkpoint, AutoTokenizer.from_pretrained)


def _load(cfg: TowersConfig) -> TextCheckpoint:
    checkpoint = checkpoint_of(cfg)
    class_name, pool = FAMILIES[family_of("text", checkpoint, FAMILIES)]
    config = part_config("text", checkpoint)
    longest = config.max_position_embeddings
    if cfg.max_text_tokens > longest:
        raise ConfigError(f"towers.max_text_tokens={cfg.max_text_tokens}, but {checkpoint!r} reads {longest} at most")
    # BERT's pooling layer is not read, and would be trained for nothing.
    model = load_model(class_name, "text", checkpoint)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return TextCheckpoint(model, pool, int(config.pad_token_id or 0))
