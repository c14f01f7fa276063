"""A text as a point among the items: read by the bundle's text encoder, fused as an item that has nothing but text.

Dimension key: B texts, K tokens, W the encoder's width, D embedding.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avrec_ray.bundle import Bundle
from avrec_ray.errors import AvrecError
from avrec_ray.media.text import clean_text
from avrec_ray.towers.config import GIVEN
from avrec_ray.towers.encoder_registry import build_encoder
from avrec_ray.towers.item_tower import ItemTokens, token_shapes
from avrec_ray.towers.text_ids import text_ids
from avrec_ray.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_PREFIX = "encoders.text."


class TextQueries:
    """The text encoder that the embeddings of a bundle were made with."""

    def __init__(self, bundle: Bundle, towers: TwoTower) -> None:
        """Weights from scratch lie in the bundle, tuned ones too; frozen ones come from their package or checkpoint.

        Where the towers read no words, or the weights cannot be had here, `encoder` is None, and a log line says why.
        """
        self.towers = towers
        self.encoder = _text_encoder(bundle, towers)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Unit vectors [B, D], and which texts held a word at all.

        Raises:
            ValueError: the bundle has no text encoder.
        """
        if self.encoder is None:
            raise ValueError("this bundle cannot encode text; look at `encoder` first")
        words = torch.from_numpy(text_ids([clean_text(text) for text in texts], self.towers.cfg))
        tokens_BKW = self.encoder(words)
        items = _text_alone(tokens_BKW, (words > 0).any(1), token_shapes(self.towers.cfg))
        return self.towers.item.fuse(items).numpy(), items.masks["text"].any(1).numpy()


def _text_alone(tokens_BKW: Tensor, written_B: Tensor, shapes: dict[str, tuple[int, int]]) -> ItemTokens:
    """Items with the tokens of their text, and neither picture nor sound."""
    tokens = {name: tokens_BKW.new_zeros(len(tokens_BKW), *shape) for name, shape in shapes.items()}
    masks = {name: torch.zeros(value.shape[:2], dtype=torch.bool) for name, value in tokens.items()}
    tokens["text"] = tokens_BKW
    masks["text"] = written_B[:, None].repeat(1, tokens_BKW.shape[1])
    return ItemTokens(tokens, masks)


def _text_encoder(bundle: Bundle, towers: TwoTower) -> nn.Module | None:
    cfg = bundle.metadata.towers
    if cfg.text_encoder in GIVEN:
        return None
    if cfg.text_encoder == "scratch":
        return towers.item.encoders.get_submodule("text")
    try:
        encoder = build_encoder("text", cfg)
        if "text" in cfg.tuned:
            stored = load_file(str(bundle.path / "item_tower.safetensors"))
            own = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
            encoder.load_state_dict(own)
        encoder.eval()
        encoder(torch.from_numpy(text_ids(["a text"], cfg)))  # frozen encoders load when they are first asked
    except (AvrecError, OSError, RuntimeError, ValueError) as error:
        logger.warning("text cannot be encoded here, search is by words alone: %s", error)
        return None
    return encoder
