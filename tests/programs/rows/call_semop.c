/* call_semop: a child waits at a semaphore, another one with a timeout. */
#include "rows.h"
#include <sys/sem.h>

int main(void) {
    int id = MUST(semget(IPC_PRIVATE, 2, 0600));
    struct timespec three = {3, 0};
    double since = seconds(CLOCK_MONOTONIC);
    int waits = CHILD({ syscall(SYS_semop, id, &(struct sembuf){0, -2, 0}, 1) == 0 ? 54 : 1; }); /* glibc makes semtimedop of it */
    int times = CHILD({ semtimedop(id, &(struct sembuf){1, -1, 0}, 1, &three) == -1 && errno == EAGAIN && seconds(CLOCK_MONOTONIC) >= since + 3 - LAG ? 55 : 1; });
    wait_blocked(waits, SYS_semop);
    journey_while(times, SYS_semtimedop);
    IS(semop(id, &(struct sembuf){0, 1, 0}, 1) == 0 && semctl(id, 0, GETVAL) == 1);
    IS(semop(id, &(struct sembuf){0, 1, 0}, 1) == 0);
    IS(ended(waits) == 54);
    IS(ended(times) == 55);
    IS(semctl(id, 0, GETVAL) == 0 && semctl(id, 0, IPC_RMID) == 0);
    return 0;
}
