/* loops KIND N [FILE]: does one thing N times and prints how many nanoseconds each took. */
#include "clock.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile uint64_t sink;

static void compute(long n) {
    uint64_t x = 88172645463325252;
    while (n--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

static void spawn(const char *self) {
    pid_t child = fork();
    if (child == 0) {
        execl(self, self, "nothing", "0", (char *)0);
        _exit(1);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        fail("spawn");
}

static void open_and_close(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0 || close(fd) != 0)
        fail(path);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    const char *kind = argv[1];
    long n = atol(argv[2]);
    double start = now();
    if (strcmp(kind, "compute") == 0)
        compute(n);
    for (long i = 0; i < n; i++) {
        if (strcmp(kind, "getppid") == 0)
            syscall(SYS_getppid);
        else if (strcmp(kind, "open") == 0)
            open_and_close(argv[3]);
        else if (strcmp(kind, "spawn") == 0)
            spawn(argv[0]);
        else
            break;
    }
    if (n > 0)
        printf("%.3f\n", (now() - start) / n);
    return 0;
}
