/* sysv_messages: a queue with messages of two types in it. */
#include "rows.h"
#include <sys/msg.h>

struct message { long type; char text[20]; };

int main(void) {
    int key = 0x58000000 + getpid(), id = MUST(msgget(key, IPC_CREAT | IPC_EXCL | 0620));
    struct message message;
    struct msqid_ds about;
    MUST(msgsnd(id, &(struct message){5, "five"}, 4, 0)), MUST(msgsnd(id, &(struct message){2, "two"}, 3, 0));
    MUST(msgsnd(id, &(struct message){5, "five again"}, 10, 0)), MUST(msgsnd(id, &(struct message){9, ""}, 0, 0));
    journey();
    IS(msgget(key, 0) == id);
    IS(msgctl(id, IPC_STAT, &about) == 0 && about.msg_qnum == 4 && (about.msg_perm.mode & 0777) == 0620);
    IS(msgrcv(id, &message, 20, 2, 0) == 3 && !strncmp(message.text, "two", 3));
    IS(msgrcv(id, &message, 20, 0, 0) == 4 && message.type == 5 && !strncmp(message.text, "five", 4));
    IS(msgrcv(id, &message, 3, 5, 0) == -1 && errno == E2BIG);
    IS(msgrcv(id, &message, 20, -5, 0) == 10 && !strncmp(message.text, "five again", 10));
    IS(msgrcv(id, &message, 20, 0, 0) == 0 && message.type == 9);
    IS(msgrcv(id, &message, 20, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
    IS(msgctl(id, IPC_RMID, 0) == 0);
    return 0;
}
