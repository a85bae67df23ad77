/* storm: large transfers and waits while a timer interrupts them all the time; nothing may be lost, doubled or early. */
#include "pause.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { MUCH = 3 << 20 };
static unsigned char out[MUCH], in[MUCH];
static volatile int alarms;
static void on_alarm(int signal) { (void)signal, alarms++; }
static void storm(int us) { setitimer(ITIMER_REAL, &(struct itimerval){{0, us}, {0, us}}, 0); }

int main(void) {
    int pair[2], errors = 0, once = 0;
    char text[100];
    sigset_t block;
    for (int i = 0; i < MUCH; i++)
        out[i] = i * 2654435761u >> 22;
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_alarm, .sa_flags = SA_RESTART}, 0);
    sigemptyset(&block), sigaddset(&block, SIGALRM);
    moment();
    int fd = open("storm", O_RDWR | O_CREAT | O_APPEND | O_TRUNC, 0600);
    storm(2000);
    for (int round = 0; round < 4; round++) {
        /* In the last two rounds the signal stays blocked: calls are interrupted, and nothing may be seen of it. */
        if (round == 2)
            sigprocmask(SIG_BLOCK, &block, 0);
        for (long done = 0, n; done < MUCH; done += n)
            if ((n = write(fd, out + done, MUCH - done)) <= 0)
                return 1;
        for (long done = 0, n; done < MUCH; done += n)
            if ((n = pread(fd, in + done, MUCH - done, round * (long)MUCH + done)) <= 0)
                return 2;
        errors += memcmp(in, out, MUCH) != 0;
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair), fcntl(pair[0], F_SETFL, O_NONBLOCK);
        for (long sent = 0, got = 0, n; got < 1 << 20; got += n) {
            if (sent < 1 << 20 && (n = write(pair[0], out + sent, (1 << 20) - sent)) > 0)
                sent += n;
            if ((n = read(pair[1], in + got, 30000)) <= 0)
                return 3;
        }
        errors += memcmp(in, out, 1 << 20) != 0;
        for (int i = 0; i < 60; i++) {
            sprintf(text, "line %d of round %d\n", i, round), (void)!write(1, text, strlen(text));
            struct pollfd fds[2] = {{pair[1], POLLIN, 0}, {pair[0], POLLIN, 0}};
            once += poll(fds, 2, 1) != 0 && round > 1;
        }
    }
    storm(0);
    say("errors %d, polls %d, alarms %d, size %ld", errors, once, alarms > 10, (long)lseek(fd, 0, SEEK_END));
    return 0;
}
