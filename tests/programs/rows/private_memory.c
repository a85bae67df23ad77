/* private_memory: private areas of every protection, copy-on-write between a process and its child. */
#include "rows.h"

static char data[20000] = "data", bss[20000];

int main(void) {
    int go[2], sum = 0;
    char byte, *heap = malloc(100000), *many = mmap(0, 16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const int protections[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
    MUST(many), MUST(pipe(go));
    for (int i = 0; i < 16; i++) {
        memset(many + (i << 12), i + 1, 4096);
        MUST(mprotect(many + (i << 12), 4096, protections[i % 4]));
    }
    strcpy(heap + 90000, "heap"), strcpy(bss + 15000, "bss"), data[19999] = 'x';
    int child = CHILD({
        strcpy(heap + 90000, "mine"), data[0] = 'D';
        MUST(read(go[0], &byte, 1));
        !strcmp(heap + 90000, "mine") && !strcmp(data, "Data") && !strcmp(bss + 15000, "bss") ? 12 : 1;
    });
    journey_while(child, SYS_read);
    IS(!strcmp(heap + 90000, "heap") && !strcmp(data, "data") && data[19999] == 'x' && !strcmp(bss + 15000, "bss"));
    MUST(mprotect(many, 16 << 12, PROT_READ));
    for (int i = 0; i < 16 << 12; i++)
        sum += many[i] == (i >> 12) + 1;
    IS(sum == 16 << 12);
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 12);
    return 0;
}
