/* memfd: a memory file, mapped shared, read and written by descriptor, also by a child. */
#include "rows.h"

int main(void) {
    int go[2], fd = MUST(memfd_create("row memory", MFD_CLOEXEC));
    char byte, text[32] = {0}, path[64];
    MUST(ftruncate(fd, 1 << 20)), MUST(pipe(go));
    char *map = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(map);
    strcpy(map + 5000, "by the mapping");
    MUST(pwrite(fd, "by write", 9, 900000));
    MUST(lseek(fd, 5003, SEEK_SET));
    int child = CHILD({ MUST(read(go[0], &byte, 1)); pwrite(fd, "child", 6, 100) == 6 && map[5000] == 'B' ? 15 : 1; });
    journey_while(child, SYS_read);
    IS(read(fd, text, 11) == 11 && !strcmp(text, "the mapping"));
    IS(!strcmp(map + 900000, "by write"));
    map[5000] = 'B';
    MUST(pread(fd, text, 14, 5000));
    IS(!strcmp(text, "By the mapping"));
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 15);
    IS(!strcmp(map + 100, "child"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int n = readlink(path, text, sizeof text - 1);
    IS(n > 0 && !strncmp(text, "/memfd:row memory", 17));
    IS(lseek(fd, 0, SEEK_END) == 1 << 20);
    return 0;
}
