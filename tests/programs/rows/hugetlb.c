/* hugetlb: memory of reserved huge pages, where the host has some to give. */
#include "rows.h"

int main(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE;
    char *huge = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, flags, -1, 0);
    MUST(huge);
    journey();
    /* Without a reservation the pages are there or not, but the area is one of huge pages: its parts cannot be unmapped. */
    IS(munmap(huge + 4096, 4096) == -1 && errno == EINVAL);
    IS(munmap(huge, 4 << 20) == 0);
    return 0;
}
