"""A system call filter for the decoding process: what decoding never needs is refused by the kernel.

It is a list of refusals, not of permissions: decoders, libc and Python differ in what they call, and the other layers
hold where a call is missing here. No program starts, no process forks, no socket opens, nothing is opened for writing;
threads can be started.
"""

import ctypes
import errno
import os
import platform
import struct

from avrec_ray.media.syscalls import syscall

REFUSED = {
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "setpgid": (109, 154),
    "setsid": (112, 157), "setpriority": (141, 140),
    # changes of the file system
    "creat": (85, None), "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "open_by_handle_at": (304, 265),
    # leaving the sandbox
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "setuid": (105, 146),
    "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "personality": (135, 92),
    # memory that no limit counts, and parts of the kernel with a history
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "acct": (163, 89), "syslog": (103, 116), "reboot": (169, 142),
}  # fmt: skip
"""Calls answered with EPERM: name to their numbers on x86_64 and on aarch64."""

_ABSENT = {"clone3": (435, 435), "openat2": (437, 437), "io_uring_setup": (425, 425)}
"""Calls whose arguments lie in memory, which a filter cannot read. Told that they are absent, libc uses older ones."""

_NO_TERMINAL = {"ioctl": (16, 29)}
_OPEN_FLAGS = {"open": (2, None, 1), "openat": (257, 56, 2)}
"""Name to numbers and the argument that holds the flags."""
_OWN_PROCESS = {"kill": (62, 129), "tgkill": (234, 131)}
_CLONE, _PRLIMIT = (56, 220), (302, 261)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine to its column above and its AUDIT_ARCH."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_X32 = 0x40000000
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGS = 0, 4, 16
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def install() -> None:
    """Put the filter on every thread of this process, for good. Needs no_new_privs. Raises OSError."""
    apply(filter_program(platform.machine(), os.getpid()))


def apply(program: bytes) -> None:
    """Put BPF instructions on every thread of this process as a filter. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    header = Program(len(program) // 8, ctypes.addressof(buffer))
    set_filter, all_threads = 1, 1
    if syscall("seccomp", set_filter, all_threads, ctypes.byref(header)):
        raise OSError(errno.ESRCH, "seccomp: a thread could not be brought under the filter")


def filter_program(machine: str, pid: int) -> bytes:
    """The filter as BPF instructions of 8 bytes each. Raises OSError for a machine without a table."""
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"seccomp: no table of calls for {machine}; expected one of {sorted(_MACHINES)}")
    column, arch = _MACHINES[machine]
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_op(_ABOVE, _X32, 0, 1), _op(_RETURN, _KILL)]
    for table, error in ((REFUSED, errno.EPERM), (_ABSENT, errno.ENOSYS), (_NO_TERMINAL, errno.ENOTTY)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                code += _when(number, [_op(_RETURN, _ERRNO | error)])
    for numbers_and_place in _OPEN_FLAGS.values():
        if (number := numbers_and_place[column]) is not None:
            code += _when(number, _unless_bits(numbers_and_place[2], _WRITING))
    for numbers in _OWN_PROCESS.values():
        code += _when(numbers[column], _only_equal(0, pid))
    code += _when(_PRLIMIT[column], _only_equal(0, 0))
    code += _when(_CLONE[column], _only_with_bits(0, _CLONE_THREAD))
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """`then`, which ends in a return, for the call `number`; other calls skip it."""
    return [_op(_EQUAL, number, 0, len(then)), *then]


def _argument(place: int) -> bytes:
    """Load the lower half of an argument; both machines are little-endian."""
    return _op(_LOAD, _ARGS + 8 * place)


def _unless_bits(place: int, bits: int) -> list[bytes]:
    return [_argument(place), _op(_ANY_BIT, bits, 0, 1), _op(_RETURN, _ERRNO | errno.EACCES), _op(_RETURN, _ALLOW)]


def _only_with_bits(place: int, bits: int) -> list[bytes]:
    return [_argument(place), _op(_ANY_BIT, bits, 1, 0), _op(_RETURN, _ERRNO | errno.EPERM), _op(_RETURN, _ALLOW)]


def _only_equal(place: int, value: int) -> list[bytes]:
    return [_argument(place), _op(_EQUAL, value, 1, 0), _op(_RETURN, _ERRNO | errno.EPERM), _op(_RETURN, _ALLOW)]
