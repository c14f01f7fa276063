"""A small catalogue of media for the tests of streaming, and what their training workers run."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig, TrainingConfig, towers_for
from avrec_ray.dataclass_io import to_dict
from avrec_ray.datasets.config import DataConfig
from avrec_ray.media.clips import write_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_clips import DecodeClips, split_rows
from avrec_ray.media.decode_draws import DecodeDraws
from avrec_ray.pipelines import pretrain
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.stream_batches import Batch, StreamSettings
from avrec_ray.pipelines.train import Work
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.config import PretrainConfig
from avrec_ray.types import check_items
from tests.media.render import barcode, tone, write_media
from tests.tiny_models import tiny_towers

MEDIA = MediaConfig(num_frames=2, frame_size=16, clip_seconds=1.0, max_clips=2, num_mel_bins=8, decoder="pyav")
NUM_FILMS = 11


def write_catalogue(root: Path) -> None:
    """Films of two clips, a sound and a picture; items table, clips table, and one item of text alone."""
    media = root / "media"
    media.mkdir()
    uris: dict[str, str | None] = {"only_text": None}
    for number in range(NUM_FILMS):
        sound = tone(2.0, 200.0 + 100 * number)
        uris[f"film_{number}"] = str(write_media(media / f"{number}.mp4", 50, options={"g": "12"}, sound=sound))
    uris["sound"] = str(write_media(media / "sound.ogg", 0, sound=tone(0.5), audio_codec="libopus"))
    Image.fromarray(barcode(77)).save(media / "picture.png")
    uris["picture"] = str(media / "picture.png")
    titles = [f"one two three four five {item_id}" for item_id in uris]
    table = {"item_id": list(uris), "media_uri": list(uris.values()), "title": titles}
    (root / "tables").mkdir()
    pq.write_table(check_items(pa.table(table)), root / "tables" / "items.parquet")
    decode = DecodeClips(to_dict(MEDIA))
    clips, aside = split_rows(decode({name: table[name] for name in ("item_id", "media_uri")}))
    decode.decoder.close()
    assert not aside.num_rows
    (root / "clips").mkdir()
    write_clips(clips, root / "clips" / "part.parquet")


def job_at(root: Path, epochs: int = 2, **data: Any) -> JobConfig:
    """Two trainers and two decode actors; data.mode and data.random_clips as given."""
    return JobConfig(
        storage_path=str(root),
        seed=3,
        data=DataConfig(**data),
        media=MEDIA,
        towers=towers_for(tiny_towers(), MEDIA),
        training=TrainingConfig(pretrain=PretrainConfig(epochs=epochs, batch_size=3, checkpoint_every_epochs=1)),
        cluster=ClusterConfig(num_workers=2, num_decode_actors=2, max_failures=0),
    )


def settings_at(root: Path, epochs: int = 2, **data: Any) -> dict[str, Any]:
    """What a worker is told, for a cluster in which everything fits."""
    actors = {"decoder": "avrec_ray.media.extract:extract", "num_actors": 2, "fitting_actors": 2, "resource": ""}
    return {**pretrain.stage_settings(Storage.at(str(root)), job_at(root, epochs, **data)), **actors}


def decode_here(blocks: list[pa.Table], batch_size: int, settings: StreamSettings) -> Iterator[Batch]:
    """As `decoded_batches`, without Ray: in this process, one block after another."""
    decode = DecodeDraws(to_dict(settings.media), settings.decoder)
    rows = [decode({name: block[name].to_pylist() for name in block.column_names}) for block in blocks]
    whole = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    decode.decoder.close()
    for start in range(0, len(whole["order"]), batch_size):
        yield {name: values[start : start + batch_size] for name, values in whole.items()}


def statistics(inputs: ItemInputs) -> dict[str, Tensor]:
    """Mean and deviation of the pictures and sounds of a batch."""
    return {name: torch.stack(torch.std_mean(getattr(inputs, name).float())) for name in ("frames", "log_mel")}


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """The stage's own work; its batches are compared with the cached ones, and noted in a file.

    `settings["cached"]` are the same settings in cached mode. In epoch 1 worker 0 kills every decoding child, and then
    every decode actor.
    """
    work = pretrain.build_work(settings, rank, num_workers)
    cached = pretrain.build_work(settings["cached"], rank, num_workers)

    def compared(epoch: int) -> Iterator[ItemInputs]:
        notes = Path(settings["notes"]) / f"{rank}_{epoch}"
        for step, (ours, theirs) in enumerate(zip(work.batches(epoch), cached.batches(epoch), strict=True)):
            same = {name: torch.equal(value, getattr(theirs, name)) for name, value in vars(ours).items()}
            with notes.open("a") as file:
                file.write(
                    f"{step} {len(ours.frames)} {sorted(name for name, is_same in same.items() if not is_same)}\n"
                )
            if rank == 0 and epoch == 1 and step == 0:
                kill_decoders(settings["notes"])
            yield ours

    return Work(work.step, compared, work.steps_per_epoch, work.optim, work.left_out, work.notes)


def kill_decoders(notes: str) -> None:
    """Kill the decoding children of this cluster's actors, then the actors. How many is noted."""
    siblings = psutil.Process(os.getppid()).children()
    actors = [process for process in siblings if "DecodeDraws" in " ".join(process.cmdline())]
    children = [child for actor in actors for child in actor.children()]
    killed = sum(map(kill, children))
    time.sleep(0.5)
    Path(notes, "killed").write_text(f"{killed} {sum(map(kill, actors))}")


def kill(process: psutil.Process) -> bool:
    """Whether there was something to kill."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True
