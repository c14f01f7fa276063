"""A still picture as a one-frame video."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import one_line

IMAGE_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Kinds that Pillow reads. Of an animated png or webp, the first frame."""


def read_image(file: BinaryIO, kind: str, cfg: MediaConfig) -> tuple[npt.NDArray[np.uint8], str]:
    """The whole picture squeezed into RGB uint8 [H, W, 3], turned as its EXIF says, and who decoded it.

    The declared size is checked before anything is decoded: a 700 kB PNG can unpack to gigabytes.

    Raises:
        MediaError: too_large, truncated or corrupt.
    """
    try:
        with _opened(file, kind, cfg) as image:
            upright = ImageOps.exif_transpose(image)
            small = upright.convert("RGB").resize((cfg.frame_size, cfg.frame_size), Image.Resampling.BILINEAR)
            return np.asarray(small, np.uint8), f"pillow {PIL.__version__}"
    except UnidentifiedImageError as error:
        raise MediaError("corrupt", f"the {kind} picture does not open") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise MediaError(reason, f"the {kind} picture cannot be decoded: {one_line(error)}") from error


def read_size(file: BinaryIO, kind: str, cfg: MediaConfig) -> tuple[int, int]:
    """Width and height as declared. Raises MediaError: too_large or corrupt."""
    try:
        with _opened(file, kind, cfg) as image:
            return image.width, image.height
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError("corrupt", f"the {kind} picture does not open: {one_line(error)}") from error


@contextmanager
def _opened(file: BinaryIO, kind: str, cfg: MediaConfig) -> Iterator[Image.Image]:
    """The picture, not decoded yet, of a declared size within the limit."""
    file.seek(0)
    # Our own limit stands; Pillow's would warn below it and raise at twice that.
    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings(), Image.open(file, formats=[IMAGE_FORMATS[kind]]) as image:
        warnings.simplefilter("ignore")
        if image.width * image.height > cfg.max_pixels:
            raise MediaError("too_large", f"{image.width} x {image.height} pixels, media.max_pixels={cfg.max_pixels}")
        yield image
