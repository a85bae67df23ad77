/* sysv_semaphores: a set with values, one of them changed with SEM_UNDO by a child that ends later. */
#include "rows.h"
#include <sys/sem.h>

int main(void) {
    int go[2], key = 0x57000000 + getpid(), id = MUST(semget(key, 3, IPC_CREAT | IPC_EXCL | 0600));
    struct semid_ds about;
    char byte;
    MUST(pipe(go)), MUST(semctl(id, 0, SETALL, (unsigned short[]){1, 0, 30}));
    int child = CHILD({ MUST(semop(id, &(struct sembuf){1, 3, SEM_UNDO}, 1)); MUST(read(go[0], &byte, 1)); 38; });
    journey_while(child, SYS_read);
    IS(semctl(id, 0, GETVAL) == 1 && semctl(id, 1, GETVAL) == 3 && semctl(id, 2, GETVAL) == 30);
    IS(semget(key, 0, 0) == id);
    IS(semctl(id, 0, IPC_STAT, &about) == 0 && about.sem_nsems == 3 && about.sem_perm.uid == getuid());
    IS(semop(id, &(struct sembuf){0, -2, IPC_NOWAIT}, 1) == -1 && errno == EAGAIN);
    IS(semop(id, (struct sembuf[]){{0, -1, 0}, {2, 5, 0}}, 2) == 0 && semctl(id, 2, GETVAL) == 35);
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 38);
    IS(semctl(id, 1, GETVAL) == 0);
    IS(semctl(id, 0, IPC_RMID) == 0);
    return 0;
}
