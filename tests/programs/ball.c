/* ball MIB FILE: memory of many kinds holds a known pattern and is checked all the time, while a timer interrupts every 5 ms;
   numbers go to stdout and to FILE. SIGTERM ends it with 0; what is not as it was, with "bad" and 1. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>
#include "pause.h"

enum { PAGE = 4096, HOLES = 32, BLOCKS = 500 };
static volatile sig_atomic_t alarms, term;
static sigjmp_buf fault;
static __thread uint64_t tls[512];

static uint64_t pattern(uint64_t n) {
    n = (n + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
    n = (n ^ n >> 27) * 0x94d049bb133111eb;
    return n ^ n >> 31;
}
static void fill(void *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++)
        ((uint64_t *)at)[i] = pattern(seed + i);
}
static void check(const char *what, const void *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++)
        if (((const uint64_t *)at)[i] != pattern(seed + i)) {
            say("bad %s: word %zu at %p is %lx", what, i, (void *)((const uint64_t *)at + i), ((const uint64_t *)at)[i]);
            _exit(1);
        }
}
static void handler(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    if (signal == SIGSEGV)
        siglongjmp(fault, 1);
    alarms += signal == SIGALRM, term += signal == SIGTERM;
}
static void *map(size_t bytes, int flags) {
    void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED)
        _exit(2);
    return at;
}
static int faults(volatile char *at) {
    if (sigsetjmp(fault, 1))
        return 1;
    (void)*at;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    size_t bytes = atol(argv[1]) << 20, sparse_bytes = 1UL << 30, step = sparse_bytes / 16;
    char alternate[16384];
    stack_t other = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&other, 0);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &action, 0), sigaction(SIGTERM, &action, 0), sigaction(SIGSEGV, &action, 0);

    uint64_t stack[4096];
    char *big = map(bytes, MAP_PRIVATE), *holes = map(2 * HOLES * PAGE, MAP_PRIVATE), *shared = map(16 * PAGE, MAP_SHARED);
    char *sparse = map(sparse_bytes, MAP_PRIVATE | MAP_NORESERVE), *block[BLOCKS];
    fill(big, bytes, 1), fill(stack, sizeof stack, 2), fill(tls, sizeof tls, 3), fill(shared, 16 * PAGE, 4);
    fill(holes, 2 * HOLES * PAGE, 5);
    for (int i = 0; i < HOLES; i++) /* one page of two: unreadable with contents, or read-only */
        mprotect(holes + 2 * i * PAGE, PAGE, i % 2 ? PROT_NONE : PROT_READ);
    for (int i = 0; i < 16; i++)
        fill(sparse + i * step, PAGE, 6 + i);
    for (int i = 0; i < BLOCKS; i++)
        fill(block[i] = malloc(8 * (i + 1)), 8 * (i + 1), 1000 * i);

    int file = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    struct itimerval every = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &every, 0);
    for (int i = 1; !term; i++) {
        size_t part = bytes / 16;
        check("pages", big + i % 16 * part, part, 1 + i % 16 * part / 8);
        check("stack", stack, sizeof stack, 2), check("TLS", tls, sizeof tls, 3), check("shared memory", shared, 16 * PAGE, 4);
        for (int j = 0; j < BLOCKS; j++)
            check("heap", block[j], 8 * (j + 1), 1000 * j);
        for (int j = 0; j < 16; j++) {
            check("sparse memory", sparse + j * step, PAGE, 6 + j);
            if (sparse[j * step + PAGE + i % PAGE])
                return say("bad hole in sparse memory"), 1;
        }
        for (int j = 0; j < HOLES; j++) {
            char *page = holes + 2 * j * PAGE;
            check("page between holes", page + PAGE, PAGE, 5 + (2 * j + 1) * PAGE / 8);
            if (j % 2 == 0)
                check("read-only page", page, PAGE, 5 + 2 * j * PAGE / 8);
            else if (j == i % HOLES) {
                if (!faults(page))
                    return say("bad: a hole can be read"), 1;
                mprotect(page, PAGE, PROT_READ);
                check("hole", page, PAGE, 5 + 2 * j * PAGE / 8);
                mprotect(page, PAGE, PROT_NONE);
            }
        }
        char line[16];
        int length = snprintf(line, sizeof line, "%d\n", i), to[2] = {1, file};
        for (int j = 0; j < 2; j++) {
            errno = 0;
            long wrote = write(to[j], line, length);
            if (wrote != length)
                return say("bad: a write to %d gave %ld: %m", to[j], wrote), 1;
        }
        pause_ms(5);
    }
    check("pages", big, bytes, 1);
    say(alarms ? "done" : "bad: no alarm came");
    return !alarms;
}
