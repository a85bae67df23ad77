/* monotonic_clocks: none of them jumps back, and none of them jumps far ahead. */
#include "rows.h"

int main(void) {
    static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME};
    double before[5], after[5];
    struct timespec raw;
    for (int i = 0; i < 5; i++)
        before[i] = seconds(clocks[i]);
    journey();
    for (int i = 0; i < 5; i++) {
        after[i] = seconds(clocks[i]);
        say("clock %d: %s", clocks[i], after[i] >= before[i] && after[i] < before[i] + 120 ? "yes" : "NO");
    }
    /* The call and the vDSO agree. */
    IS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &raw) == 0 && raw.tv_sec + raw.tv_nsec / 1e9 >= after[0]);
    IS(seconds(CLOCK_MONOTONIC) >= raw.tv_sec + raw.tv_nsec / 1e9);
    return 0;
}
