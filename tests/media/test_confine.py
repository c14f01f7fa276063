import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from avrec_ray.errors import ConfigError, StageError
from avrec_ray.media import seccomp
from avrec_ray.media.child import DecodeProcess
from avrec_ray.media.config import LAYERS, MediaConfig
from avrec_ray.media.confine import Layers
from tests.media.render import tone, write_media

CFG = MediaConfig(frame_size=16, num_frames=2, clip_seconds=0.1)


def sandbox_layers(cfg: MediaConfig) -> Layers:
    with DecodeProcess(cfg) as process:
        return process.layers


@pytest.fixture(scope="module")
def layers() -> Layers:
    return sandbox_layers(CFG)


def needs(layers: Layers, *names: str) -> None:
    if missing := {name: layers.missing[name] for name in names if name in layers.missing}:
        pytest.skip(f"this machine has no {missing}")


def test_layers_are_each_in_force_or_named_as_missing(layers: Layers) -> None:
    assert sorted([*layers.active, *layers.missing]) == sorted(LAYERS)
    assert {"rlimits", "no_new_privs", "not_dumpable", "parent_death"} <= set(layers.active)
    assert all(layers.missing.values())


def test_layers_text_names_both_lists() -> None:
    layers = Layers(active=["rlimits", "seccomp"], missing={"landlock": "Function not implemented"})
    assert str(layers) == "rlimits, seccomp; not available: landlock (Function not implemented)"
    assert str(Layers(active=["rlimits"])) == "rlimits; not available: none"


def test_decoder_taken_over_gets_nothing_done_but_threads(layers: Layers, tmp_path: Path) -> None:
    needs(layers, *LAYERS)
    (tmp_path / "a.ogg").write_bytes(b"OggSx")
    with DecodeProcess(CFG, "tests.media.hostile_decoders:reach") as process, (tmp_path / "a.ogg").open("rb") as file:
        assert process.extract(file).decoder == "did thread own_descriptors"


def test_required_layer_that_is_missing_stops_the_run(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"media\.required_layers='bubblewrap' is not one of"):
        MediaConfig(required_layers=["bubblewrap"])
    assert sandbox_layers(MediaConfig(required_layers=layers.active)).active == layers.active
    monkeypatch.setattr("avrec_ray.media.child.from_dict", lambda cls, values: Layers(missing={"seccomp": "no"}))
    with pytest.raises(StageError, match=r"asks for \['seccomp'\], the sandbox has: no layer; not available: seccomp"):
        sandbox_layers(MediaConfig(required_layers=["seccomp"]))


ALONE = """
import ctypes, os, resource, socket, threading, sys
from avrec_ray.media import confine, landlock, namespaces, seccomp
from avrec_ray.media.syscalls import libc

def refused(call):
    try:
        call()
    except OSError:
        return True
    return False

readable, other = sys.argv[1:]
"""


def alone(tmp_path: Path, script: str) -> None:
    """Run a script with one layer; it asserts what that layer refuses by itself."""
    for name in ("readable", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    command = [sys.executable, "-c", ALONE + script, str(tmp_path / "readable"), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_landlock_alone_reads_below_its_folders_and_writes_nowhere(layers: Layers, tmp_path: Path) -> None:
    needs(layers, "landlock")
    alone(
        tmp_path,
        """
landlock.enforce(landlock.prepare([readable, "/nowhere"]))
assert open(readable + "/file").read() == "x"
assert refused(lambda: open(other + "/file"))
assert refused(lambda: open(readable + "/file", "w"))
assert refused(lambda: open(readable + "/new", "w"))
assert refused(lambda: os.unlink(readable + "/file"))
assert refused(lambda: os.execv("/bin/true", ["true"]))
if landlock.interface_version() >= 4:
    try:
        socket.socket().connect(("127.0.0.1", 9))
    except PermissionError:
        pass
""",
    )


def test_landlock_without_folders_reads_all_and_writes_nowhere(layers: Layers, tmp_path: Path) -> None:
    needs(layers, "landlock")
    alone(
        tmp_path,
        """
landlock.enforce(landlock.prepare(None))
assert open(other + "/file").read() == "x"
assert refused(lambda: open(other + "/file", "a"))
""",
    )


def test_seccomp_alone_refuses_sockets_programs_and_writing(layers: Layers, tmp_path: Path) -> None:
    needs(layers, "seccomp")
    alone(
        tmp_path,
        """
libc("prctl", 38, 1, 0, 0, 0)
before = socket.socketpair()
started = threading.Event()
thread = threading.Thread(target=started.wait)  # threads that run already come under the filter, too
thread.start()
seccomp.install()
assert open(other + "/file").read() == "x"
for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_CREAT):
    assert refused(lambda: os.open(other + "/file", flags))
assert refused(socket.socket) and refused(socket.socketpair) and refused(os.fork)
assert refused(lambda: os.execv("/bin/true", ["true"]))
assert refused(lambda: os.kill(os.getppid(), 0))
assert refused(lambda: os.rename(other + "/file", other + "/moved"))
assert refused(lambda: libc("unshare", 0x20000))
assert refused(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU))
os.kill(os.getpid(), 0)
before[0].sendall(b"x")
assert before[1].recv(1) == b"x"
started.set()
thread.join()
another = threading.Thread(target=print)
another.start()
another.join()
""",
    )


def test_namespaces_alone_leave_no_network_and_no_file(layers: Layers, tmp_path: Path) -> None:
    needs(layers, "no_network", "no_files")
    alone(
        tmp_path,
        """
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
file = open(other + "/file")
namespaces.leave_network()
assert refused(lambda: socket.create_connection(("127.0.0.1", port), timeout=5))
namespaces.empty_root()
assert os.listdir("/") == ["proc"] and os.listdir("/proc") == ["self"] and os.listdir("/proc/self") == ["fd"]
assert open(f"/proc/self/fd/{file.fileno()}").read() == "x"
assert refused(lambda: open(other + "/file"))
assert refused(lambda: open("/new", "w"))
""",
    )


POOR_MACHINE = """
import errno, sys
from avrec_ray.media import seccomp
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.child import DecodeProcess
from avrec_ray.media.syscalls import libc

libc("prctl", 38, 1, 0, 0, 0)
code = [seccomp._op(seccomp._LOAD, seccomp._NUMBER)]
for number in map(int, sys.argv[2:]):
    code += seccomp._when(number, [seccomp._op(seccomp._RETURN, seccomp._ERRNO | errno.EPERM)])
seccomp.apply(b"".join([*code, seccomp._op(seccomp._RETURN, seccomp._ALLOW)]))
with DecodeProcess(MediaConfig(num_frames=2)) as process, open(sys.argv[1], "rb", buffering=0) as file:
    print(process.extract(file).decoder)
    print(process.layers)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of calls are those of x86_64")
def test_layers_on_a_machine_without_some_are_named_and_decoding_works(layers: Layers, tmp_path: Path) -> None:
    """As in a container that allows neither namespaces nor Landlock."""
    needs(layers, *LAYERS)
    film = write_media(tmp_path / "film.mp4", 10, sound=tone(0.4))
    unshare, landlock = "272", "444"
    for refused, missing in (([unshare], 2), ([landlock], 1), ([unshare, landlock], 3)):
        done = subprocess.run([sys.executable, "-c", POOR_MACHINE, str(film), *refused], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        decoder, text = done.stdout.splitlines()
        active, _, lacking = text.partition("; not available: ")
        assert decoder == "decord 0.6.0, pyav 18.1.0"
        assert len(active.split(", ")) == len(LAYERS) - missing
        assert ("landlock (landlock_create_ruleset: Operation not permitted)" in lacking) == (landlock in refused)
        assert ("no_network (unshare: Operation not permitted), no_files (needs " in lacking) == (unshare in refused)


def run_filter(program: bytes, number: int, args: tuple[int, ...], arch: int) -> int:
    """What the filter returns for a call: an interpreter of the few instructions it is made of."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    position, loaded = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("HBBI", program, 8 * position)
        position += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            loaded = int.from_bytes(data[value : value + 4], "little")
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            position += if_true if holds else if_false


ALLOW, KILL = 0x7FFF0000, 0x80000000


@pytest.mark.parametrize(
    ("machine", "arch", "read", "openat", "socket", "clone"),
    [("x86_64", 0xC000003E, 0, 257, 41, 56), ("aarch64", 0xC00000B7, 63, 56, 198, 220)],
)
def test_filter_program_on_each_machine(
    machine: str, arch: int, read: int, openat: int, socket: int, clone: int
) -> None:
    program = seccomp.filter_program(machine, pid=77)
    run = lambda number, *args: run_filter(program, number, args, arch)  # noqa: E731
    assert len(program) // 8 < 4096
    assert run(read) == ALLOW
    assert run(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    assert run(openat, 0, 0, os.O_RDWR) == 0x0005000D
    assert run(socket) == 0x00050001
    assert run(clone, 0x3D0F00) == ALLOW
    assert run(clone, 17) == 0x00050001
    assert run(435) == 0x00050026  # clone3 is told to be absent
    assert run_filter(program, read, (), 0x40000003) == KILL
    column = list(seccomp._MACHINES).index(machine)
    for name, numbers in seccomp.REFUSED.items():
        if numbers[column] is not None:
            assert run(numbers[column]) == 0x00050001, name


def test_filter_program_x32_calls_are_killed_and_unknown_machine_is_said() -> None:
    program = seccomp.filter_program("x86_64", pid=1)
    assert run_filter(program, 0x40000000 + 41, (), 0xC000003E) == KILL
    with pytest.raises(OSError, match="no table of calls for riscv64"):
        seccomp.filter_program("riscv64", pid=1)


@pytest.mark.skipif(platform.machine() not in seccomp._MACHINES, reason="no table of calls for this machine")
def test_filter_numbers_are_this_kernels(tmp_path: Path) -> None:
    headers = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not headers.exists() or platform.machine() != "x86_64":
        pytest.skip("the kernel's headers are not installed")
    known = dict(line.split()[1:3] for line in headers.read_text().splitlines() if line.startswith("#define __NR_"))
    for name, numbers in {**seccomp.REFUSED, **seccomp._ABSENT, **seccomp._OWN_PROCESS}.items():
        assert known[f"__NR_{name}"] == str(numbers[0]), name
