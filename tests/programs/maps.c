/* maps: files mapped after the move: private, shared, beyond their end; a library loaded. */
#include "pause.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static sigjmp_buf back;
static void on_bus(int signal) { siglongjmp(back, signal); }

static void touch(const char *what, volatile char *at, int write) {
    int signal = sigsetjmp(back, 1);
    if (!signal)
        say("%s %d", what, write ? *at = 1 : *at);
    else
        say("%s signal %d", what, signal);
}

int main(void) {
    char page[4096], text[16] = {0};
    signal(SIGBUS, on_bus), signal(SIGSEGV, on_bus);
    int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 5; i++)
        memset(page, 'a' + i, sizeof page), TRY(write(fd, page, i == 4 ? 100 : 4096));
    moment();
    char *own = mmap(0, 6 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096);
    touch("first", own, 0), touch("last byte", own + 3 * 4096 + 99, 0), touch("after it", own + 3 * 4096 + 100, 0);
    touch("write", own, 1), touch("beyond", own + 4 * 4096, 0), touch("beyond", own + 4 * 4096, 1);
    char *all = mmap(0, 6 * 4096, PROT_READ, MAP_SHARED, open("mapped", O_RDONLY), 0);
    touch("shared", all + 4096, 0), touch("shared", all, 1), touch("shared beyond", all + 5 * 4096, 0);
    TRY(pread(fd, text, 2, 4096));
    say("  %s", text);
    TRY(mprotect(all, 4096, PROT_READ | PROT_WRITE));
    TRY(mmap(0, 4096, PROT_READ, MAP_PRIVATE, 99, 0) == MAP_FAILED ? -1 : 0);
    TRY(mmap(0, 4096, PROT_READ, MAP_PRIVATE, open(".", O_RDONLY), 0) == MAP_FAILED ? -1 : 0);
    TRY(mmap(0, 0, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0);
    TRY(mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 100) == MAP_FAILED ? -1 : 0);
    TRY(mmap(0, 4096, PROT_READ, MAP_PRIVATE, open("mapped", O_WRONLY), 0) == MAP_FAILED ? -1 : 0);
    TRY(mmap(0, 4096, PROT_READ, 0, fd, 0) == MAP_FAILED ? -1 : 0);
    TRY(mmap(own, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 8192) == own);
    touch("fixed", own, 0), touch("fixed", own, 1), touch("next", own + 4096, 0);
    TRY(munmap(own, 6 * 4096) + mprotect(all, 4096, PROT_NONE));
    touch("nothing", own, 0), touch("none", all, 0);
    TRY(lseek(fd, 0, SEEK_CUR) + close(fd));
    TRY(close(fd));
    TRY(dup(1));
    void *library = dlopen("libm.so.6", RTLD_NOW);
    double (*root)(double) = library ? (double (*)(double))dlsym(library, "cbrt") : 0;
    say("library %.3f", root ? root(27.5) : 0.0);
    say("none: %s", dlopen("libnothing.so", RTLD_NOW) ? "?" : dlerror());
    return 0;
}
