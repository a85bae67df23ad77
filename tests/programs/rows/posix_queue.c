/* posix_queue: queues with messages of several priorities: open twice, closed, unlinked, and one that notifies. */
#include "rows.h"
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/stat.h>

static volatile int told, value;
static void tell(int signal, siginfo_t *info, void *context) { told = signal, value = info->si_value.sival_int; }

int main(void) {
    char name[32], other[32], text[64];
    unsigned priority = 0;
    struct mq_attr attributes = {.mq_maxmsg = 5, .mq_msgsize = 64};
    struct epoll_event event = {EPOLLIN, {.u64 = 77}}, got = {0};
    snprintf(name, sizeof name, "/row-%d", getpid()), snprintf(other, sizeof other, "/other-%d", getpid());
    int queue = MUST(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes)), reader = MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
    MUST(mq_send(queue, "low", 3, 1)), MUST(mq_send(queue, "high", 4, 9)), MUST(mq_send(queue, "low too", 7, 1)), MUST(mq_send(queue, "", 0, 0));
    int gone = MUST(mq_open(other, O_RDWR | O_CREAT, 0640, 0));
    MUST(mq_send(gone, "unlinked", 8, 3)), MUST(mq_unlink(other));
    int closed = MUST(mq_open(other, O_WRONLY | O_CREAT, 0620, &attributes));
    MUST(mq_send(closed, "closed", 6, 4)), MUST(fchmod(closed, 0620)), MUST(close(closed));
    MUST(sigaction(SIGUSR2, &(struct sigaction){.sa_sigaction = tell, .sa_flags = SA_SIGINFO}, 0));
    MUST(mq_notify(queue, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value.sival_int = 4711}));
    int polls = MUST(epoll_create1(0));
    MUST(epoll_ctl(polls, EPOLL_CTL_ADD, reader, &event));
    journey();
    IS(mq_getattr(queue, &attributes) == 0 && attributes.mq_maxmsg == 5 && attributes.mq_msgsize == 64 && attributes.mq_curmsgs == 4);
    IS(mq_notify(gone, 0) == 0 && mq_notify(reader, &(struct sigevent){.sigev_notify = SIGEV_NONE}) == -1 && errno == EBUSY);
    IS(told == 0 && epoll_wait(polls, &got, 1, 0) == 1 && got.data.u64 == 77);
    IS(mq_receive(queue, text, 64, &priority) == 4 && priority == 9 && !strncmp(text, "high", 4));
    IS(mq_receive(reader, text, 64, &priority) == 3 && priority == 1 && !strncmp(text, "low", 3));
    IS(mq_receive(reader, text, 64, &priority) == 7 && !strncmp(text, "low too", 7));
    IS(mq_receive(reader, text, 64, &priority) == 0 && priority == 0);
    IS(mq_receive(reader, text, 64, 0) == -1 && errno == EAGAIN && epoll_wait(polls, &got, 1, 0) == 0);
    int again = mq_open(name, O_WRONLY);
    IS(again >= 0 && mq_send(again, "new", 3, 2) == 0 && told == SIGUSR2 && value == 4711);
    IS(mq_receive(queue, text, 64, 0) == 3 && mq_unlink(name) == 0 && mq_open(name, O_RDONLY) == -1 && errno == ENOENT);
    static char page[8192];
    IS(mq_receive(gone, page, 8192, &priority) == 8 && priority == 3 && !strncmp(page, "unlinked", 8));
    IS((closed = mq_open(other, O_RDONLY)) >= 0 && mq_receive(closed, text, 64, &priority) == 6 && priority == 4);
    struct stat about;
    IS(fstat(closed, &about) == 0 && (about.st_mode & 0777) == 0620 && about.st_uid == getuid() && mq_unlink(other) == 0);
    return 0;
}
