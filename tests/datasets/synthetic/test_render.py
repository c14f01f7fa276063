import dataclasses
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avrec_ray.datasets.synthetic import RenderTask, render_item

Rendered = dict[tuple[str, str], RenderTask]
STREAMS = {
    ("video", "mp4"): ["h264", "aac"],
    ("webm", "webm"): ["vp9", "opus"],
    ("silent", "mp4"): ["h264"],
    ("audio", "m4a"): ["aac"],
    ("audio", "ogg"): ["opus"],
    ("audio", "wav"): ["pcm_s16le"],
    ("audio", "mp3"): ["mp3"],
}


def task_at(path: Path, rendered: Rendered, key: tuple[str, str] = ("video", "mp4")) -> RenderTask:
    return dataclasses.replace(rendered[key], path=str(path))


@pytest.mark.parametrize("key", STREAMS)
def test_render_item_has_the_streams_of_its_form(rendered: Rendered, key: tuple[str, str]) -> None:
    with av.open(rendered[key].path) as container:
        assert [stream.codec_context.name.replace("lib", "") for stream in container.streams] == STREAMS[key] or [
            stream.codec_context.codec.canonical_name for stream in container.streams
        ] == STREAMS[key]


@pytest.mark.parametrize("key", [key for key in STREAMS if key[0] != "audio"])
def test_render_item_video_decodes_to_its_duration(rendered: Rendered, key: tuple[str, str]) -> None:
    task = rendered[key]
    with av.open(task.path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == round(task.duration_seconds * task.frames_per_second)
    assert frames[0].shape == (task.frame_size, task.frame_size, 3)
    assert np.abs(frames[0].astype(int) - frames[5]).max() > 30


@pytest.mark.parametrize("key", [key for key in STREAMS if key[0] != "silent"])
def test_render_item_sound_decodes_to_its_duration(rendered: Rendered, key: tuple[str, str]) -> None:
    task = rendered[key]
    with av.open(task.path) as container:
        frames = list(container.decode(audio=0))
    seconds = sum(frame.samples for frame in frames) / frames[0].sample_rate
    assert seconds == pytest.approx(task.duration_seconds, abs=0.15)
    loudest = max(float(np.abs(frame.to_ndarray().astype(float)).max()) for frame in frames)
    assert loudest > (3000 if frames[0].format.name.startswith("s16") else 0.1)


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_render_item_image_opens(rendered: Rendered, form: str) -> None:
    task = rendered["image", form]
    with Image.open(task.path) as image:
        assert image.size == (task.frame_size, task.frame_size)
        assert image.format == {"png": "PNG", "jpg": "JPEG"}[form]


@pytest.mark.parametrize("form", ["truncated", "not_media", "empty", "missing"])
def test_render_item_broken_cannot_be_opened(rendered: Rendered, form: str) -> None:
    task = rendered["broken", form]
    assert task.path.endswith(".mp4")
    with pytest.raises((av.FFmpegError, OSError)), av.open(task.path) as container:
        list(container.decode())


def test_render_item_broken_files_are_what_they_say(rendered: Rendered) -> None:
    assert Path(rendered["broken", "truncated"].path).read_bytes()[4:8] == b"ftyp"
    assert Path(rendered["broken", "not_media"].path).read_text().startswith("This is a text")
    assert Path(rendered["broken", "empty"].path).stat().st_size == 0
    assert not Path(rendered["broken", "missing"].path).exists()


def test_render_item_keeps_a_file_that_exists(tmp_path: Path, rendered: Rendered) -> None:
    path = tmp_path / "kept.mp4"
    path.write_bytes(b"here already")
    done = render_item(task_at(path, rendered))
    assert (done.skipped, done.num_bytes) == (True, 12)
    assert path.read_bytes() == b"here already"


@pytest.mark.parametrize("key", [*STREAMS, ("image", "png"), ("image", "jpg"), ("broken", "truncated")])
def test_render_item_is_a_pure_function_of_its_task(tmp_path: Path, rendered: Rendered, key: tuple[str, str]) -> None:
    task = task_at(tmp_path / "again", rendered, key)
    done = render_item(task)
    assert (done.item_id, done.skipped) == (task.item_id, False)
    assert done.num_bytes == Path(task.path).stat().st_size
    assert Path(task.path).read_bytes() == Path(rendered[key].path).read_bytes()


def test_render_item_other_seed_gives_another_file(tmp_path: Path, rendered: Rendered) -> None:
    task = task_at(tmp_path / "other.mp4", rendered)
    render_item(dataclasses.replace(task, seed=task.seed + 1))
    assert Path(task.path).read_bytes() != Path(rendered["video", "mp4"].path).read_bytes()


def test_render_item_failure_leaves_nothing(tmp_path: Path, rendered: Rendered) -> None:
    task = dataclasses.replace(task_at(tmp_path / "odd.mp4", rendered), frame_size=33)
    with pytest.raises(av.FFmpegError):
        render_item(task)
    assert list(tmp_path.iterdir()) == []


def test_render_task_pickles(rendered: Rendered) -> None:
    task = rendered["video", "mp4"]
    assert pickle.loads(pickle.dumps(task)) == task  # Ray ships tasks to its workers so
