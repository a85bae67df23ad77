/* exchange WHO: two processes, 0 and 1, count in a mapped file, by turns and under a record lock; then each maps it anew and
   waits for what the other writes, without a call. "exchange 0" kills itself in the end, right after it has written to the file. */
#include "pause.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

enum { ROUNDS = 100, SIZE = 3 << 12 };

static void lock(int fd, int type) {
    struct flock range = {type, SEEK_SET, 64, 1};
    if (fcntl(fd, F_SETLKW, &range))
        say("fcntl: %s", strerror(errno)), exit(1);
}

/* False: it has not come in a time in which no computer is that slow. */
static int comes(volatile int *word, int value) {
    struct timespec from, now;
    clock_gettime(CLOCK_MONOTONIC, &from), now = from;
    while (*word != value && now.tv_sec < from.tv_sec + 30)
        clock_gettime(CLOCK_MONOTONIC, &now);
    return *word == value;
}

int main(int argc, char **argv) {
    int me = argc > 1 && *argv[1] == '1', fd = open("exchanged", O_RDWR | O_CREAT, 0600), mine = 0;
    if (ftruncate(fd, SIZE))
        return 1;
    volatile int *map = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    moment();
    while (mine < ROUNDS) {
        lock(fd, F_WRLCK);
        if (map[0] % 2 == me) {
            map[1024 + me] += map[0];
            map[2048 + map[0]] = map[0] + me;
            map[0]++, mine++;
        }
        lock(fd, F_UNLCK);
        pause_ms(1);
    }
    say("%d", comes(&map[0], 2 * ROUNDS));
    munmap((void *)map, SIZE);
    map = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    moment();
    map[1030 + me] = 1;
    int wrong = !comes(&map[1031 - me], 1) + 2 * !comes(&map[1024], ROUNDS * (ROUNDS - 1)) + 4 * !comes(&map[1025], ROUNDS * ROUNDS);
    for (int i = 0; i < 2 * ROUNDS; i++)
        wrong |= 8 * (map[2048 + i] != i + i % 2);
    say("wrong: %d", wrong);
    map[1040 + me] = 7;
    if (!me)
        kill(getpid(), SIGKILL);
    return 0;
}
