/* compute ROUNDS: a long computation that prints nothing; its result is its exit status. */
#include "pause.h"

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], 0, 10) : 1000000000, x = 1;
    double y = 1;
    for (unsigned long i = 0; i < rounds; i++) {
        x = x * 6364136223846793005UL + 1442695040888963407UL;
        y = y * 0.999 + (double)(x >> 60);
    }
    return (int)((x >> 33) + (unsigned long)y) % 100 + 1;
}
