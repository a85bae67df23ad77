/* sparse_memory: 8 GiB, of which 16 pages hold data, 16,000 were only read, and 16 were written with zeros: 64 MiB of
   image are by far enough (the matrix looks at its size). */
#include "rows.h"

int main(void) {
    long size = 8L << 30, sum = 0, zeros = 0;
    char *map = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(map), MUST(madvise(map, size, MADV_NOHUGEPAGE));
    for (long i = 0; i < 16; i++)
        map[i * size / 16] = i + 1, memset(map + i * size / 16 + (1 << 20), 0, 4096);
    for (long i = 0; i < 16000; i++)
        zeros += map[size / 32 + i * 4096];
    journey();
    for (long i = 0; i < 16; i++)
        sum += map[i * size / 16] == i + 1;
    for (long i = 0; i < 16000; i++)
        zeros += map[size / 32 + i * 4096];
    IS(sum == 16 && zeros == 0);
    return 0;
}
