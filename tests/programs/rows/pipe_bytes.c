/* pipe_bytes: pipes with bytes in them, one of packets, one full, one whose writer is gone, one of another size. */
#include "rows.h"

int main(void) {
    int plain[2], packets[2], full[2], ended_[2];
    static char text[70000];
    MUST(pipe(plain)), MUST(pipe2(packets, O_DIRECT)), MUST(pipe2(full, O_NONBLOCK | O_CLOEXEC)), MUST(pipe(ended_));
    MUST(write(plain[1], "in flight", 9)), MUST(write(packets[1], "one", 3)), MUST(write(packets[1], "two", 3));
    MUST(fcntl(full[1], F_SETPIPE_SZ, 8192));
    int room = write(full[1], text, sizeof text);
    MUST(write(ended_[1], "last", 4)), close(ended_[1]);
    journey();
    IS(read(plain[0], text, 2) == 2 && read(plain[0], text + 2, 100) == 7 && !strcmp(text, "in flight"));
    IS(read(packets[0], text, 100) == 3 && !strncmp(text, "one", 3) && read(packets[0], text, 100) == 3 && !strncmp(text, "two", 3));
    IS(room == 8192 && fcntl(full[1], F_GETPIPE_SZ) == 8192);
    IS(write(full[1], "x", 1) == -1 && errno == EAGAIN);
    IS(read(full[0], text, sizeof text) == room && read(full[0], text, 1) == -1 && errno == EAGAIN);
    IS(read(ended_[0], text, 100) == 4 && read(ended_[0], text, 100) == 0);
    IS(write(plain[1], "more", 4) == 4 && read(plain[0], text, 100) == 4);
    close(plain[0]);
    signal(SIGPIPE, SIG_IGN);
    IS(write(plain[1], "x", 1) == -1 && errno == EPIPE);
    return 0;
}
