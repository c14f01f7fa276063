"""Clips to decode: 320 x 240, 25 frames a second, h264 and aac in mp4, of a texture that pans under a moving square."""

import shutil
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.types import check_items

WIDTH, HEIGHT, FPS, RATE_HZ = 320, 240, 25, 44_100


def render_clips(folder: Path, count: int, seconds: float, gop: int = 250, distinct: int = 8) -> list[Path]:
    """`count` files, of which `distinct` differ and the others are copies: each is read and decoded all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip{number:05d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if number < distinct:
            _render(path, seconds, gop, np.random.default_rng(number))
        else:
            shutil.copy(paths[number % distinct], path)
    return paths


def write_items(path: Path, uris: list[Path], copies: int = 1) -> Path:
    """An items table of the files, each named `copies` times."""
    named = [str(uri) for _ in range(copies) for uri in uris]
    ids = [f"item{number:06d}" for number in range(len(named))]
    pq.write_table(check_items(pa.table({"item_id": ids, "media_uri": named, "title": ids})), path)
    return path


def write_wavs(paths: list[Path], folder: Path) -> list[Path]:
    """The sound of each file as wav, for readers that know no mp4."""
    folder.mkdir(exist_ok=True)
    wavs = []
    for path in paths:
        wavs.append(folder / f"{path.stem}.wav")
        with av.open(str(path)) as old, av.open(str(wavs[-1]), "w") as new:
            stream = new.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
            resampler = av.AudioResampler("s16", "mono", RATE_HZ)
            for frame in old.decode(audio=0):
                for resampled in resampler.resample(frame):
                    new.mux(stream.encode(resampled))
            new.mux(stream.encode(None))
    return wavs


def _render(path: Path, seconds: float, gop: int, rng: np.random.Generator) -> None:
    texture = np.kron(rng.integers(0, 256, (60, 80, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"g": str(gop), "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for number in range(round(seconds * FPS)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(_picture(texture, number, rng), format="rgb24")))
        container.mux(video.encode(None))
        sound = _sound(seconds, rng)
        for start in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def _picture(texture: npt.NDArray[np.uint8], number: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    top, left = 2 * number % (texture.shape[0] - HEIGHT), 3 * number % (texture.shape[1] - WIDTH)
    picture = texture[top : top + HEIGHT, left : left + WIDTH].copy()
    picture += rng.integers(0, 8, picture.shape, np.uint8)  # grain, as cameras have
    square = 5 * number % (WIDTH - 40)
    picture[100:140, square : square + 40] = 255
    return picture


def _sound(seconds: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * (200 + 50 * times) * times) + 0.05 * rng.standard_normal(len(times))).astype("f4")
