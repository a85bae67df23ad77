/* posix_queue: messages of several priorities in a POSIX message queue, open twice; its name can be removed. */
#include "rows.h"
#include <mqueue.h>

int main(void) {
    char name[32], text[64];
    unsigned priority = 0;
    struct mq_attr attributes = {.mq_maxmsg = 5, .mq_msgsize = 64};
    snprintf(name, sizeof name, "/row-%d", getpid());
    int queue = MUST(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes)), reader = MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
    MUST(mq_send(queue, "low", 3, 1)), MUST(mq_send(queue, "high", 4, 9)), MUST(mq_send(queue, "low too", 7, 1));
    journey();
    IS(mq_getattr(queue, &attributes) == 0 && attributes.mq_maxmsg == 5 && attributes.mq_msgsize == 64 && attributes.mq_curmsgs == 3);
    IS(mq_receive(queue, text, 64, &priority) == 4 && priority == 9 && !strncmp(text, "high", 4));
    IS(mq_receive(reader, text, 64, &priority) == 3 && priority == 1 && !strncmp(text, "low", 3));
    IS(mq_receive(reader, text, 64, &priority) == 7 && !strncmp(text, "low too", 7));
    IS(mq_receive(reader, text, 64, 0) == -1 && errno == EAGAIN);
    int again = mq_open(name, O_WRONLY);
    IS(again >= 0 && mq_send(again, "new", 3, 2) == 0 && mq_receive(queue, text, 64, 0) == 3);
    IS(mq_unlink(name) == 0 && mq_open(name, O_RDONLY) == -1 && errno == ENOENT);
    return 0;
}
