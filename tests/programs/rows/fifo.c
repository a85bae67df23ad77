/* fifo: a named pipe with bytes in it, open at both ends in two processes. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    char text[16] = {0};
    unlink("fifo");
    MUST(mkfifo("fifo", 0600));
    int child = CHILD({
        int to = MUST(open("fifo", O_WRONLY));
        MUST(write(to, "in flight", 9));
        pause();
        0;
    });
    int from = MUST(open("fifo", O_RDONLY));
    wait_blocked(child, SYS_pause);
    journey();
    IS(read(from, text, 15) == 9 && !strcmp(text, "in flight"));
    IS(fcntl(from, F_SETFL, O_NONBLOCK) == 0 && read(from, text, 15) == -1 && errno == EAGAIN);
    int again = open("fifo", O_WRONLY | O_NONBLOCK);
    IS(again >= 0 && write(again, "again", 5) == 5);
    IS(read(from, text, 15) == 5 && !strncmp(text, "again", 5));
    close(again);
    MUST(kill(child, SIGTERM));
    IS(ended(child) == 1000 + SIGTERM);
    IS(read(from, text, 15) == 0);
    return 0;
}
