/* sysv_memory: System V segments: attached twice by the process and twice by its child, removed but attached, detached. */
#include "rows.h"
#include <sys/shm.h>

int main(void) {
    struct shmid_ds about;
    int go[2], key = 0x56000000 + getpid(), id = MUST(shmget(key, 3 << 12, IPC_CREAT | IPC_EXCL | 0640));
    int gone = MUST(shmget(IPC_PRIVATE, 5000, 0600)), apart = MUST(shmget(0x59000000 + getpid(), 100 << 12, IPC_CREAT | 0600));
    char byte, *one = shmat(id, 0, 0), *two = shmat(id, 0, SHM_RDONLY), *removed = shmat(gone, 0, 0), *detached = shmat(apart, 0, 0);
    MUST(one), MUST(two), MUST(removed), MUST(detached), MUST(pipe(go));
    strcpy(one + 5000, "segment"), strcpy(removed + 4990, "removed"), strcpy(detached + (70 << 12), "detached");
    MUST(shmctl(gone, IPC_RMID, 0)), MUST(shmdt(detached));
    MUST(mprotect(one + (2 << 12), 1 << 12, PROT_READ));
    int child = CHILD({ MUST(read(go[0], &byte, 1)); strcmp(one + 5000, "Segment") || strcmp(removed + 4990, "Removed") ? 1 : 37; });
    journey_while(child, SYS_read);
    IS(!strcmp(two + 5000, "segment") && !strcmp(removed + 4990, "removed"));
    one[5000] = 'S', removed[4990] = 'R';
    IS(two[5000] == 'S');
    IS(shmget(key, 0, 0) == id);
    IS(shmctl(id, IPC_STAT, &about) == 0 && about.shm_segsz == 3 << 12 && about.shm_nattch == 6 && (about.shm_perm.mode & 0777) == 0640);
    IS(shmctl(gone, IPC_STAT, &about) == 0 && about.shm_segsz == 5000 && about.shm_nattch == 2 && about.shm_perm.mode & SHM_DEST);
    IS(shmctl(apart, IPC_STAT, &about) == 0 && about.shm_nattch == 0 && about.shm_perm.uid == getuid());
    IS((detached = shmat(apart, 0, 0)) != (char *)-1 && !strcmp(detached + (70 << 12), "detached") && detached[4096] == 0);
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 37);
    IS(shmctl(id, IPC_STAT, &about) == 0 && about.shm_nattch == 3);
    IS(shmctl(id, IPC_RMID, 0) == 0 && shmdt(one) == 0 && shmdt(two) == 0);
    IS(shmdt(removed) == 0 && shmctl(gone, IPC_STAT, &about) == -1 && errno == EINVAL);
    IS(shmctl(apart, IPC_RMID, 0) == 0 && shmget(key, 0, 0) == -1 && errno == ENOENT);
    return 0;
}
