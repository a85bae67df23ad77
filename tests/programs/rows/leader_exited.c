/* leader_exited: the first thread has ended, the process lives on in another one. */
#include "rows.h"

static pthread_t leader;

static void *other(void *none) {
    void *result;
    pthread_join(leader, &result);
    journey();
    IS(result == &leader);
    IS(gettid() != getpid());
    exit(0);
}

int main(void) {
    leader = pthread_self();
    start(other, 0);
    pthread_exit(&leader);
}
