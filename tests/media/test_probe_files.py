import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from avrec_ray.media import probe_files
from avrec_ray.media.file_report import FileReport
from avrec_ray.media.probe_files import Outcome
from tests.media.render import barcode, tone, write_media


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "avrec_ray.media.probe", *arguments], capture_output=True, text=True)


def test_probe_command_prints_what_would_happen_to_each_file(tmp_path: Path) -> None:
    film = write_media(tmp_path / "film.mp4", 50, options={"g": "12"}, sound=tone(2.0))
    sound = write_media(tmp_path / "sound.wav", 0, sound=tone(0.5), audio_codec="pcm_s16le")
    picture = tmp_path / "picture.png"
    Image.fromarray(barcode(7)).save(picture)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[:3000])
    script = tmp_path / "script.mp4"
    script.write_text("ffconcat version 1.0\nfile film.mp4\n")
    files = [str(path) for path in (film, sound, picture, cut, script, tmp_path / "none.mp4")]
    done = probe(*files, "http://127.0.0.1:9/a.mp4")
    assert done.returncode == 1, done.stderr
    lines = dict(zip(("head", *"fspcxnu", "sandbox"), done.stdout.splitlines(), strict=True))
    assert lines["head"].split() == list(probe_files.HEADINGS)
    film_words = "mp4 2 h264 128x96 25.00 aac 48000 2.00 1 clip by decord 0.6.0, pyav 18.1.0"
    assert " ".join(lines["f"].split()[1:]) == film_words
    assert " ".join(lines["s"].split()[1:]) == "wav 1 pcm_s16le 48000 0.50 1 clip by pyav 18.1.0"
    assert lines["p"].split()[1:5] == ["png", "1", "png", "128x96"]
    assert "truncated: the mp4 container does not open" in lines["c"]
    assert "not_media: the first bytes are b'ffconcat" in lines["x"]
    assert "missing: " in lines["n"]
    assert "forbidden: 'http://127.0.0.1:9/a.mp4' has the scheme 'http:'" in lines["u"]
    assert lines["sandbox"].startswith("sandbox: rlimits, no_new_privs, ")
    assert probe(str(film)).returncode == 0


def test_probe_command_without_a_file_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe_files.main([]) == 2
    assert "usage: " in capsys.readouterr().err
    assert probe_files.main(["--help"]) == 0
    assert "Exit status: 0 when every file gives clips, 1 " in capsys.readouterr().out


def test_table_columns_line_up() -> None:
    report = FileReport(kind="mp4", num_streams=2, video_codec="h264", width=64, height=48, fps=25.0)
    outcomes = [
        Outcome(name="a", report=report, num_clips=2, decoder="d"),
        Outcome(name="long", reason="missing", detail="x"),
    ]
    head, first, second = probe_files.table(outcomes).splitlines()
    assert head.index("outcome") == first.index("2 clips by d") == second.index("missing: x")
