"""The sandbox of the decoding process, layer upon layer: what a decoder that was taken over can still do.

Each layer that the machine has is put on, each that it lacks is named with the kernel's answer: `Layers` says which.
Everything the decoder needs must be imported before.
"""

import ctypes
import math
import os
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

from avrec_ray.media import landlock, namespaces, seccomp
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.syscalls import libc, syscall

_MAX_OPEN_FILES = 64
_MAX_PROCESSES = 64
"""Threads, counted within the user namespace."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION = 0x20080522


@dataclass(kw_only=True)
class Layers:
    """The layers of the sandbox in force, and those that could not be had."""

    active: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Name to what the kernel answered."""

    def __str__(self) -> str:
        missing = ", ".join(f"{name} ({why})" for name, why in self.missing.items()) or "none"
        return f"{', '.join(self.active) or 'no layer'}; not available: {missing}"

    def put_on(self, name: str, layer: Callable[[], object]) -> None:
        """Put on one layer and note how that went."""
        try:
            layer()
        except OSError as error:
            self.missing[name] = _answer_of(error)
        else:
            self.active.append(name)


def confine(cfg: MediaConfig) -> Layers:
    """Give up for good all that decoding does not need. For a process of one thread."""
    layers = Layers()
    layers.put_on("rlimits", lambda: _limit(cfg))
    layers.put_on("no_new_privs", lambda: libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    rules = _landlock_rules(cfg, layers)  # names folders, so it comes before they are out of sight
    layers.put_on("no_network", _leave_network)
    if "no_network" in layers.active:
        layers.put_on("no_files", namespaces.empty_root)
    else:
        layers.missing["no_files"] = "needs the namespace of no_network"
    layers.put_on("no_capabilities", _drop_capabilities)
    if rules is not None:
        layers.put_on("landlock", lambda: landlock.enforce(rules))
    layers.put_on("not_dumpable", lambda: libc("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0))
    # After the changes of credentials, which would clear it.
    layers.put_on("parent_death", lambda: libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    layers.put_on("seccomp", seccomp.install)
    return layers


def _landlock_rules(cfg: MediaConfig, layers: Layers) -> int | None:
    try:
        return landlock.prepare(_readable(cfg))
    except OSError as error:
        layers.missing["landlock"] = _answer_of(error)
        return None


def allow_cpu(cfg: MediaConfig) -> None:
    """Give this process `cfg.cpu_seconds` more of CPU time from now; past them the kernel ends it with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + cfg.cpu_seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit(cfg: MediaConfig) -> None:
    for limit, most in (
        (resource.RLIMIT_AS, cfg.max_memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _leave_network() -> None:
    if namespaces.leave_network():
        # Elsewhere the limit would count all processes of this user, ours or not.
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))


def _readable(cfg: MediaConfig) -> list[str] | None:
    """Folders that decord may open a descriptor's file in; None where media may lie anywhere."""
    if not cfg.media_roots:
        return None
    libraries = [path for path in sys.path if os.path.isdir(path)]
    fetched = [tempfile.gettempdir()] if cfg.remote_schemes else []
    return [*(os.path.realpath(root) for root in cfg.media_roots), *fetched, *libraries]


def _drop_capabilities() -> None:
    header, none = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    syscall("capset", ctypes.c_char_p(header), ctypes.c_char_p(none))


def _answer_of(error: OSError) -> str:
    return str(error.strerror or error)[:200]
