"""What matrix products are computed in, and the scaling of gradients that float16 needs."""

from contextlib import AbstractContextManager

import torch

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` as float32 or bfloat16, by what the device can; other values as they are.

    >>> resolve_precision("auto", torch.device("cpu"))
    'float32'
    """
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Around a forward pass. With float32 it does nothing."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales float16's loss so that small gradients do not vanish; without effect for the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
