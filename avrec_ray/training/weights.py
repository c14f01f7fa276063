"""A module's weights as one safetensors file. Whole modules only; those of a sharded training are in its checkpoint.

Serving reads weights, too: this knows nothing of distributed training, which takes half a second to import.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avrec_ray.errors import CheckpointError


def save_weights(path: Path, module: nn.Module) -> None:
    """The module's state as one safetensors file."""
    copies = {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
    save_file({name: value.contiguous() for name, value in copies.items()}, str(path))  # none share their memory


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a file of `save_weights`; every name and shape must match.

    Raises:
        CheckpointError: as `read_weights`.
    """
    module.load_state_dict(read_weights(path, module))


def read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file that is to be loaded into `module`.

    Raises:
        CheckpointError: there is no such file, it is torn, or naming the first tensor that is missing, unknown or of
            another shape.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; run the stage that writes them first")
    try:
        stored, wanted = load_file(str(path)), module.state_dict()
    except SafetensorError as error:
        raise CheckpointError(f"{path} is torn or no safetensors file ({error}); run the stage again") from error
    for name in sorted(set(stored) ^ set(wanted)):
        where = "file" if name in stored else "model"
        raise CheckpointError(f"{path.name}: tensor {name!r} is only in the {where}; model and config differ")
    for name, value in wanted.items():
        if stored[name].shape != value.shape:
            raise CheckpointError(
                f"{path.name}: tensor {name!r} has shape {tuple(stored[name].shape)}, expected {tuple(value.shape)}"
            )
    return stored
