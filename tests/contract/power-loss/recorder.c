/* Preloaded into a process, it writes down in order every change that the process makes below one directory, and every
 * completed sync, so that a test can build each state that a power cut may leave behind.
 *
 * POWER_LOSS_ROOT: the directory. POWER_LOSS_LOG: the file to write to, outside of it.
 * A record: u8 kind, u64 a, u64 b, u32 length of the first text or data, u32 length of the second text, both.
 * Each operation is carried out and written down under one lock, so the log's order is the order in which they happened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, REMOVE, MKDIR, UNKNOWN };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("POWER_LOSS_ROOT"), *log = getenv("POWER_LOSS_LOG");
    if (!directory || !log || !realpath(directory, root)) return;
    root_length = strlen(root);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void record(uint8_t kind, uint64_t a, uint64_t b, const void *first, size_t first_length, const char *second) {
    struct __attribute__((packed)) { uint8_t kind; uint64_t a, b; uint32_t first, second; } head = {
        kind, a, b, (uint32_t)first_length, second ? (uint32_t)strlen(second) : 0 };
    struct iovec parts[3] = { { &head, sizeof head }, { (void *)first, first_length }, { (void *)second, head.second } };
    if (syscall(SYS_writev, log_fd, parts, 3) < 0) abort();
}

static int below_root(const char *path) {
    return log_fd >= 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* The absolute path that a call means; 0 if it is not below the root. */
static int resolve(int directory, const char *path, char *absolute) {
    if (log_fd < 0 || !path) return 0;
    if (path[0] == '/') {
        snprintf(absolute, PATH_MAX, "%s", path);
    } else if (directory == AT_FDCWD) {
        char here[PATH_MAX / 2];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(absolute, PATH_MAX, "%s/%s", here, path);
    } else {
        char link[64], here[PATH_MAX / 2];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, here, sizeof here - 1);
        if (length < 0) return 0;
        here[length] = 0;
        snprintf(absolute, PATH_MAX, "%s/%s", here, path);
    }
    return below_root(absolute);
}

/* The inode behind a descriptor of ours; 0 if it is none. */
static uint64_t tracked(int fd) {
    char link[64], path[PATH_MAX];
    struct stat status;
    if (log_fd < 0 || fd == log_fd || fstat(fd, &status) != 0) return 0;
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below_root(path) ? status.st_ino : 0;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int open_and_record(int directory, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    if (!resolve(directory, path, absolute) || !(flags & (O_CREAT | O_TRUNC)))
        return (int)syscall(SYS_openat, directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    int existed = faccessat(directory, path, F_OK, 0) == 0;
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode), error = errno;
    struct stat status;
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {
        if (!existed) record(CREATE, status.st_ino, 0, absolute, strlen(absolute), NULL);
        else if (flags & O_TRUNC) record(TRUNCATE, status.st_ino, 0, NULL, 0, NULL);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(flags, last) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list list; va_start(list, last); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *path, int flags, ...) { MODE(flags, flags) return open_and_record(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return open_and_record(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) return open_and_record(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) return open_and_record(at, path, flags | O_LARGEFILE, mode); }

static void record_write(uint64_t inode, uint64_t offset, const void *data, ssize_t written) {
    if (written > 0) record(WRITE, inode, offset, data, (size_t)written, NULL);
}

ssize_t write(int fd, const void *data, size_t length) {
    uint64_t inode = tracked(fd);
    if (!inode) return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_write, fd, data, length);
    int error = errno;
    if (written > 0) record_write(inode, (uint64_t)lseek(fd, 0, SEEK_CUR) - (uint64_t)written, data, written);
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    uint64_t inode = tracked(fd);
    if (!inode) return syscall(SYS_pwrite64, fd, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);
    int error = errno;
    record_write(inode, (uint64_t)offset, data, written);
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return pwrite64(fd, data, length, offset); }

/* Ways to write that nothing here is known to use: seen, they make the log useless, and the test says so. */
static void unknown(int fd, const char *what) {
    uint64_t inode = tracked(fd);
    if (inode) record(UNKNOWN, inode, 0, what, strlen(what), NULL);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { unknown(fd, "writev"); return syscall(SYS_writev, fd, parts, count); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { unknown(fd, "pwritev"); REAL(pwritev); return real(fd, parts, count, offset); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    unknown(out, "copy_file_range");
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE)) unknown(fd, "mmap");
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

int ftruncate64(int fd, off64_t length) {
    uint64_t inode = tracked(fd);
    if (!inode) return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_ftruncate, fd, length), error = errno;
    if (result == 0) record(TRUNCATE, inode, (uint64_t)length, NULL, 0, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int sync_and_record(int fd, long call) {
    uint64_t inode = tracked(fd);
    if (!inode) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(call, fd), error = errno;
    if (result == 0) record(SYNC, inode, 0, NULL, 0, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int fsync(int fd) { return sync_and_record(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_and_record(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    if (!resolve(AT_FDCWD, from, old) || !resolve(AT_FDCWD, to, new))
        return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0), error = errno;
    if (result == 0) record(RENAME, 0, 0, old, strlen(old), new);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static int remove_and_record(int directory, const char *path, int flags) {
    char absolute[PATH_MAX];
    if (!resolve(directory, path, absolute)) return (int)syscall(SYS_unlinkat, directory, path, flags);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_unlinkat, directory, path, flags), error = errno;
    if (result == 0) record(REMOVE, 0, 0, absolute, strlen(absolute), NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return remove_and_record(AT_FDCWD, path, 0); }
int unlinkat(int directory, const char *path, int flags) { return remove_and_record(directory, path, flags); }
int rmdir(const char *path) { return remove_and_record(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char absolute[PATH_MAX];
    if (!resolve(AT_FDCWD, path, absolute)) return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode), error = errno;
    struct stat status;
    if (result == 0 && stat(path, &status) == 0) record(MKDIR, status.st_ino, 0, absolute, strlen(absolute), NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
