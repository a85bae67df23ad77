/* devices: null, zero (mapped too), full and urandom. */
#include "rows.h"

int main(void) {
    char text[64] = {1, 0};
    int null = MUST(open("/dev/null", O_WRONLY)), zero = MUST(open("/dev/zero", O_RDWR)), full = MUST(open("/dev/full", O_WRONLY));
    int random = MUST(open("/dev/urandom", O_RDONLY));
    char *map = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    MUST(map);
    map[5000] = 5;
    journey();
    IS(write(null, text, 64) == 64);
    IS(read(zero, text, 64) == 64 && text[0] == 0);
    IS(write(full, text, 64) == -1 && errno == ENOSPC);
    IS(read(random, text, 64) == 64 && (text[0] || text[1] || text[2] || text[3] || text[4] || text[5]));
    IS(map[0] == 0 && map[5000] == 5);
    return 0;
}
