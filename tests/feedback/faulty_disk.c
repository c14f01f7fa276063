/* A disk that fails on demand. Preloaded into a process; while the file $FAULT exists, its content says what fails:
   "fsync" every sync with EIO, "write" every write to a database's files with ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int faulty(const char *what) {
    const char *path = getenv("FAULT");
    char content[16] = "";
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY) : -1;
    if (fd < 0) return 0;
    long got = syscall(SYS_read, fd, content, sizeof content - 1);
    syscall(SYS_close, fd);
    return got > 0 && strncmp(content, what, strlen(what)) == 0;
}

int fsync(int fd) {
    if (faulty("fsync")) { errno = EIO; return -1; }
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    if (faulty("fsync")) { errno = EIO; return -1; }
    return (int)syscall(SYS_fdatasync, fd);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    if (faulty("write")) { errno = ENOSPC; return -1; }
    return syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
