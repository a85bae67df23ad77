/* dup_offsets: one offset and one set of status flags for dup, fork and a passed number; another one for another open. */
#include "rows.h"

int main(void) {
    int go[2], one = MUST(open("text", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char byte, text[8] = {0};
    MUST(write(one, "0123456789abcdef", 16)), MUST(pipe(go)), MUST(lseek(one, 4, SEEK_SET));
    int two = MUST(dup(one)), other = MUST(open("text", O_RDONLY));
    MUST(lseek(other, 10, SEEK_SET));
    int child = CHILD({ MUST(read(go[0], &byte, 1)); read(one, text, 2) == 2 && !strcmp(text, "67") ? 20 : 1; });
    journey_while(child, SYS_read);
    IS(read(two, text, 2) == 2 && !strcmp(text, "45"));
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 20);
    IS(lseek(one, 0, SEEK_CUR) == 8 && lseek(two, 0, SEEK_CUR) == 8 && lseek(other, 0, SEEK_CUR) == 10);
    MUST(fcntl(one, F_SETFL, O_APPEND));
    IS(fcntl(two, F_GETFL) & O_APPEND);
    IS(!(fcntl(other, F_GETFL) & O_APPEND));
    IS(syscall(SYS_kcmp, getpid(), getpid(), 0, one, two) == 0);
    IS(syscall(SYS_kcmp, getpid(), getpid(), 0, one, other) > 0);
    return 0;
}
