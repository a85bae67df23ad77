/* clocks TENTHS: reads clocks through the vDSO for so long; no clock may go back. */
#include "pause.h"

int main(int argc, char **argv) {
    clockid_t ids[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_REALTIME};
    struct timespec last[4] = {{0}}, now, start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    long tenths = argc > 1 ? atol(argv[1]) : 20, next = 0, passed = 0;
    while (passed < tenths) {
        for (int i = 0; i < 4; i++) {
            clock_gettime(ids[i], &now);
            if (now.tv_sec < last[i].tv_sec || (now.tv_sec == last[i].tv_sec && now.tv_nsec < last[i].tv_nsec))
                say("clock %d went back", i);
            last[i] = now;
        }
        passed = (last[0].tv_sec - start.tv_sec) * 10 + (last[0].tv_nsec - start.tv_nsec) / 100000000;
        for (; next <= passed && next <= tenths; next += 5)
            say("at %ld", next);
    }
    return 0;
}
