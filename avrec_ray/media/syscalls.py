"""System calls that Python's library lacks, by ctypes. Linux on x86_64 and aarch64."""

import ctypes
import errno
import os
import platform
from functools import cache

NUMBERS = {
    "x86_64": {
        "capset": 126,
        "landlock_add_rule": 445,
        "landlock_create_ruleset": 444,
        "landlock_restrict_self": 446,
        "pivot_root": 155,
        "seccomp": 317,
    },
    "aarch64": {
        "capset": 91,
        "landlock_add_rule": 445,
        "landlock_create_ruleset": 444,
        "landlock_restrict_self": 446,
        "pivot_root": 41,
        "seccomp": 277,
    },
}
"""Machine to the numbers of calls that libc has no wrapper for."""


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def libc(name: str, *args: object) -> int:
    """Call libc's function `name`. Raises OSError when it answers -1, or where this system has none of that name."""
    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"{name}: not in the C library of {platform.system()}")
    return _checked(function(*args), name)


def syscall(name: str, *args: object) -> int:
    """Make the system call `name`, a key of NUMBERS. Raises OSError when it fails, or on an unknown machine."""
    numbers = NUMBERS.get(platform.machine())
    if numbers is None:
        known = sorted(NUMBERS)
        raise OSError(errno.ENOSYS, f"{name}: no number known for {platform.machine()}; expected one of {known}")
    longs = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(_libc().syscall(ctypes.c_long(numbers[name]), *longs), name)


def _checked(result: int, name: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
