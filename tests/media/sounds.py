"""Sounds to measure by: FFmpeg's own of a whole file, and how late one sound is against another."""

import contextlib
from itertools import pairwise
from pathlib import Path

import av
import av.filter
import numpy as np
import numpy.typing as npt

RATE_HZ = 16000


def whole_sound(path: Path) -> npt.NDArray[np.float32]:
    """The file decoded, resampled and mixed down by FFmpeg's own filters, as its program does it."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    first = frames[0]
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=first.sample_rate, format=first.format.name, layout=first.layout.name, time_base=first.time_base
    )
    resample = graph.add("aresample", str(RATE_HZ))
    mono = graph.add("aformat", "sample_fmts=flt:channel_layouts=mono")
    for left, right in pairwise([source, resample, mono, graph.add("abuffersink")]):
        left.link_to(right)
    graph.configure()
    chunks = [np.zeros(0, np.float32)]
    for frame in [*frames, None]:
        graph.push(frame)
        chunks += _pulled(graph)
    return np.concatenate(chunks)


def _pulled(graph: av.filter.Graph) -> list[npt.NDArray[np.float32]]:
    chunks: list[npt.NDArray[np.float32]] = []
    with contextlib.suppress(BlockingIOError, EOFError):
        while True:
            chunks.append(graph.pull().to_ndarray()[0])
    return chunks


def lag_samples(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> tuple[float, float]:
    """By how many samples `found` is late, to a fraction, and the correlation there."""
    size = 2 * len(expected)
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size))
    fine = np.fft.irfft(spectrum, 16 * size) * 16
    best = int(np.argmax(fine))
    lag = (best if best < 8 * size else best - 16 * size) / 16
    return lag, float(fine[best] / (np.linalg.norm(found) * np.linalg.norm(expected)))
