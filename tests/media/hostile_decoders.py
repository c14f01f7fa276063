"""Decoders that misbehave, named to the decoding process by their import path."""

import ctypes
import os
import resource
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avrec_ray.errors import MediaError
from avrec_ray.media.answer import HEADER, MAGIC
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, extract

MARK = b"OggS"


def by_content(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """Do what the word behind the magic bytes of the file says; a word without a meaning is decoded."""
    word = file.read(64).removeprefix(MARK).decode()
    if word.startswith("connect:"):
        socket.socket().connect(("127.0.0.1", int(word.partition(":")[2])))
    if word in MISDEEDS:
        MISDEEDS[word](cfg)
    if word in LIES:
        return LIES[word](good(word, cfg), cfg)
    return good(word if draw is None else chr(draw), cfg)


def good(word: str, cfg: MediaConfig) -> Extract:
    """One clip, filled with the first letter of the word."""
    frames = np.full((1, *cfg.frames_shape), ord(word[0]), np.uint8)
    return Extract([(0.0, 1.0)], frames, np.ones((1, cfg.num_samples), np.float32), [True], "hostile 1")


def extract_or_misbehave(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """The real decoder, but for files that name a misdeed."""
    head = file.read(20)
    file.seek(0)
    word = head.removeprefix(MARK).decode("latin-1")
    is_misdeed = word.partition(":")[0] in {*MISDEEDS, *LIES, "connect"}
    return by_content(file, cfg, draw) if is_misdeed else extract(file, cfg, draw)


def _spin(cfg: MediaConfig) -> None:
    while True:
        pass


def _spin_in_threads(cfg: MediaConfig) -> None:
    digits = b"0" * 2**22
    for _ in range(3):
        threading.Thread(target=lambda: [hash_of(digits) for _ in range(10**9)], daemon=True).start()
    time.sleep(60)


def hash_of(data: bytes) -> str:
    """Work outside the interpreter's lock."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _hold_the_lock(cfg: MediaConfig) -> None:
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter's lock: no Python signal handler can run


def _eat(cfg: MediaConfig) -> None:
    kept = []
    while True:
        kept.append(np.empty(2**26, np.uint8))


def _fork(cfg: MediaConfig) -> None:
    while True:
        if os.fork() == 0:
            time.sleep(600)


def _write(cfg: MediaConfig) -> None:
    Path("/tmp/avrec-written").write_text("x")


def _execute(cfg: MediaConfig) -> None:
    os.execv("/bin/sh", ["/bin/sh", "-c", "sleep 600"])


def _say(data: bytes) -> None:
    """Write straight to the parent, then wait."""
    for descriptor in range(3, 2000):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, data)
        except OSError:
            continue
    time.sleep(600)


def _say_json(text: bytes) -> None:
    _say(HEADER.pack(MAGIC, len(text), 0) + text)


def _raise(cfg: MediaConfig) -> None:
    raise RuntimeError("a defect of the decoder \x1b[2J")


def _refuse(cfg: MediaConfig) -> None:
    raise MediaError("unsupported", "on purpose")


MISDEEDS: dict[str, Callable[[MediaConfig], None]] = {
    "abort": lambda cfg: os.abort(),
    "exit": lambda cfg: os._exit(3),
    "segfault": lambda cfg: ctypes.memset(0, 1, 1) and None,
    "spin": _spin,
    "threads": _spin_in_threads,
    "lock": _hold_the_lock,
    "eat": _eat,
    "fork": _fork,
    "write": _write,
    "exec": _execute,
    "raise": _raise,
    "refuse": _refuse,
    "garbage": lambda cfg: _say(b"\xff" * 4096),
    "flood": lambda cfg: _say(HEADER.pack(MAGIC, 2**31, 2**63)),
    "reason": lambda cfg: _say_json(b'{"reason": "\\ud800", "detail": ""}'),
}
"""Word to what happens; each but refuse and raise breaks the decoding process or its answer."""


def _with(found: Extract, **changes: object) -> Extract:
    for name, value in changes.items():
        setattr(found, name, value)
    return found


LIES: dict[str, Callable[[Extract, MediaConfig], Extract]] = {
    "clips": lambda found, cfg: Extract([(0.0, 1.0)] * (cfg.max_clips + 1), None, None, [False] * 3, "hostile"),
    "escape": lambda found, cfg: _with(found, decoder="\x1b[2J"),
}
"""Word to an answer that is wrong."""


def unsound(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """Samples that are not numbers."""
    return _with(good("x", cfg), waveforms=np.full((1, cfg.num_samples), np.nan, np.float32))


def environment(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """Tell the names of the environment and of the modules that matter, as the decoder's name."""
    import sys

    loaded = [name for name in ("torch", "ray", "pyarrow") if name in sys.modules]
    names = ",".join(sorted(os.environ))
    frames = np.zeros((1, *cfg.frames_shape), np.uint8)
    return Extract([(0.0, 0.0)], frames, None, [False], f"modules {','.join(loaded)} names {names}")


def reach(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """Tell what a decoder that was taken over gets done, as the decoder's name."""
    done = [name for name, attempt in ATTEMPTS.items() if _succeeds(attempt)]
    return Extract([(0.0, 0.0)], np.zeros((1, *cfg.frames_shape), np.uint8), None, [False], " ".join(["did", *done]))


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        return attempt() is not False
    except (OSError, ValueError):  # a limit that cannot be raised is a ValueError
        return False


def _start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def _raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "thread": _start_thread,
    "own_descriptors": lambda: os.listdir("/proc/self/fd"),
    "read": lambda: Path("/etc/passwd").read_bytes(),
    "list": lambda: len(os.listdir("/")) > 1,
    "climb": lambda: os.open("/proc/self/fd/../../1/environ", os.O_RDONLY),
    "write": lambda: Path("/tmp/avrec-written").write_text("x"),
    "write_root": lambda: os.mkdir("/x"),
    "remove": lambda: os.unlink("/tmp/avrec-canary"),
    "socket": lambda: socket.socket(),
    "unix_socket": lambda: socket.socket(socket.AF_UNIX),
    "fork": lambda: os.fork() or os._exit(0),
    "run": lambda: subprocess.run(["/bin/true"]),
    "signal_parent": lambda: os.kill(os.getppid(), 0),
    "memory": _raise_limit,
    "memfd": lambda: os.memfd_create("x"),
    "capability": lambda: os.setuid(12345),
    "trace": lambda: ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0,
    "namespace": lambda: ctypes.CDLL(None).unshare(0x10000000) == 0,
}


def abort_unless_pyav(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """What decord does to some files."""
    if cfg.decoder != "pyav":
        os.abort()
    return by_content(file, cfg, draw)


def slow(file: BinaryIO, cfg: MediaConfig, draw: int | None) -> Extract:
    """Take a second; then refuse the file if it says so."""
    word = file.read(64).removeprefix(MARK).decode()
    time.sleep(1.0)
    if word == "slowrefuse":
        _refuse(cfg)
    return good("x", cfg)
