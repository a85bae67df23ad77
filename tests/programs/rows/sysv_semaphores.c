/* sysv_semaphores: a set with values, some of them changed with SEM_UNDO by children that end later, one by its thread. */
#include "rows.h"
#include <sys/sem.h>

static int id;

static void *take(void *stop) {
    MUST(semop(id, &(struct sembuf){3, -2, SEM_UNDO}, 1));
    MUST(read(*(int *)stop, &(char){0}, 1));
    return 0;
}

int main(void) {
    int go[2], stop[2], key = 0x57000000 + getpid();
    struct semid_ds about;
    char byte;
    id = MUST(semget(key, 4, IPC_CREAT | IPC_EXCL | 0600));
    int other = MUST(semget(IPC_PRIVATE, 1, 0600));
    MUST(pipe(go)), MUST(pipe(stop)), MUST(semctl(id, 0, SETALL, (unsigned short[]){1, 0, 30, 5}));
    int gives = CHILD({ MUST(semop(id, &(struct sembuf){1, 3, SEM_UNDO}, 1)); MUST(read(go[0], &byte, 1)); 38; });
    int takes = CHILD({ start(take, stop), MUST(read(go[0], &byte, 1)); 39; });
    while (semctl(id, 3, GETVAL) != 3 || semctl(id, 1, GETVAL) != 3)
        sched_yield();
    MUST(semop(id, (struct sembuf[]){{1, -2, 0}, {2, 32767 - 30, SEM_UNDO}}, 2));
    journey_while(gives, SYS_read);
    IS(semctl(id, 0, GETVAL) == 1 && semctl(id, 1, GETVAL) == 1 && semctl(id, 2, GETVAL) == 32767 && semctl(id, 3, GETVAL) == 3);
    IS(semctl(id, 0, GETPID) == getpid() && semctl(id, 1, GETPID) == getpid() && semctl(id, 3, GETPID) == takes);
    IS(semget(key, 0, 0) == id && semctl(other, 0, GETVAL) == 0 && semctl(other, 0, GETPID) == 0);
    IS(semctl(id, 0, IPC_STAT, &about) == 0 && about.sem_nsems == 4 && about.sem_perm.uid == getuid());
    IS(semop(id, &(struct sembuf){0, -2, IPC_NOWAIT}, 1) == -1 && errno == EAGAIN);
    IS(semop(id, (struct sembuf[]){{0, -1, 0}, {2, -32760, SEM_UNDO}}, 2) == 0 && semctl(id, 2, GETVAL) == 7);
    MUST(write(go[1], "xx", 2));
    IS(ended(gives) == 38 && ended(takes) == 39);
    /* 3 less than 1 is 0: what is undone goes no further. */
    IS(semctl(id, 1, GETVAL) == 0 && semctl(id, 3, GETVAL) == 5);
    IS(semctl(id, 0, IPC_RMID) == 0 && semctl(other, 0, IPC_RMID) == 0);
    return 0;
}
