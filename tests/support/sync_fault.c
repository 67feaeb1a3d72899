/* Lets fsync and fdatasync of the spool fail with EIO for as long as the file exists that TOLLGATE_TEST_SYNC_FAULT names: a disk
 * that loses what it was given. Loaded into the relay by LD_PRELOAD. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_faulty(int fd) {
    const char *flag = getenv("TOLLGATE_TEST_SYNC_FAULT");
    char link[64], path[PATH_MAX];
    if (flag == NULL || access(flag, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, "/spool.db") != NULL;
}

static int sync_or_fail(long call, int fd) {
    if (is_faulty(fd)) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(call, fd);
}

int fsync(int fd) { return sync_or_fail(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_or_fail(SYS_fdatasync, fd); }
