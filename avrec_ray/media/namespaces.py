"""Namespaces of the decoding process: a network without any device, and a file system that holds nothing.

The only path left is /proc/self/fd, by which decord opens the descriptor it was handed.
"""

import ctypes
import os

from avrec_ray.media.syscalls import libc, syscall

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_MOUNT_POINT = "/tmp"
_DESCRIPTORS = "/proc/self/fd"


def leave_network() -> bool:
    """Move to a network namespace without devices, with mounts and IPC of its own; whether a new user namespace came.

    Without privilege it takes a new user namespace, in which this user keeps its number. Raises OSError. For a process
    of one thread.
    """
    user, group = os.getuid(), os.getgid()
    apart = _NEW_NETWORK | _NEW_MOUNTS | _NEW_IPC
    try:
        libc("unshare", _NEW_USER | apart)
    except OSError:
        libc("unshare", apart)  # root in a container may be denied the one and have the other
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def empty_root() -> None:
    """Swap the file system for an empty read-only one that holds /proc/self/fd alone. Raises OSError.

    For a process that `leave_network` gave mounts of its own. Whatever is imported later must be imported before.
    """
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    sealed = _NO_SUID | _NO_DEVICES | _NO_EXEC
    _mount("none", _MOUNT_POINT, "tmpfs", sealed, "size=64k,nr_inodes=16")
    os.makedirs(_MOUNT_POINT + _DESCRIPTORS)
    _mount(_DESCRIPTORS, _MOUNT_POINT + _DESCRIPTORS, None, _BIND)
    os.chdir(_MOUNT_POINT)
    here = ctypes.c_char_p(b".")
    syscall("pivot_root", here, here)
    libc("umount2", b".", _DETACH)
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | sealed)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    libc("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
