"""The decoding process: a decoder that aborts, spins or leaks costs one file, never the run.

A persistent child is handed an open descriptor over a Unix socket and answers with a checked header and raw bytes,
never pickle. The parent kills it when a file takes too long and starts another. This is the seam for a sandbox: what
confines the child goes into `_confine`, and any function `(file, cfg) -> Extract` can be named as the decoder.

Wire format of an answer: b"AVR1", u32 length of the JSON, u64 length of the payload, JSON, frames, waveforms.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import MediaError, StageError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, payload_bytes

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"AVR1"
_MAX_JSON_BYTES = 65536
_START_SECONDS = 120.0
_FILES_PER_CHILD = 500
"""Children are replaced after this many files, which bounds what a decoder leaks."""

DEFAULT_DECODER = "avrec_ray.media.extract:extract"


class DecodeProcess:
    """Parent's end: `extract(file)` decodes in the child. Not for use from several threads at once.

    `decoder` names the function to run as "module:function"; it must be importable in the child.
    """

    def __init__(self, cfg: MediaConfig, decoder: str = DEFAULT_DECODER) -> None:
        self._cfg, self._decoder = cfg, decoder
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._num_files = 0

    def __enter__(self) -> "DecodeProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._process.pid if self._process else None

    def extract(self, file: BinaryIO) -> Extract:
        """Decode an open file.

        Raises:
            MediaError: what the decoder found, or timeout, or crashed.
            StageError: the child cannot be started at all.
        """
        if self._process is None or self._num_files >= _FILES_PER_CHILD:
            self.close()
            self._start()
        self._num_files += 1
        try:
            return self._ask(file)
        except TimeoutError as error:
            self.close()
            raise MediaError("timeout", f"over media.timeout_seconds={self._cfg.timeout_seconds:g}") from error
        except (OSError, EOFError, ValueError) as error:
            raise MediaError("crashed", f"{self._end_of_child()}; {error}") from error

    def close(self) -> None:
        """Kill the child and whatever it started."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._socket, self._process, self._num_files = None, None, 0

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        config = json.dumps(to_dict(self._cfg))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "avrec_ray.media.child", str(theirs.fileno()), self._decoder, config],
                env=_child_environment(),
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        try:
            self._receive(len(_MAGIC), time.monotonic() + _START_SECONDS)
        except (OSError, EOFError) as error:
            raise StageError(
                f"the decoding process does not start: {self._end_of_child()}; "
                f"try: {sys.executable} -c 'import avrec_ray.media.child, av, PIL'"
            ) from error

    def _ask(self, file: BinaryIO) -> Extract:
        assert self._socket is not None
        deadline = time.monotonic() + self._cfg.timeout_seconds
        self._socket.settimeout(self._cfg.timeout_seconds)
        file.seek(0)  # the descriptor's position is shared with whoever read it before
        socket.send_fds(self._socket, [b"D"], [file.fileno()])
        magic, json_bytes, num_bytes = _HEADER.unpack(self._receive(_HEADER.size, deadline))
        if magic != _MAGIC or json_bytes > _MAX_JSON_BYTES:
            raise ValueError("its answer has a wrong header")
        answer = json.loads(bytes(self._receive(json_bytes, deadline)))
        if "reason" in answer:
            raise MediaError(str(answer["reason"]), str(answer["detail"]))
        frames, waveforms = bool(answer["frames"]), bool(answer["waveforms"])
        spans = [(float(start), float(end)) for start, end in answer["spans"]]
        if not 1 <= len(spans) <= self._cfg.max_clips or len(answer["has_audio"]) != len(spans):
            raise ValueError(f"its answer has {len(spans)} clips")
        if num_bytes != payload_bytes(len(spans), frames, waveforms, self._cfg):
            raise ValueError(f"its answer has a payload of {num_bytes} bytes")
        payload = self._receive(num_bytes, deadline)
        return _unpack(payload, spans, frames, waveforms, answer, self._cfg)

    def _receive(self, size: int, deadline: float) -> bytearray:
        assert self._socket is not None
        data = bytearray(size)
        view, position = memoryview(data), 0
        while position < size:
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
            count = self._socket.recv_into(view[position:])
            if count == 0:
                raise EOFError("the connection ended")
            position += count
        return data

    def _end_of_child(self) -> str:
        """How the child ended, for a detail; closes it."""
        assert self._process is not None
        try:
            code: int | None = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code is None:
            return "the decoding process broke off"
        return f"the decoding process died with {signal.Signals(-code).name if code < 0 else f'status {code}'}"


def _child_environment() -> dict[str, str]:
    """Enough to import this package; none of the parent's secrets."""
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


def _unpack(
    payload: bytearray,
    spans: list[tuple[float, float]],
    has_frames: bool,
    has_waveforms: bool,
    answer: dict[str, Any],
    cfg: MediaConfig,
) -> Extract:
    split = payload_bytes(len(spans), has_frames, False, cfg)
    view = memoryview(payload)
    frames = np.frombuffer(view[:split], np.uint8).reshape(len(spans), *cfg.frames_shape) if has_frames else None
    waveforms = np.frombuffer(view[split:], np.float32).reshape(len(spans), -1) if has_waveforms else None
    return Extract(spans, frames, waveforms, [bool(flag) for flag in answer["has_audio"]], str(answer["decoder"]))


def _answer(connection: socket.socket, header: dict[str, Any], arrays: list[Any]) -> None:
    text = json.dumps(header).encode()
    payload = [np.ascontiguousarray(array) for array in arrays if array is not None]
    connection.sendall(_HEADER.pack(_MAGIC, len(text), sum(array.nbytes for array in payload)) + text)
    for array in payload:
        connection.sendall(array.reshape(-1).view(np.uint8).data)


def _confine(cfg: MediaConfig) -> None:
    """Limits of the child: memory, no core dump."""
    resource.setrlimit(resource.RLIMIT_AS, (cfg.max_memory_bytes, cfg.max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(connection: socket.socket, decode: Callable[[BinaryIO, MediaConfig], Extract], cfg: MediaConfig) -> None:
    """Answer requests until the parent closes its end."""
    # The kernel ends a child that spins after its parent died: no Python code has to run for the default action.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not message:
            return
        signal.alarm(int(cfg.timeout_seconds) + 10)
        with os.fdopen(descriptors[0], "rb", buffering=0) as file:
            try:
                found = decode(file, cfg)
            except MediaError as error:
                _answer(connection, {"reason": error.reason, "detail": error.detail[:2000]}, [])
            else:
                _answer(connection, _describe(found), [found.frames, found.waveforms])
        signal.alarm(0)


def _describe(found: Extract) -> dict[str, Any]:
    return {
        "spans": found.spans,
        "frames": found.frames is not None,
        "waveforms": found.waveforms is not None,
        "has_audio": found.has_audio,
        "decoder": found.decoder,
    }


def _main(descriptor: int, decoder: str, config: str) -> None:
    cfg = from_dict(MediaConfig, json.loads(config))
    module, _, function = decoder.partition(":")
    decode = getattr(importlib.import_module(module), function)
    _confine(cfg)
    with socket.socket(fileno=descriptor) as connection:
        connection.sendall(_MAGIC)
        _serve(connection, decode, cfg)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
