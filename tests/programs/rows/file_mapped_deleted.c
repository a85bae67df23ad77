/* file_mapped_deleted: a file without a name, mapped shared by two processes and private. */
#include "rows.h"

int main(void) {
    int go[2], fd = MUST(open("gone", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char byte;
    MUST(ftruncate(fd, 8192)), MUST(pipe(go)), MUST(unlink("gone"));
    char *shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(shared);
    strcpy(shared, "a file"), strcpy(shared + 4096, "without a name");
    char *private = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    MUST(private);
    private[0] = 'A';
    close(fd);
    int child = CHILD({ MUST(read(go[0], &byte, 1)); strcmp(shared, "one file") ? 1 : 14; });
    journey_while(child, SYS_read);
    IS(!strcmp(shared, "a file") && !strcmp(shared + 4096, "without a name"));
    IS(!strcmp(private, "A file") && !strcmp(private + 4096, "without a name"));
    strcpy(shared, "one file");
    IS(!strcmp(private, "A file"));
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 14);
    IS(access("gone", F_OK) == -1);
    return 0;
}
