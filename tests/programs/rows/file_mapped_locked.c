/* file_mapped_locked: a record lock on a file that is also mapped, shared and private; a child that asks is refused. */
#include "rows.h"

static int refused(int from) {
    struct flock lock = {F_WRLCK, SEEK_SET, from, 10};
    return fcntl(open("locked", O_RDWR), F_SETLK, &lock) == -1;
}

int main(void) {
    struct flock range = {F_WRLCK, SEEK_SET, 100, 10};
    int fd = MUST(open("locked", O_RDWR | O_CREAT | O_TRUNC, 0600)), other = MUST(open("locked", O_RDONLY));
    char text[8] = {0};
    MUST(ftruncate(fd, 2 << 12));
    char *map = mmap(0, 2 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *own = mmap(0, 2 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE, other, 0);
    MUST(map), MUST(own);
    strcpy(map, "shared"), strcpy(own + 4096, "private");
    MUST(fcntl(fd, F_SETLK, &range));
    journey();
    int child = CHILD({ refused(105) + 2 * refused(110); });
    IS(ended(child) == 1);
    IS(!strcmp(map, "shared") && !strcmp(own, "shared") && !map[4096] && !strcmp(own + 4096, "private"));
    strcpy(map, "SHARED");
    MUST(pread(other, text, 6, 0));
    IS(!strcmp(text, "SHARED"));
    range.l_type = F_UNLCK;
    MUST(fcntl(fd, F_SETLK, &range));
    child = CHILD({ refused(105); });
    IS(ended(child) == 0);
    return 0;
}
