/* reads FILE N: for each line of its input reads 4 KiB from the start of FILE, N times, and prints the nanoseconds of one. */
#include "clock.h"
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char buffer[4096], line[64];
    int fd = argc > 2 ? open(argv[1], O_RDONLY) : -1;
    if (fd < 0)
        fail("open");
    long n = atol(argv[2]);
    while (read(0, line, sizeof line) > 0) {
        double start = now();
        for (long i = 0; i < n; i++)
            if (pread(fd, buffer, sizeof buffer, 0) != sizeof buffer)
                fail("pread");
        printf("%.3f\n", (now() - start) / n);
        fflush(stdout);
    }
    return 0;
}
