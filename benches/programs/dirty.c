/* dirty MIB: fills that much memory with random bytes and goes on rewriting some pages of it, 16 each millisecond. Prints
 * the milliseconds of each pause between two steps that is longer than 5 ms; SIGTERM makes it look whether every byte is
 * still as it was, and end with 0 if so. */
#include "clock.h"
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

enum { PAGE = 512 /* words */ };
static volatile sig_atomic_t over;

static void end(int signal) {
    (void)signal;
    over = 1;
}

/* splitmix64: what word number i is. */
static uint64_t word(uint64_t i) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

int main(int argc, char **argv) {
    size_t words = (argc > 1 ? strtoul(argv[1], 0, 10) : 64) << 17;
    uint64_t *memory = mmap(0, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    for (size_t i = 0; i < words; i++)
        memory[i] = word(i);
    signal(SIGTERM, end);
    puts("ready");
    fflush(stdout);
    double last = now();
    for (uint64_t step = 0; !over; step++) {
        for (int i = 0; i < 16; i++) {
            size_t at = word(step * 16 + i) % (words / PAGE) * PAGE;
            *(volatile uint64_t *)&memory[at] = word(at);
        }
        nanosleep(&(struct timespec){0, 1000000}, 0);
        double here = now();
        if (here - last > 5e6) {
            printf("%.3f\n", (here - last) / 1e6);
            fflush(stdout);
            here = now(); /* the line may have gone to another host */
        }
        last = here;
    }
    for (size_t i = 0; i < words; i++)
        if (memory[i] != word(i))
            return 1;
    return 0;
}
