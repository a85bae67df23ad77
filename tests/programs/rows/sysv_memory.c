/* sysv_memory: a System V segment, attached twice by the process and twice by its child. */
#include "rows.h"
#include <sys/shm.h>

int main(void) {
    struct shmid_ds about;
    int go[2], key = 0x56000000 + getpid(), id = MUST(shmget(key, 3 << 12, IPC_CREAT | IPC_EXCL | 0640));
    char byte, *one = shmat(id, 0, 0), *two = shmat(id, 0, SHM_RDONLY);
    MUST(one), MUST(two), MUST(pipe(go));
    strcpy(one + 5000, "segment");
    int child = CHILD({ MUST(read(go[0], &byte, 1)); strcmp(one + 5000, "Segment") ? 1 : 37; });
    journey_while(child, SYS_read);
    IS(!strcmp(two + 5000, "segment"));
    one[5000] = 'S';
    IS(two[5000] == 'S');
    IS(shmget(key, 0, 0) == id);
    IS(shmctl(id, IPC_STAT, &about) == 0 && about.shm_segsz == 3 << 12 && about.shm_nattch == 4 && (about.shm_perm.mode & 0777) == 0640);
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 37);
    IS(shmctl(id, IPC_STAT, &about) == 0 && about.shm_nattch == 2);
    IS(shmctl(id, IPC_RMID, 0) == 0 && shmdt(one) == 0 && shmdt(two) == 0);
    IS(shmget(key, 0, 0) == -1 && errno == ENOENT);
    return 0;
}
