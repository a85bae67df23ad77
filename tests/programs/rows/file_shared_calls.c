/* file_shared_calls: what one process writes to a mapped file another reads, copies, cuts and lengthens by calls. */
#include "rows.h"
#include <setjmp.h>
#include <sys/sendfile.h>

static sigjmp_buf back;
static void on_bus(int signal) { siglongjmp(back, signal); }
static int signal_at(volatile char *at) {
    int signal = sigsetjmp(back, 1);
    return signal ? signal : (*at, 0);
}

static int go[2], come[2];
static void turn(int from, int to) {
    char byte;
    MUST(write(to, "x", 1)), MUST(read(from, &byte, 1));
}

static int by_calls(int fd, int copy) {
    char text[32] = {0}, byte;
    off_t from = 4090, to = 100;
    MUST(read(go[0], &byte, 1));
    int right = pread(fd, text, 16, from) == 16 && !strcmp(text, "ACROSS two pages");
    right &= sendfile(copy, fd, &from, 16) == 16 && pread(copy, text, 16, 0) == 16 && !strcmp(text, "ACROSS two pages");
    from = 4097;
    right &= copy_file_range(fd, &from, copy, &to, 3, 0) == 3 && pread(copy, text, 3, 100) == 3 && !memcmp(text, "two", 3);
    MUST(ftruncate(fd, 1 << 12));
    turn(go[0], come[1]);
    MUST(ftruncate(fd, 6 << 12)), MUST(pwrite(fd, "longer", 7, 5 << 12));
    turn(go[0], come[1]);
    right &= pread(fd, text, 5, 5 << 12) == 5 && !strcmp(text, "MORE");
    MUST(write(come[1], "x", 1));
    return right ? 17 : 1;
}

int main(void) {
    int fd = MUST(open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600)), copy = MUST(open("copy", O_RDWR | O_CREAT, 0600));
    signal(SIGBUS, on_bus);
    MUST(ftruncate(fd, 4 << 12)), MUST(pipe(go)), MUST(pipe(come));
    char *map = mmap(0, 8 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(map);
    strcpy(map + 4090, "across two pages");
    int child = CHILD(by_calls(fd, copy));
    journey_while(child, SYS_read);
    memcpy(map + 4090, "ACROSS", 6);
    turn(come[0], go[1]);
    IS(signal_at(map + 4096) == SIGBUS);
    IS(signal_at(map + 4095) == 0 && map[4095] == 'S');
    turn(come[0], go[1]);
    IS(signal_at(map + 4096) == 0 && map[4097] == 0);
    IS(!strcmp(map + (5 << 12), "longer") && signal_at(map + (6 << 12)) == SIGBUS);
    char *more = mmap(0, 1 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 5 << 12);
    strcpy(more, "MORE");
    IS(!strcmp(map + (5 << 12), "MORE") && msync(more, 1 << 12, MS_SYNC) == 0);
    turn(come[0], go[1]);
    IS(munmap(more, 1 << 12) == 0 && ended(child) == 17);
    return 0;
}
