/* call_msgrcv: a child waits for a message of one type, another one for room in the queue. */
#include "rows.h"
#include <sys/msg.h>

struct message { long type; char text[4000]; };

int main(void) {
    static struct message message = {3, "filler"};
    int id = MUST(msgget(IPC_PRIVATE, 0600)), full = MUST(msgget(IPC_PRIVATE, 0600));
    while (msgsnd(full, &message, sizeof message.text, IPC_NOWAIT) == 0)
        ;
    int receiver = CHILD({ msgrcv(id, &message, 100, 7, 0) == 5 && !strncmp(message.text, "seven", 5) ? 52 : 1; });
    int sender = CHILD({ message.type = 8; msgsnd(full, &message, sizeof message.text, 0) == 0 ? 53 : 1; });
    wait_blocked(receiver, SYS_msgrcv);
    journey_while(sender, SYS_msgsnd);
    MUST(msgsnd(id, &(struct message){6, "six"}, 3, 0)), MUST(msgsnd(id, &(struct message){7, "seven"}, 5, 0));
    IS(ended(receiver) == 52);
    IS(msgrcv(full, &message, sizeof message.text, 0, 0) == sizeof message.text);
    IS(ended(sender) == 53);
    IS(msgrcv(full, &message, sizeof message.text, 8, 0) == sizeof message.text);
    IS(msgctl(id, IPC_RMID, 0) == 0 && msgctl(full, IPC_RMID, 0) == 0);
    return 0;
}
