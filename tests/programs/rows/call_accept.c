/* call_accept: accept at a listener by path and at an abstract one, each in a thread. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/un.h>

static int listeners[2], tids[2];

static void *accepts(void *which) {
    char text[8] = {0};
    int n = (intptr_t)which;
    tids[n] = gettid();
    int fd = accept4(listeners[n], 0, 0, SOCK_CLOEXEC);
    return (void *)(intptr_t)(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && read(fd, text, 8) == 5 && !strcmp(text, "hello"));
}

int main(void) {
    struct sockaddr_un names[2] = {{AF_UNIX, "accepts"}, {AF_UNIX, ""}};
    pthread_t threads[2];
    snprintf(names[1].sun_path, sizeof names[1].sun_path, "%caccepts %d", 0, getpid());
    unlink("accepts");
    for (intptr_t i = 0; i < 2; i++) {
        listeners[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        MUST(bind(listeners[i], (void *)&names[i], sizeof names[i])), MUST(listen(listeners[i], 3));
        threads[i] = start(accepts, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_accept4);
    }
    journey();
    for (int i = 0; i < 2; i++) {
        void *right;
        int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        IS(connect(client, (void *)&names[i], sizeof names[i]) == 0 && write(client, "hello", 5) == 5);
        pthread_join(threads[i], &right);
        IS(right);
    }
    return 0;
}
