/* Count what a process and its children do to files under one folder, and disturb the n-th of it.
 *
 * Loaded with LD_PRELOAD. What a program asks the C library to change (create, write, rename, link,
 * remove, …) below $FAULT_UNDER is numbered in one counter that all processes share, the mapped file
 * $FAULT_COUNTER. Number $FAULT_AT (from 1) is where the fault $FAULT_DO happens, before the call or, with
 * $FAULT_AFTER, behind it:
 *
 *   signal:<number>:self              to the process itself
 *   signal:<number>:main              to the command's first process
 *   signal:<number>:group             to all of the process's group
 *   signal:<number>:both              and to all of the command's, which uv is not in
 *   errno:<number>                    this call fails so, and is not made
 *   errno:<number>:onwards            and so does every later call that makes or writes something: a full disk
 *
 * What was disturbed is written behind the counter, as text. Without FAULT_AT it only counts. The start of a
 * program (execve, execv) counts as well, wherever it is: a signal there comes while its parent starts it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct shared {
    uint64_t count;
    uint64_t happened;
    uint64_t first; /* the command's first process, which leads its group */
    char what[488];
};

static struct shared *shared;
static const char *under;
static size_t under_length;
static uint64_t at;
static int after, number, is_signal, onwards;
static char to_whom[8];

__attribute__((constructor)) static void start(void) {
    const char *counter = getenv("FAULT_COUNTER"), *action = getenv("FAULT_DO"), *when = getenv("FAULT_AT");
    under = getenv("FAULT_UNDER");
    if (!counter || !under) return;
    under_length = strlen(under);
    int descriptor = open(counter, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *map = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (map == MAP_FAILED) return;
    after = getenv("FAULT_AFTER") != NULL;
    if (action && when) {
        at = strtoull(when, NULL, 10);
        if (sscanf(action, "signal:%d:%7s", &number, to_whom) == 2) is_signal = 1;
        else if (sscanf(action, "errno:%d:%7s", &number, to_whom) == 2) onwards = 1;
        else sscanf(action, "errno:%d", &number);
    }
    shared = map;
    uint64_t nobody = 0;
    __atomic_compare_exchange_n(&shared->first, &nobody, (uint64_t)getpid(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static int below(int folder, const char *path) {
    char whole[PATH_MAX];
    if (path && path[0] == '/') return strncmp(path, under, under_length) == 0;
    char link[64];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return strncmp(whole, under, under_length) == 0;
}

#define ANYWHERE (AT_FDCWD - 1)

/* Number this call; nonzero where it is the one to be disturbed. */
static int strikes(const char *name, int folder, const char *path, int makes) {
    if (!shared || !(folder == ANYWHERE || below(folder, path))) return 0;
    uint64_t mine = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
    int now = at && (mine == at || (onwards && makes && mine > at));
    if (now && !__atomic_exchange_n(&shared->happened, 1, __ATOMIC_SEQ_CST))
        snprintf(shared->what, sizeof shared->what, "call %llu: %s %s", (unsigned long long)mine, name,
                 path ? path : "(open file)");
    return now;
}

static void send_signal(void) {
    if (to_whom[0] == 's') kill(getpid(), number);
    else if (to_whom[0] == 'm') kill((pid_t)shared->first, number);
    else {
        if (to_whom[0] == 'b' && getpgrp() != (pid_t)shared->first) kill(-(pid_t)shared->first, number);
        kill(0, number);
    }
}

/* The C library's own function of that name. */
#define REAL(name)                                                       \
    (__extension__({                                                     \
        static __typeof__(&name) real;                                   \
        if (!real) { *(void **)(&real) = dlsym(RTLD_NEXT, #name); }      \
        real;                                                            \
    }))

#define DISTURBED(type, name, folder, path, makes, call)              \
    int struck = strikes(#name, folder, path, makes);                 \
    if (struck && !is_signal) { errno = number; return (type)-1; }    \
    if (struck && !after) send_signal();                              \
    type result = call;                                               \
    if (struck && after) { int kept = errno; send_signal(); errno = kept; } \
    return result

#define MAKES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) {
    MODE(flags)
    if (!MAKES(flags)) return REAL(open)(path, flags, mode);
    DISTURBED(int, open, AT_FDCWD, path, 1, REAL(open)(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    if (!MAKES(flags)) return REAL(open64)(path, flags, mode);
    DISTURBED(int, open64, AT_FDCWD, path, 1, REAL(open64)(path, flags, mode));
}
int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    if (!MAKES(flags)) return REAL(openat)(folder, path, flags, mode);
    DISTURBED(int, openat, folder, path, 1, REAL(openat)(folder, path, flags, mode));
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    if (!MAKES(flags)) return REAL(openat64)(folder, path, flags, mode);
    DISTURBED(int, openat64, folder, path, 1, REAL(openat64)(folder, path, flags, mode));
}
int rename(const char *from, const char *to) { DISTURBED(int, rename, AT_FDCWD, to, 0, REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
    DISTURBED(int, renameat, b, to, 0, REAL(renameat)(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    DISTURBED(int, renameat2, b, to, 0, REAL(renameat2)(a, from, b, to, flags));
}
int link(const char *from, const char *to) { DISTURBED(int, link, AT_FDCWD, to, 1, REAL(link)(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    DISTURBED(int, linkat, b, to, 1, REAL(linkat)(a, from, b, to, flags));
}
int symlink(const char *target, const char *path) {
    DISTURBED(int, symlink, AT_FDCWD, path, 1, REAL(symlink)(target, path));
}
int symlinkat(const char *target, int folder, const char *path) {
    DISTURBED(int, symlinkat, folder, path, 1, REAL(symlinkat)(target, folder, path));
}
int unlink(const char *path) { DISTURBED(int, unlink, AT_FDCWD, path, 0, REAL(unlink)(path)); }
int unlinkat(int folder, const char *path, int flags) {
    DISTURBED(int, unlinkat, folder, path, 0, REAL(unlinkat)(folder, path, flags));
}
int rmdir(const char *path) { DISTURBED(int, rmdir, AT_FDCWD, path, 0, REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { DISTURBED(int, mkdir, AT_FDCWD, path, 1, REAL(mkdir)(path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode) {
    DISTURBED(int, mkdirat, folder, path, 1, REAL(mkdirat)(folder, path, mode));
}
int ftruncate64(int file, off64_t size) { DISTURBED(int, ftruncate64, file, NULL, 1, REAL(ftruncate64)(file, size)); }
ssize_t write(int file, const void *data, size_t size) {
    DISTURBED(ssize_t, write, file, NULL, 1, REAL(write)(file, data, size));
}
ssize_t writev(int file, const struct iovec *data, int count) {
    DISTURBED(ssize_t, writev, file, NULL, 1, REAL(writev)(file, data, count));
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    DISTURBED(ssize_t, pwrite64, file, NULL, 1, REAL(pwrite64)(file, data, size, offset));
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    DISTURBED(ssize_t, copy_file_range, to, NULL, 1, REAL(copy_file_range)(from, from_at, to, to_at, size, flags));
}
int fsync(int file) { DISTURBED(int, fsync, file, NULL, 0, REAL(fsync)(file)); }
int fchmod(int file, mode_t mode) { DISTURBED(int, fchmod, file, NULL, 0, REAL(fchmod)(file, mode)); }
int chmod(const char *path, mode_t mode) { DISTURBED(int, chmod, AT_FDCWD, path, 0, REAL(chmod)(path, mode)); }
int execve(const char *path, char *const words[], char *const environment[]) {
    DISTURBED(int, execve, ANYWHERE, path, 0, REAL(execve)(path, words, environment));
}
int execv(const char *path, char *const words[]) { DISTURBED(int, execv, ANYWHERE, path, 0, REAL(execv)(path, words)); }
