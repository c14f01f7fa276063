"""The decoding process: a decoder that aborts, spins or leaks costs one file, never the run.

A persistent child, confined as media/confine.py says, is handed an open descriptor over a Unix socket and answers with
a checked header and raw bytes, never pickle (media/answer.py). The parent kills it when a file takes too long, and
starts another after any error. Any function `(file, cfg, draw) -> Extract` can be named as the decoder.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import MediaError, StageError
from avrec_ray.media import answer, file_report
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.confine import Layers, allow_cpu, confine
from avrec_ray.media.extract import Extract
from avrec_ray.media.file_report import FileReport

T = TypeVar("T")
Decoder = Callable[[BinaryIO, MediaConfig, int | None], Extract]

DEFAULT_DECODER = "avrec_ray.media.extract:extract"

_REQUEST = struct.Struct("<c?Q")
"""What is asked, whether there is a draw, the draw. A descriptor goes with it."""
_DECODE, _REPORT = b"D", b"R"
_START_SECONDS = 120.0


class DecodeProcess:
    """Parent's end: `extract(file)` decodes in the child. Not for use from several threads at once.

    `decoder` names the function to run as "module:function"; it must be importable in the child.
    """

    def __init__(self, cfg: MediaConfig, decoder: str = DEFAULT_DECODER) -> None:
        self._cfg, self._decoder = cfg, decoder
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._layers: Layers | None = None
        self._num_files = 0

    def __enter__(self) -> "DecodeProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def layers(self) -> Layers:
        """The layers of the sandbox, as the child told at its start; starts one if there is none.

        Raises:
            StageError: the child cannot be started, or a layer of `media.required_layers` is missing.
        """
        self._ensure_child()
        assert self._layers is not None
        return self._layers

    @property
    def sandbox(self) -> str:
        """The layers that the last child had, as text; "" while there has been none."""
        return "" if self._layers is None else str(self._layers)

    def extract(self, file: BinaryIO, draw: int | None = None) -> Extract:
        """Decode an open file: the clips that cover it, or the one random clip of a `draw` (0 to 2**64 - 1).

        Raises:
            MediaError: what the decoder found, or timeout, or crashed.
            StageError: the child cannot be started, or a layer of `media.required_layers` is missing.
        """

        def receive(deadline: float) -> Extract:
            head, num_bytes = self._receive_head(deadline)
            claim = answer.read_claim(head, num_bytes, self._cfg)
            return answer.read_payload(self._receive(num_bytes, deadline), claim, self._cfg)

        return self._ask(_DECODE, file, draw, receive)

    def report(self, file: BinaryIO) -> FileReport:
        """What a probe finds in an open file, without decoding. Raises as `extract` does."""
        return self._ask(_REPORT, file, None, lambda deadline: file_report.read_report(self._receive_head(deadline)[0]))

    def close(self) -> None:
        """Kill the child and whatever it started."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._socket, self._process, self._num_files = None, None, 0

    def _ensure_child(self) -> None:
        """A child that waits for a file. One that ended between two files has nothing to do with the next one."""
        if self._process is not None and self._process.poll() is None and self._num_files < self._cfg.files_per_child:
            return
        self.close()
        self._start()

    def _ask(self, what: bytes, file: BinaryIO, draw: int | None, receive: Callable[[float], T]) -> T:
        self._ensure_child()
        assert self._socket is not None
        self._num_files += 1
        deadline = time.monotonic() + self._cfg.timeout_seconds
        try:
            self._socket.settimeout(self._cfg.timeout_seconds)
            file.seek(0)  # the descriptor's position is shared with whoever read it before
            request = _REQUEST.pack(what, draw is not None, draw or 0)
            socket.send_fds(self._socket, [request], [file.fileno()])
            return receive(deadline)
        except MediaError:
            self.close()  # what a bad file left behind in the decoder must not meet the next one
            raise
        except TimeoutError as error:
            self.close()
            raise MediaError("timeout", f"over media.timeout_seconds={self._cfg.timeout_seconds:g}") from error
        except (OSError, EOFError, *answer.NOT_AN_ANSWER) as error:
            raise self._end_of_child(error) from error

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
            head, _ = self._receive_head(time.monotonic() + _START_SECONDS)
            self._layers = from_dict(Layers, head["layers"])
        except (OSError, EOFError, MediaError, *answer.NOT_AN_ANSWER) as error:
            raise StageError(
                f"the decoding process does not start: {self._end_of_child(error).detail}; "
                f"try: {sys.executable} -c 'import avrec_ray.media.child, av, PIL'"
            ) from error
        if lacking := [name for name in self._cfg.required_layers if name not in self._layers.active]:
            self.close()
            raise StageError(f"media.required_layers asks for {lacking}, the sandbox has: {self._layers}")

    def _receive_head(self, deadline: float) -> tuple[dict[str, Any], int]:
        json_bytes, num_bytes = answer.read_head(self._receive(answer.HEADER.size, deadline))
        return answer.read_json(self._receive(json_bytes, deadline)), num_bytes

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

    def _end_of_child(self, error: BaseException) -> MediaError:
        """How the child ended, told as an error; closes it."""
        assert self._process is not None
        try:
            code: int | None = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code == -signal.SIGXCPU:
            return MediaError("timeout", f"over media.cpu_seconds={self._cfg.cpu_seconds:g}")
        end = "broke off"
        if code is not None:
            end = f"died with {signal.Signals(-code).name if code < 0 else f'status {code}'}"
        return MediaError("crashed", f"the decoding process {end}; {answer.plain(error, 200)}")


def _child_environment() -> dict[str, str]:
    """Enough to import this package; none of the parent's secrets."""
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


def _send(connection: socket.socket, head: dict[str, Any], arrays: list[Any]) -> None:
    text = json.dumps(head).encode()
    payload = [np.ascontiguousarray(array) for array in arrays if array is not None]
    num_bytes = sum(array.nbytes for array in payload)
    connection.sendall(answer.HEADER.pack(answer.MAGIC, len(text), num_bytes) + text)
    for array in payload:
        connection.sendall(array.reshape(-1).view(np.uint8).data)


def _serve(connection: socket.socket, decode: Decoder, cfg: MediaConfig) -> None:
    """Answer requests until the parent closes its end."""
    # The kernel ends a child that spins after its parent died: no Python code has to run for the default action.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _REQUEST.size, 1)
        if not message:
            return
        what, has_draw, draw = _REQUEST.unpack(message)
        signal.alarm(int(cfg.timeout_seconds) + 10)
        allow_cpu(cfg)
        with os.fdopen(descriptors[0], "rb", buffering=0) as file:
            try:
                if what == _REPORT:
                    head, arrays = file_report.describe(file_report.report(file, cfg)), []
                else:
                    found = decode(file, cfg, draw if has_draw else None)
                    answer.check_sound(found)
                    head, arrays = answer.describe(found), [found.frames, found.waveforms]
            except MediaError as error:
                head, arrays = {"reason": error.reason, "detail": error.detail[:2000]}, []
            except Exception as error:  # a defect of the decoder, whose traceback nobody would see
                head, arrays = {"reason": "crashed", "detail": f"{type(error).__name__}: {error}"[:2000]}, []
            _send(connection, head, arrays)
        signal.alarm(0)


_IMPORTED_LATE = (
    *(f"numpy.{name}" for name in ("fft", "linalg", "ma", "polynomial", "random")),
    *(f"encodings.{name}" for name in ("ascii", "cp1252", "latin_1", "utf_16", "utf_16_be", "utf_16_le", "utf_32")),
    "PIL.Image",
)
"""Parts of libraries that these import at the first use."""


def _import_all(cfg: MediaConfig, decoder: str) -> Decoder:
    """The decoder; and whatever decoding may come to import, for which there is no file system any more later on."""
    import av

    for part in pkgutil.walk_packages(av.__path__, "av."):
        if not part.name.endswith("__main__"):
            importlib.import_module(part.name)
    for name in (*_IMPORTED_LATE, *(["decord"] if cfg.decoder != "pyav" else [])):
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()
    module, _, function = decoder.partition(":")
    return getattr(importlib.import_module(module), function)


def _main(descriptor: int, decoder: str, config: str) -> None:
    cfg = from_dict(MediaConfig, json.loads(config))
    decode = _import_all(cfg, decoder)
    layers = confine(cfg)
    with socket.socket(fileno=descriptor) as connection:
        _send(connection, {"layers": to_dict(layers)}, [])
        _serve(connection, decode, cfg)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
