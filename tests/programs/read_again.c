/* read_again PATH: opens, reads and closes PATH ten times a second, 40 times, and prints what it finds. */
#include <fcntl.h>
#include "pause.h"

int main(int argc, char **argv) {
    for (int i = 1; argc > 1 && i <= 40; i++) {
        char text[64] = {0};
        int fd = open(argv[1], O_RDONLY);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        say("%d %s", i, n < 0 ? strerror(errno) : text);
        if (fd >= 0)
            close(fd);
        pause_ms(50);
    }
    return 0;
}
