/* file_shared: a file mapped shared and writable by two processes; what one writes is in the file and at the other. */
#include "rows.h"

int main(void) {
    int go[2], fd = MUST(open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char text[32] = {0}, byte;
    MUST(ftruncate(fd, 3 << 12)), MUST(pipe(go));
    char *map = mmap(0, 3 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(map);
    strcpy(map, "before");
    int child = CHILD({
        MUST(read(go[0], &byte, 1));
        int right = !strcmp(map, "after") && !strcmp(map + 5000, "by write");
        strcpy(map + 8192, "the child");
        right ? 13 : 1;
    });
    journey_while(child, SYS_read);
    IS(!strcmp(map, "before"));
    strcpy(map, "after");
    MUST(pwrite(fd, "by write", 9, 5000));
    IS(!strcmp(map + 5000, "by write"));
    MUST(pread(fd, text, 6, 0));
    IS(!strcmp(text, "after"));
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 13);
    IS(!strcmp(map + 8192, "the child"));
    MUST(msync(map, 3 << 12, MS_SYNC));
    MUST(pread(fd, text, 10, 8192));
    IS(!strcmp(text, "the child"));
    return 0;
}
