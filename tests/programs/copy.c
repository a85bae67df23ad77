/* copy IN OUT: reads a file line by line and writes another, in capitals and numbered; says how far it is. */
#include <ctype.h>
#include "pause.h"

int main(int argc, char **argv) {
    FILE *in = argc > 2 ? fopen(argv[1], "r") : 0, *out = in ? fopen(argv[2], "w") : 0;
    if (!out) {
        perror("copy");
        return 2;
    }
    char line[4096];
    int n = 0;
    while (fgets(line, sizeof line, in)) {
        for (char *c = line; *c; c++)
            *c = (char)toupper((unsigned char)*c);
        fprintf(out, "%d %s", ++n, line);
        fflush(out);
        say("wrote %d", n);
        pause_ms(50);
    }
    return fclose(out) || ferror(in) ? 2 : 0;
}
