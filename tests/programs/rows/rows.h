/* What the rows of the matrix share. Each row sets something up, calls journey() or journey_while(), and checks again.
   A journey compares what the process sees of itself before and after it; all that may differ is in `permitted`. */
#include "../pause.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* One line of the verdict; a plain run says "yes" everywhere, or the row itself is wrong. */
#define IS(what) say("%s: %s", #what, (what) ? "yes" : "NO")
/* For what has to work before the journey. */
#define MUST(call) ({ long must_ = (long)(call); if (must_ == -1) say("%s: NO, %s", #call, strerror(errno)), _exit(1); must_; })

/* Away from home, timers and timeouts that are kept at home ring early by the clock of the guest, which lags behind by
   what the move took, seconds. */
#define LAG 1

#define VIEW (1 << 17)
static char seen_before[VIEW], seen_after[VIEW], scratch[VIEW];

static int slurp(const char *path, char *to, int room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), n = 0, got;
    while (fd >= 0 && n < room - 1 && (got = read(fd, to + n, room - 1 - n)) > 0)
        n += got;
    to[n] = 0;
    if (fd >= 0)
        close(fd);
    return n;
}

/* What may differ after a journey. "NAME" names a line of a view; everything else must be equal to the letter.
   PPid      a restored job's first process is nobody's child that it could see
   Seccomp_filters, Seccomp  at the destination there is one more filter than at home
   TracerPid nobody's, but read while frozen it may be ours
   SigQ      the second number is the limit, the first one counts all the user's processes of that host
   NStgid.., Vm.., Rss.., ..ctxt_switches, Mems_allowed.., THP_enabled: of the host, or of the moment
   untag_mask, x86_Thread.. : of the CPU's kernel
   maps      neighbours of equal rights may be one area or two; mapped files are copies away from home, so names and
             offsets are not compared; the pages below 0x60000 are ours; vvar and vsyscall are the kernel's
   ..Pnd     timers go on; signals that are read from a descriptor wait at the origin; the rows look at them one by one
   ipc       who used a System V object last cannot be set again, so it is not looked at
   fds       numbers of pipes, sockets and mounts are those of another kernel; a file that had no name has none, but not
             that one, and it is not known whether it ever had one (O_TMPFILE) */
static const char *const permitted[] = {"PPid", "Seccomp", "TracerPid", "SigQ", "SigPnd", "ShdPnd", "NS", "Vm", "Rss", "voluntary_ctxt", "nonvoluntary_ctxt",
    "Mems_allowed", "HugetlbPages", "FDSize", "Cpus_allowed", "untag_mask", "x86_Thread", "Speculation", "THP_enabled", "Kthread", "CoreDumping", 0};

static char *see_status(char *to, char *end, const char *path) {
    slurp(path, scratch, VIEW);
    for (char *line = strtok(scratch, "\n"); line; line = strtok(0, "\n")) {
        int skip = 0;
        for (int i = 0; permitted[i]; i++)
            skip |= !strncmp(line, permitted[i], strlen(permitted[i]));
        if (!skip)
            to += snprintf(to, end - to, "%s\n", line);
    }
    return to;
}

static char *see_maps(char *to, char *end) {
    unsigned long from, until, open_from = 0, open_until = 0;
    char rights[8], open_rights[8] = "", name[64];
    slurp("/proc/self/maps", scratch, VIEW);
    for (char *line = strtok(scratch, "\n"); line; line = strtok(0, "\n")) {
        *name = 0;
        sscanf(line, "%lx-%lx %7s %*s %*s %*s %63s", &from, &until, rights, name);
        if (until <= 0x60000 || !strncmp(name, "[v", 2))
            continue;
        if (from == open_until && !strcmp(rights, open_rights)) {
            open_until = until;
            continue;
        }
        if (open_until)
            to += snprintf(to, end - to, "area %lx-%lx %s\n", open_from, open_until, open_rights);
        open_from = from, open_until = until, strcpy(open_rights, rights);
    }
    return to + snprintf(to, end - to, "area %lx-%lx %s\n", open_from, open_until, open_rights);
}

static char *see_descriptors(char *to, char *end) {
    char path[64], target[300], info[2000];
    for (int fd = 0; fd < 64; fd++) {
        int got_fd = fcntl(fd, F_GETFD), got_fl = fcntl(fd, F_GETFL);
        if (got_fd == -1)
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        if (!strncmp(target, "pipe:", 5) || !strncmp(target, "socket:", 7))
            *strchr(target, ':') = 0;
        int nameless = n > 10 && !strcmp(target + n - 10, " (deleted)") && !strstr(target, "memfd:");
        if (nameless)
            strcpy(target, "(deleted)"), got_fl &= ~(O_TMPFILE | O_DIRECTORY);
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        slurp(path, info, sizeof info);
        long position = 0, flags = 0;
        sscanf(info, "pos: %ld flags: %lo", &position, &flags);
        /* The standard streams of a restored job are those of who restores it. */
        if (fd < 3)
            to += snprintf(to, end - to, "fd %d %x\n", fd, got_fd);
        else
            to += snprintf(to, end - to, "fd %d %x %x %s %ld %lo\n", fd, got_fd, got_fl, target, position,
                flags & ~(nameless ? O_TMPFILE | O_DIRECTORY : 0));
    }
    return to;
}

static void see(char *to) {
    char *end = to + VIEW, *const one[] = {"cmdline", "comm", "oom_score_adj", "personality", "coredump_filter"}, path[64];
    to = see_status(to, end, "/proc/self/status");
    to = see_status(to, end, "/proc/self/limits");
    to = see_maps(to, end);
    to = see_descriptors(to, end);
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", one[i]);
        int n = slurp(path, scratch, VIEW);
        for (int j = 0; j < n; j++)
            scratch[j] = scratch[j] && scratch[j] != '\n' ? scratch[j] : ' ';
        to += snprintf(to, end - to, "%s %s\n", one[i], scratch);
    }
    int n = slurp("/proc/self/environ", scratch, VIEW), sum = 0;
    for (int i = 0; i < n; i++)
        sum = sum * 31 + scratch[i];
    to += snprintf(to, end - to, "environ %d bytes, sum %x\ncwd %s\n", n, sum, getcwd(scratch, VIEW) ? scratch : "?");
    to += snprintf(to, end - to, "nice %d policy %d timer slack %d\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0),
        prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
}

/* Says every line of one view that the other one lacks. */
static void lacking(const char *sign, const char *of, const char *in) {
    for (const char *line = of; *line; line += strcspn(line, "\n") + 1) {
        int n = strcspn(line, "\n");
        char wanted[700];
        snprintf(wanted, sizeof wanted, "\n%.*s\n", n, line);
        if (strncmp(in, wanted + 1, n + 1) && !strstr(in, wanted))
            say("%s %.*s", sign, n, line);
    }
}

/* Lets the stack grow now by more than looking needs. */
__attribute__((noinline)) static void grow_stack(void) {
    volatile char room[1 << 16] = {0};
    for (int i = 0; i < 1 << 16; i += 4096)
        room[i] = room[0] + 1;
}

/* The journey is made between "ready" and a line on stdin; then what was seen is compared. */
static inline void journey(void) {
    say("begin");
    grow_stack();
    see(seen_before);
    moment();
    see(seen_after);
    if (strcmp(seen_before, seen_after))
        say("seen of itself: NO, differs"), lacking("-", seen_before, seen_after), lacking("+", seen_after, seen_before);
    else
        say("seen of itself: the same");
}

/* Waits until a thread (of this job) waits in this system call. */
static inline void wait_blocked(int tid, long number) {
    char path[64], text[200], state;
    for (;; sched_yield()) {
        snprintf(path, sizeof path, "/proc/%d/stat", tid);
        slurp(path, text, sizeof text);
        snprintf(path, sizeof path, "/proc/%d/syscall", tid);
        if (!strrchr(text, ')') || sscanf(strrchr(text, ')'), ") %c", &state) != 1 || state != 'S')
            continue;
        slurp(path, text, sizeof text);
        if (atol(text) == number)
            return;
    }
}

/* The journey is made while thread `tid` waits in that system call. */
static inline void journey_while(int tid, long number) {
    wait_blocked(tid, number);
    journey();
}

/* Wakes waiters at a word until there were that many: after a journey they may still be on their way there. False: they
   never came. */
static inline int woken(int *word, int operation, unsigned mask, int many) {
    struct timespec from, now;
    int n = 0;
    clock_gettime(CLOCK_MONOTONIC, &from), now = from;
    for (; n < many && now.tv_sec < from.tv_sec + 20; sched_yield(), clock_gettime(CLOCK_MONOTONIC, &now))
        n += syscall(SYS_futex, word, operation, many - n, 0, 0, mask);
    return n == many;
}

/* Starts a thread. */
static inline pthread_t start(void *(*body)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, 0, body, argument))
        say("pthread_create: NO"), _exit(1);
    return thread;
}

/* Forks; the child does the block and exits with its last value. */
#define CHILD(...) ({ int child_ = MUST(fork()); if (child_ == 0) { int status_ = (__VA_ARGS__); _exit(status_); } child_; })

/* The exit status of a child, or 1000 + the signal that ended it. */
static inline int ended(int child) {
    int status = 0;
    MUST(waitpid(child, &status, __WALL));
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static inline double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
