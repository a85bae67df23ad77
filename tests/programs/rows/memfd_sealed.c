/* memfd_sealed: a memory file that may not be written, grown or shrunk any more; its seals are sealed too. */
#include "rows.h"

int main(void) {
    int fd = MUST(memfd_create("sealed", MFD_ALLOW_SEALING)), open_ = MUST(memfd_create("open", MFD_ALLOW_SEALING));
    int all = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
    char text[16] = {0};
    MUST(write(fd, "unchangeable", 12));
    MUST(fcntl(fd, F_ADD_SEALS, all)), MUST(fcntl(open_, F_ADD_SEALS, F_SEAL_SHRINK));
    char *map = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    MUST(map);
    journey();
    IS(fcntl(fd, F_GET_SEALS) == all);
    IS(pread(fd, text, 12, 0) == 12 && !strcmp(text, "unchangeable") && !strcmp(map, "unchangeable"));
    IS(write(fd, "x", 1) == -1 && errno == EPERM);
    IS(ftruncate(fd, 100) == -1 && errno == EPERM);
    IS(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
    IS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EPERM);
    IS(fcntl(open_, F_GET_SEALS) == F_SEAL_SHRINK);
    IS(fcntl(open_, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    return 0;
}
