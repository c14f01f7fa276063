"""Pretrained encoders: frozen ones load when first asked, the others train in part, with low-rank matrices, or whole.

None ever leaves evaluation mode: no dropout and no statistics of a batch, so a row never depends on the others, and
what training sees is what serving sees. Weights and statistics of batch normalisation stay as they are in every mode.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.towers.config import TowersConfig

LoadEncoder = Callable[[], nn.Module]
"""Loads an encoder with its weights; its backbone is the attribute `model`, its tokens have the attribute `width`."""

_ATTENTION = ("q_proj", "v_proj", "query", "value")
"""Names of the linear layers that low-rank matrices go beside: queries and values, as Hu et al. 2021 chose."""


class FrozenEncoder(nn.Module):
    """An encoder without parameters of its own for optimisers, checkpoints and bundles: its weights are the source's.

    Towers that read cached tokens never run it, and so never load it.
    """

    def __init__(self, load: LoadEncoder, modality: str, width: int) -> None:
        super().__init__()
        self._load, self._modality, self._width = load, modality, width
        self._loaded: list[nn.Module] = []  # a list hides it from state_dict(), parameters() and train()

    def forward(self, values: Tensor) -> Tensor:
        with torch.no_grad():
            tokens: Tensor = self.loaded(values.device)(values)
        return tokens

    def loaded(self, device: torch.device) -> nn.Module:
        """The encoder on `device`."""
        if not self._loaded:
            with torch.inference_mode(False):
                encoder = self._load()
                check_width(encoder, self._modality, self._width)
                self._loaded.append(encoder.requires_grad_(False).eval())
        return self._loaded[0].to(device)


class TunedEncoder(nn.Module):
    """An encoder of which pretraining changes what the mode says; all of its weights go into checkpoints."""

    def __init__(self, encoder: nn.Module, mode: str, cfg: TowersConfig) -> None:
        super().__init__()
        backbone = encoder.get_submodule("model")
        if mode == "lora":
            add_low_rank(backbone, cfg.lora_rank)
        names = TRAINED[mode](backbone, cfg)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in names)
        self.encoder = encoder
        self.train(False)

    def train(self, mode: bool = True) -> "TunedEncoder":
        """Stays in evaluation mode; `mode` changes nothing."""
        super().train(False)
        return self

    def forward(self, values: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(values)
        return tokens


def pretrained(load: LoadEncoder, modality: str, cfg: TowersConfig) -> nn.Module:
    """The encoder as the modality's mode wants it."""
    mode, width = cfg.mode_of(modality), int(getattr(cfg, f"{modality}_width"))
    if mode == "frozen":
        return FrozenEncoder(load, modality, width)
    encoder = load()
    check_width(encoder, modality, width)
    return TunedEncoder(encoder, mode, cfg)


def check_width(encoder: nn.Module, modality: str, width: int) -> None:
    """Raise ConfigError where the config, say of a bundle, is for a checkpoint of another width; 0 says nothing."""
    if width not in (0, encoder.width):
        raise ConfigError(
            f"towers.{modality}_width={width}, but the checkpoint's tokens have {encoder.width}; it is another one "
            "than these towers were made with, or leave the width at 0"
        )


def add_low_rank(backbone: nn.Module, rank: int) -> None:
    """Put low-rank matrices (Hu et al. 2021), which start at zero effect, beside the attention's queries and values.

    Raises:
        ConfigError: the backbone has none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rsplit(".", 1)[-1] for name, part in backbone.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted(names & set(_ATTENTION))
    if not targets:
        raise ConfigError(
            f"mode lora: {type(backbone).__name__} has no linear layer {list(_ATTENTION)}; choose top or full"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), backbone)


def _low_rank_names(backbone: nn.Module, cfg: TowersConfig) -> set[str]:
    return {name for name, _ in backbone.named_parameters() if ".lora_" in name}


def _all_names(backbone: nn.Module, cfg: TowersConfig) -> set[str]:
    """All that the checkpoint's authors trained: Whisper's sinusoids, say, are fixed."""
    fixed = batch_norm_names(backbone)
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad and name not in fixed}


def _top_names(backbone: nn.Module, cfg: TowersConfig) -> set[str]:
    """The last blocks, and what is defined behind them: final norms, pooling heads."""
    lists = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)]
    # The outermost list with most weights: a stage's blocks lie inside it, and are smaller.
    name, blocks = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
    first = max(0, len(blocks) - cfg.top_blocks)
    below = tuple(f"{name}.{index}." for index in range(first))
    ordered = [key for key, _ in backbone.named_parameters()]
    start = next(place for place, key in enumerate(ordered) if key.startswith(f"{name}.{first}."))
    return {key for key in ordered[start:] if not key.startswith(below)} - batch_norm_names(backbone)


def batch_norm_names(backbone: nn.Module) -> set[str]:
    """Parameters of batch normalisation."""
    return {
        f"{name}.{key}"
        for name, part in backbone.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for key, _ in part.named_parameters(recurse=False)
    }


TRAINED: dict[str, Callable[[nn.Module, TowersConfig], set[str]]] = {
    "top": _top_names,
    "lora": _low_rank_names,
    "full": _all_names,
}
"""Mode -> names of the parameters that train."""
