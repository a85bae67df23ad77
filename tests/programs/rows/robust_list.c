/* robust_list: the owner of a robust mutex ends after the journey, in a thread and in a child; its successor is told. */
#include "rows.h"

static pthread_mutex_t *mutexes;
static int tid, go[2];

static void *owner(void *none) {
    char byte;
    pthread_mutex_lock(&mutexes[0]);
    tid = gettid();
    MUST(read(go[0], &byte, 1));
    return none;
}

int main(void) {
    pthread_mutexattr_t attributes;
    void *head;
    size_t length;
    char byte = 0;
    mutexes = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(mutexes), MUST(pipe(go));
    pthread_mutexattr_init(&attributes), pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&mutexes[0], &attributes), pthread_mutex_init(&mutexes[1], &attributes);
    pthread_t thread = start(owner, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    wait_blocked(tid, SYS_read);
    int child = CHILD({ pthread_mutex_lock(&mutexes[1]); pause(); 0; });
    MUST(syscall(SYS_get_robust_list, 0, &head, &length));
    void *before = head;
    journey_while(child, SYS_pause);
    IS(syscall(SYS_get_robust_list, 0, &head, &length) == 0 && head == before && length == 24);
    IS(pthread_mutex_trylock(&mutexes[0]) == EBUSY && pthread_mutex_trylock(&mutexes[1]) == EBUSY);
    MUST(write(go[1], &byte, 1)), pthread_join(thread, 0);
    IS(pthread_mutex_lock(&mutexes[0]) == EOWNERDEAD && pthread_mutex_consistent(&mutexes[0]) == 0);
    MUST(kill(child, SIGKILL));
    IS(ended(child) == 1000 + SIGKILL);
    IS(pthread_mutex_lock(&mutexes[1]) == EOWNERDEAD && pthread_mutex_consistent(&mutexes[1]) == 0);
    return 0;
}
