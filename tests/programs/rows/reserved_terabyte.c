/* reserved_terabyte: address space reserved by the terabyte, a few pages of it in use. */
#include "rows.h"

int main(void) {
    long size = 1L << 40;
    char *none = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *some = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(none), MUST(some);
    MUST(mprotect(none + size / 2, 8192, PROT_READ | PROT_WRITE));
    none[size / 2] = 1, some[0] = 2, some[size / 3] = 3, some[size - 1] = 4;
    journey();
    IS(none[size / 2] == 1 && none[size / 2 + 4096] == 0);
    IS(some[0] == 2 && some[size / 3] == 3 && some[size - 1] == 4 && some[size / 2] == 0);
    MUST(mprotect(none + size - 4096, 4096, PROT_READ | PROT_WRITE));
    IS(none[size - 1] == 0);
    IS(munmap(none, size) == 0 && munmap(some, size) == 0);
    return 0;
}
