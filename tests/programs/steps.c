/* steps N: N lines, 5 ms each. */
#include "pause.h"

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 10;
    for (int i = 1; i <= n; i++) {
        say("%d", i);
        pause_ms(5);
    }
    return 5;
}
