/* sysv_messages: a queue with messages of two types in it, and one that holds more than its room is now. */
#include "rows.h"
#include <sys/msg.h>

struct message { long type; char text[5000]; };

int main(void) {
    static struct message message;
    int key = 0x58000000 + getpid(), id = MUST(msgget(key, IPC_CREAT | IPC_EXCL | 0620)), full = MUST(msgget(IPC_PRIVATE, 0600));
    struct msqid_ds about;
    MUST(msgsnd(id, &(struct message){5, "five"}, 4, 0)), MUST(msgsnd(id, &(struct message){2, "two"}, 3, 0));
    MUST(msgsnd(id, &(struct message){5, "five again"}, 10, 0)), MUST(msgsnd(id, &(struct message){9, ""}, 0, 0));
    MUST(msgsnd(full, &(struct message){1, "long"}, 5000, 0)), MUST(msgsnd(full, &(struct message){1, "longer"}, 4000, 0));
    MUST(msgctl(full, IPC_STAT, &about)), about.msg_qbytes = 6000, MUST(msgctl(full, IPC_SET, &about));
    int child = CHILD({ msgsnd(id, &(struct message){7, "child"}, 5, 0) ? 1 : 40; });
    MUST(ended(child) == 40 ? 0 : -1);
    journey();
    IS(msgget(key, 0) == id);
    IS(msgctl(id, IPC_STAT, &about) == 0 && about.msg_qnum == 5 && (about.msg_perm.mode & 0777) == 0620);
    IS(msgrcv(id, &message, 20, 2, 0) == 3 && !strncmp(message.text, "two", 3));
    IS(msgrcv(id, &message, 20, 0, 0) == 4 && message.type == 5 && !strncmp(message.text, "five", 4));
    IS(msgrcv(id, &message, 3, 5, 0) == -1 && errno == E2BIG);
    IS(msgrcv(id, &message, 20, -5, 0) == 10 && !strncmp(message.text, "five again", 10));
    IS(msgrcv(id, &message, 20, 0, 0) == 0 && message.type == 9);
    IS(msgrcv(id, &message, 20, 0, 0) == 5 && message.type == 7);
    IS(msgrcv(id, &message, 20, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
    IS(msgctl(full, IPC_STAT, &about) == 0 && about.msg_qnum == 2 && about.msg_qbytes == 6000);
    IS(msgsnd(full, &message, 1, IPC_NOWAIT) == -1 && errno == EAGAIN);
    IS(msgrcv(full, &message, 5000, 0, 0) == 5000 && !strcmp(message.text, "long") && message.text[4999] == 0);
    IS(msgrcv(full, &message, 5000, 0, 0) == 4000 && !strcmp(message.text, "longer"));
    IS(msgctl(id, IPC_RMID, 0) == 0 && msgctl(full, IPC_RMID, 0) == 0);
    return 0;
}
