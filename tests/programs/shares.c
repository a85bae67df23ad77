/* shares: makes or finds a System V segment, a semaphore set or a POSIX message queue, and uses it until a line comes. Says
   what is in the segment, and leaves a text there. */
#include "pause.h"
#include <fcntl.h>
#include <mqueue.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(int argc, char **argv) {
    int key = argc > 2 ? atoi(argv[2]) : 0, found = -1;
    const char *what = argc > 2 ? argv[1] : "";
    char *segment = 0;
    if (!strcmp(what, "segment"))
        found = shmget(key, 4096, IPC_CREAT | 0600), segment = shmat(found, 0, 0);
    if (!strcmp(what, "set"))
        found = semget(key, 1, IPC_CREAT | 0600), semop(found, &(struct sembuf){0, 1, 0}, 1);
    if (!strcmp(what, "queue"))
        found = mq_open(argv[2], O_RDWR | O_CREAT, 0600, 0);
    if (found < 0 || segment == (void *)-1)
        return 1;
    if (segment && *segment)
        say("found %s", segment);
    moment();
    if (segment && argc > 3)
        strcpy(segment, argv[3]);
    say("done");
    return 0;
}
