/* lines FILE: reads a file line by line and prints each with its number. */
#include "pause.h"

int main(int argc, char **argv) {
    FILE *in = fopen(argc > 1 ? argv[1] : "", "r");
    if (!in) {
        perror("lines");
        return 2;
    }
    char line[4096];
    for (int n = 1; fgets(line, sizeof line, in); n++) {
        line[strcspn(line, "\n")] = 0;
        say("%d: %s", n, line);
        pause_ms(50);
    }
    return ferror(in) ? 2 : 0;
}
