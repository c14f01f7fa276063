"""Decoding through the pipeline against the bare decode function, a computed bound, and Ray Data's own readers.

Run: PYTHONPATH=. python benchmarks/decode.py [--clips 300] [--parts pipeline,bound,ray,fast,scale] [--rounds 2]

pipeline  jobs.decode_media's decode_manifest on 2 actors against ItemDecoder in 2 plain processes, which write nothing
bound     ItemDecoder in 1 process against decoding by PyAV alone what must be decoded: from the keyframe before each
          wanted frame to that frame, and all sound; CPU seconds
ray       the same task by ray.data.read_videos and read_audio (of wav: it reads no mp4), against decode_manifest; needs
          the package soundfile
fast      media.mode=fast against exact on clips of 60 s with a keyframe every 2 s, 1 process, CPU seconds
scale     decode_manifest on a quarter, half, all and four times the clips: cost a clip, and peak memory

Clips of 10 s, one clip an item: 8 frames and a log-mel of the whole. Each variant runs in a process of its own, the
variants take turns, and ratios are to the named one of the same run. "warm" is from the first result to the last.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from avrec_ray.media.config import MediaConfig
from benchmarks.processes import Family, measure
from benchmarks.render_clips import render_clips, write_items, write_wavs

ACTORS = 2
CFG = MediaConfig(max_clips=1, clip_seconds=10.0)
Result = dict[str, Any]


def main(num_clips: int, parts: list[str], rounds: int, num_long: int) -> None:
    """Run the parts that are asked for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(parts) - {"fast"}:
            clips = render_clips(folder / "clips", num_clips, 10.0)
            write_items(folder / "all.parquet", clips)
        if "pipeline" in parts:
            compare(folder, "all", ["plain", "pipeline"], rounds, num_clips, "warm_rate", "items/s warm")
        if "bound" in parts:
            compare(folder, "all", ["bound", "one"], rounds, num_clips, "cpu_ms", "CPU ms an item")
        if "ray" in parts:
            write_wavs(clips, folder / "wav")
            compare(folder, "all", ["pipeline", "ray"], rounds, num_clips, "tree_cpu_seconds", "CPU s with start-up")
        if "fast" in parts:
            write_items(folder / "long.parquet", render_clips(folder / "long", num_long, 60.0, gop=50, distinct=4))
            compare(folder, "long", ["one", "fast"], rounds, num_long, "cpu_ms", "CPU ms an item")
        if "scale" in parts:
            scale(folder, clips)


def compare(folder: Path, items: str, variants: list[str], rounds: int, count: int, key: str, unit: str) -> None:
    """Variants in turn; a line each run, then the ratio of the medians to the first variant."""
    results: dict[str, list[Result]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            result = run(variant, folder, items)
            results[variant].append(result)
            print(line(variant, count, result), flush=True)
    values = {variant: median(result[key] for result in results[variant]) for variant in variants}
    first = variants[0]
    for variant in variants[1:]:
        of_wall = wall(results, variant) / wall(results, first)
        text = f"{unit} {values[variant]:.3g} to {values[first]:.3g}; wall {of_wall:.2f}x"
        print(f"{variant} / {first}: {values[variant] / values[first]:.2f}x  ({text})\n", flush=True)


def wall(results: dict[str, list[Result]], variant: str) -> float:
    return median(result["wall_seconds"] for result in results[variant])


def scale(folder: Path, clips: list[Path]) -> None:
    """What a further clip costs between two sizes, and how memory grows."""
    before: Result = {}
    for name, share in (("quarter", 0.25), ("half", 0.5), ("whole", 1), ("four", 4)):
        count = round(share * len(clips))
        write_items(folder / f"{name}.parquet", clips[:count], copies=max(1, round(share)))
        result = {**run("pipeline", folder, name), "count": count}
        text = line("pipeline", count, result)
        if before:
            more = count - before["count"]
            text += (
                f"  a further clip: {1e3 * (result['tree_cpu_seconds'] - before['tree_cpu_seconds']) / more:.0f} CPU ms"
            )
            text += f", {1e3 * (result['wall_seconds'] - before['wall_seconds']) / more:.0f} ms"
        if name == "four":
            text += f"  peak memory {result['peak_mb'] / before['peak_mb']:.3f}x of a quarter of the clips"
        print(text, flush=True)
        before = result
    print()


def run(variant: str, folder: Path, items: str) -> Result:
    return measure([sys.executable, "-m", "benchmarks.decode", "--variant", variant, str(folder), items])


def line(variant: str, count: int, result: Result) -> str:
    text = f"{count:>5} clips  {variant:<8}  {result['wall_seconds']:6.1f} s  {result['tree_cpu_seconds']:6.1f} CPU s"
    if "warm_rate" in result:
        text += f"  {result['warm_rate']:5.1f} items/s warm"
    if "cpu_ms" in result:
        text += f"  {result['cpu_ms']:6.1f} CPU ms an item warm"
    return f"{text}  peak {result['peak_mb']:5.0f} MB"


def paths_of(folder: Path, items: str) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / f"{items}.parquet")["media_uri"].to_pylist()


def run_pipeline(folder: Path, items: str) -> Result:
    """As jobs.decode_media does, without MLflow."""
    from avrec_ray.cluster_config import ClusterConfig
    from avrec_ray.pipelines.decode_media import decode_manifest
    from avrec_ray.pipelines.session import session

    with session(ClusterConfig()), tempfile.TemporaryDirectory(dir=folder) as out:
        clips = Path(out) / "clips"
        counts = decode_manifest(
            str(folder / f"{items}.parquet"), str(clips), str(Path(out) / "quarantine"), CFG, ACTORS, tell
        )
        assert counts["usable"] == counts["items"], counts
        return warm_rate([path.stat().st_mtime for path in clips.glob("*.parquet")], int(counts["items"]))


def run_plain(folder: Path, items: str) -> Result:
    """A pool that hands out one file at a time; nothing is written."""
    os.environ["OMP_NUM_THREADS"] = "1"
    paths = paths_of(folder, items)
    with multiprocessing.get_context("spawn").Pool(ACTORS, start_decoder) as pool:
        return warm_rate(list(pool.imap_unordered(decode_file, paths)), len(paths))


def start_decoder() -> None:
    """Once a process of the pool."""
    import torch

    from avrec_ray.media.decode import ItemDecoder

    global decoder
    torch.set_num_threads(1)
    decoder = ItemDecoder(CFG)


def decode_file(path: str) -> float:
    """Returns when it was done."""
    assert len(decoder.decode("item", path)) == 1
    return time.time()


def warm_rate(done_at: list[float], num_items: int) -> Result:
    """Items a second, from the first result of each worker to the last of all; results are of equal size."""
    done_at = sorted(done_at)
    return {"warm_rate": num_items * (1 - ACTORS / len(done_at)) / (done_at[-1] - done_at[ACTORS - 1])}


def run_one(folder: Path, items: str, cfg: MediaConfig = CFG) -> Result:
    """One process and its child; CPU of both after the first file."""
    import torch

    from avrec_ray.media.decode import ItemDecoder

    torch.set_num_threads(1)
    paths = paths_of(folder, items)
    with ItemDecoder(cfg) as decoder:
        decoder.decode("item", paths[0])
        return cpu_of((decoder.decode("item", path) for path in paths), len(paths))


def run_fast(folder: Path, items: str) -> Result:
    return run_one(folder, items, replace(CFG, mode="fast"))


def run_bound(folder: Path, items: str) -> Result:
    """PyAV alone: which frames must be decoded is found before the clock runs."""
    import av

    paths = paths_of(folder, items)
    plans = [(path, must_decode(path)) for path in paths]
    resampled = [0]

    def work() -> Iterator[None]:
        for path, ranges in plans:
            yield
            with av.open(path) as container:
                video = container.streams.video[0]
                video.thread_type, video.codec_context.thread_count = "NONE", 1
                for first, last in ranges:
                    container.seek(first, stream=video)
                    for frame in container.decode(video):
                        if frame.pts >= last:
                            break
            with av.open(path) as container:
                resampler = av.AudioResampler("flt", "mono", CFG.sample_rate_hz)
                for frame in container.decode(container.streams.audio[0]):
                    resampled[0] += sum(part.samples for part in resampler.resample(frame))

    return cpu_of(work(), len(paths))


def must_decode(path: str) -> list[tuple[int, int]]:
    """(keyframe, last wanted frame) for each group of pictures that holds a wanted frame, as timestamps."""
    import av
    import numpy as np

    from avrec_ray.media.spans import frame_times

    with av.open(path) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.pts is not None]
        tick = float(packets[0].time_base)
    pts = np.sort([p.pts for p in packets])
    keys = np.sort([p.pts for p in packets if p.is_keyframe])
    times = frame_times((0.0, CFG.clip_seconds), CFG.num_frames)
    wanted = pts[np.searchsorted((pts - pts[0]) * tick, times, side="right") - 1]
    before = keys[np.searchsorted(keys, wanted, side="right") - 1]
    return [(int(key), int(wanted[before == key].max())) for key in np.unique(before)]


def cpu_of(work: Iterable[object], num_items: int) -> Result:
    """CPU of this process and its children, looked at now and then: a child is replaced after some files."""
    family = Family(os.getpid())
    family.look()
    before = family.cpu_seconds
    for number, _ in enumerate(work):
        if number % 20 == 0:
            family.look()
    family.look()
    return {"cpu_ms": 1e3 * (family.cpu_seconds - before) / num_items}


def run_ray(folder: Path, items: str) -> Result:
    """read_videos gives a row a frame, of which 8 are kept; read_audio gives the sound, resampled here."""
    import ray

    from avrec_ray.cluster_config import ClusterConfig
    from avrec_ray.pipelines.session import session
    from benchmarks.decode_by_ray import keep_wanted, log_mels, stack_frames

    paths = paths_of(folder, items)
    wavs = [str(folder / "wav" / f"{Path(path).stem}.wav") for path in paths]
    with session(ClusterConfig()), tempfile.TemporaryDirectory(dir=folder) as out:
        size = (CFG.frame_size, CFG.frame_size)
        frames = ray.data.read_videos(paths, include_paths=True, resize=size).map_batches(keep_wanted)
        frames.groupby("path").map_groups(stack_frames, batch_format="numpy").write_parquet(f"{out}/frames")
        sounds = ray.data.read_audio(wavs, include_paths=True).map_batches(log_mels, batch_size=4)
        sounds.write_parquet(f"{out}/sounds")
        counts = [ray.data.read_parquet(f"{out}/{name}").count() for name in ("frames", "sounds")]
        assert counts == [len(paths), len(paths)], counts
    return {}


def tell(text: str) -> None:
    print(text, file=sys.stderr)


VARIANTS: dict[str, Callable[[Path, str], Result]] = {
    "pipeline": run_pipeline, "plain": run_plain, "one": run_one, "fast": run_fast, "bound": run_bound, "ray": run_ray,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--long-clips", type=int, default=20)
    parser.add_argument("--parts", default="pipeline,bound,ray,fast,scale")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", nargs=3, metavar=("NAME", "FOLDER", "ITEMS"), help="what the benchmark starts")
    arguments = parser.parse_args()
    if arguments.variant:
        name, folder, items = arguments.variant
        print(json.dumps(VARIANTS[name](Path(folder), items)))
    else:
        main(arguments.clips, arguments.parts.split(","), arguments.rounds, arguments.long_clips)
