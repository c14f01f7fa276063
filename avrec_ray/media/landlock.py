"""Landlock: the kernel refuses this process every file beyond the folders listed, and all writing and executing."""

import ctypes
import os
import struct
from collections.abc import Iterable

from avrec_ray.media.syscalls import libc, syscall

_READ = 1 << 2 | 1 << 3
"""Reading of files and listing of folders."""
_CHANGE = {1: 0b1111111110011, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""Kernel interface to the rights it brought: executing, writing, removing and making; linking; truncating; ioctl."""
_NETWORK = {4: 0b11}
"""Binding and connecting of TCP."""
_SCOPES = {6: 0b11}
"""Abstract Unix sockets of, and signals to, processes outside."""
_VERSION_FLAG, _BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38


def interface_version() -> int:
    """Version of the kernel's Landlock interface. Raises OSError where the kernel has none."""
    return syscall("landlock_create_ruleset", None, 0, _VERSION_FLAG)


def prepare(readable: Iterable[str] | None) -> int:
    """Descriptor of a rule set: no change anywhere, no TCP, and reading in the folders `readable` alone.

    With None reading is not restricted. A folder that does not exist gives no right. Raises OSError.
    """
    version = interface_version()
    files, network, scopes = (_rights(table, version) for table in (_CHANGE, _NETWORK, _SCOPES))
    if readable is not None:
        files |= _READ
    fields = [files] + ([network] if version >= 4 else []) + ([scopes] if version >= 6 else [])
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = syscall("landlock_create_ruleset", ctypes.c_char_p(attributes), len(attributes), 0)
    for folder in readable or ():
        _allow_reading(rules, folder)
    return rules


def enforce(rules: int) -> None:
    """Put the rule set on this thread and all that it starts, for good; closes the descriptor. Raises OSError."""
    try:
        libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        syscall("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)


def _rights(table: dict[int, int], version: int) -> int:
    return sum(bits for since, bits in table.items() if version >= since)


def _allow_reading(rules: int, folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", _READ, descriptor)
        syscall("landlock_add_rule", rules, _BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)
