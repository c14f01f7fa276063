"""Checkpoints of `transformers` by name or folder: safetensors only, and no code of their own is run."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from avrec_ray.errors import ConfigError

_UNREAD = ("pooler.",)
"""Weights that many checkpoints leave out, and that nobody here reads."""
_PARTS = {"video": "vision_config", "audio": "audio_config", "text": "text_config"}
"""Part of the config of a checkpoint of several modalities, such as CLIP."""


def family_of(modality: str, checkpoint: str, families: Mapping[str, Any]) -> str:
    """The checkpoint's `model_type`.

    Raises:
        ConfigError: there is no such checkpoint, or it is of no known family.
    """
    found = str(read_config(modality, checkpoint).model_type)
    if found not in families:
        raise ConfigError(
            f"towers.{modality}_checkpoint={checkpoint!r} is a {found!r} model, which is not one of {sorted(families)}"
        )
    return found


@lru_cache(maxsize=16)
def read_config(modality: str, checkpoint: str) -> Any:
    """The checkpoint's config. Raises ConfigError."""
    from transformers import AutoConfig

    return from_source(modality, checkpoint, AutoConfig.from_pretrained)


def part_config(modality: str, checkpoint: str) -> Any:
    """The part of the config that says how the modality's encoder is made."""
    config = read_config(modality, checkpoint)
    return getattr(config, _PARTS[modality], None) or config


def load_model(class_name: str, modality: str, checkpoint: str, **arguments: Any) -> Any:
    """The model in float32.

    Raises:
        ConfigError: as `from_source`, or weights are missing, which transformers would replace by random ones.
    """
    import transformers

    _be_quiet()
    load = getattr(transformers, class_name).from_pretrained
    wanted = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True, **arguments}
    model, info = from_source(modality, checkpoint, load, **wanted)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(_UNREAD)):
        raise ConfigError(
            f"towers.{modality}_checkpoint={checkpoint!r} lacks {len(missing)} weights of {class_name}, such as "
            f"{missing[0]!r}; expected a complete checkpoint of that model"
        )
    return model


def _be_quiet() -> None:
    """No progress bar an actor, and no table of the weights that one half of a CLIP leaves to the other."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def from_source(modality: str, checkpoint: str, load: Callable[..., Any], **arguments: Any) -> Any:
    """What `load` makes of a checkpoint.

    Raises:
        ConfigError: a file is missing, or its weights are no safetensors.
    """
    try:
        return load(checkpoint, trust_remote_code=False, **arguments)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"towers.{modality}_checkpoint={checkpoint!r} cannot be loaded ({reason}); expected a name on the hub or "
            "an absolute folder with config.json and weights as safetensors"
        ) from error
