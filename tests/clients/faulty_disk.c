// A disk that is full, read-only or slow, for a program that does not know: loaded before the C library, it answers for
// files below a folder what the kernel would. FAULTY_DISK names a file with the fault and the folder: "full /tmp/data/".
// Knows no faults of reading, and none of what is written through a mapping.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum fault { NONE, FULL, READONLY, SLOW, STUCK };

// What is wrong with a path now.
static enum fault fault_of(const char *path) {
    const char *control = getenv("FAULTY_DISK");
    char text[4096];
    if (!control || !path) return NONE;
    int fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return NONE;
    long length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0) return NONE;
    text[length] = 0;
    char *folder = strchr(text, ' ');
    if (!folder) return NONE;
    *folder++ = 0;
    folder[strcspn(folder, "\n")] = 0;
    if (!strstr(path, folder)) return NONE;
    if (!strcmp(text, "full")) return FULL;
    if (!strcmp(text, "readonly")) return READONLY;
    if (!strcmp(text, "slow")) return SLOW;
    if (!strcmp(text, "stuck")) return STUCK;
    return NONE;
}

static enum fault fault_of_file(int fd) {
    char link[64] = "/proc/self/fd/", path[4096], *end = link + strlen(link), digits[16];
    int count = 0;
    if (fd <= 2) return NONE;
    for (int n = fd; n; n /= 10) digits[count++] = '0' + n % 10;
    while (count) *end++ = digits[--count];
    *end = 0;
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0 || path[0] != '/') return NONE;
    path[length] = 0;
    return fault_of(path);
}

static void wait_for_disk(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int refuse(int number) {
    errno = number;
    return -1;
}

// Whether a write that ends there is refused: what a full disk has already, it takes.
static int is_refused(int fd, off_t end) {
    struct stat now;
    switch (fault_of_file(fd)) {
    case READONLY: return refuse(EROFS);
    case FULL: return fstat(fd, &now) == 0 && end > now.st_size ? refuse(ENOSPC) : 0;
    case STUCK: wait_for_disk(100); return 0;
    default: return 0;
    }
}

static off_t size_of(const struct iovec *parts, int count) {
    off_t size = 0;
    while (count--) size += parts[count].iov_len;
    return size;
}

static off_t here(int fd) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    return at < 0 ? 0 : at;
}

ssize_t write(int fd, const void *data, size_t size) {
    return is_refused(fd, here(fd) + size) ? -1 : REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return is_refused(fd, here(fd) + size_of(parts, count)) ? -1 : REAL(writev)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return is_refused(fd, at + size) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
    return is_refused(fd, at + size) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return is_refused(fd, at + size_of(parts, count)) ? -1 : REAL(pwritev)(fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) {
    return is_refused(fd, at + size_of(parts, count)) ? -1 : REAL(pwritev64)(fd, parts, count, at);
}
int fallocate(int fd, int mode, off_t at, off_t size) {
    return is_refused(fd, at + size) ? -1 : REAL(fallocate)(fd, mode, at, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    return is_refused(fd, at + size) ? errno : REAL(posix_fallocate)(fd, at, size);
}
int ftruncate(int fd, off_t size) {
    return fault_of_file(fd) == READONLY ? refuse(EROFS) : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off_t size) {
    return fault_of_file(fd) == READONLY ? refuse(EROFS) : REAL(ftruncate64)(fd, size);
}

static void sync_slowly(int fd) {
    enum fault fault = fault_of_file(fd);
    if (fault == SLOW || fault == STUCK) wait_for_disk(2000);
}
int fsync(int fd) {
    sync_slowly(fd);
    return REAL(fsync)(fd);
}
int fdatasync(int fd) {
    sync_slowly(fd);
    return REAL(fdatasync)(fd);
}

static int opens_for_writing(const char *path, int flags) {
    return ((flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT) && fault_of(path) == READONLY;
}
#define OPEN(name, first_parameter, first) \
    int name(first_parameter const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return opens_for_writing(path, flags) ? refuse(EROFS) : REAL(name)(first path, flags, mode); \
    }
#define COMMA ,
#define FOLDER folder,
OPEN(open, , )
OPEN(open64, , )
OPEN(openat, int folder COMMA, FOLDER)
OPEN(openat64, int folder COMMA, FOLDER)

int mkdir(const char *path, mode_t mode) {
    return fault_of(path) == READONLY ? refuse(EROFS) : REAL(mkdir)(path, mode);
}
int unlink(const char *path) {
    return fault_of(path) == READONLY ? refuse(EROFS) : REAL(unlink)(path);
}
int rename(const char *from, const char *to) {
    return fault_of(to) == READONLY ? refuse(EROFS) : REAL(rename)(from, to);
}
