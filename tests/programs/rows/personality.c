/* personality: flags of the execution domain stay and are obeyed by what is executed later. */
#include "rows.h"
#include <sys/personality.h>

int main(void) {
    MUST(personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC));
    journey();
    IS(personality(-1) == (ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC));
    char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(map, "\xb8\x2b\x00\x00\x00\xc3", 6); /* mov $43, %eax; ret */
    IS(((int (*)(void))map)() == 43);
    return 0;
}
