/* file_private: a file mapped privately, with pages written and not, and beyond its end. */
#include "rows.h"
#include <setjmp.h>

static sigjmp_buf back;
static void bus(int n) { siglongjmp(back, n); }

int main(void) {
    int fd = MUST(open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char text[100];
    for (int i = 0; i < 300; i++)
        MUST(write(fd, text, snprintf(text, sizeof text, "This is line %03d of the file.\n", i)));
    char *map = mmap(0, 4 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *part = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 4096);
    MUST(map), MUST(part);
    memcpy(map + 13, "THREE", 5);
    signal(SIGBUS, bus);
    journey();
    IS(!strncmp(map, "This is line THREEf the", 23));
    IS(!strncmp(map + 30 * 200, "This is line 200 of", 19));
    IS(map[4096] == part[0] && !memcmp(map + 4096, part, 4096));
    MUST(pread(fd, text, 16, 0));
    IS(!strncmp(text, "This is line 000", 16));
    int caught = sigsetjmp(back, 1);
    if (!caught)
        caught = map[3 << 12];
    IS(caught == SIGBUS);
    IS(lseek(fd, 0, SEEK_CUR) == 30 * 300);
    return 0;
}
