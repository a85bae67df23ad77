/* count N: counts to N, a line and a short sleep each. */
#include "pause.h"

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 40;
    for (int i = 1; i <= n; i++) {
        say("%d", i);
        pause_ms(60);
    }
    return 3;
}
