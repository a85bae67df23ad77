/* family ROUNDS: a parent and three children with pipes, shared memory with a futex in it, queued signals and wait. */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "pause.h"

static struct shared {
    pthread_mutex_t lock;
    pthread_cond_t more;
    int count;
} *shared;
static volatile sig_atomic_t queued;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    queued += info->si_value.sival_int;
}

static int child(int me, int rounds, int from, int to) {
    char byte;
    for (int i = 1; i <= rounds; i++) {
        if (read(from, &byte, 1) != 1)
            return 1;
        pthread_mutex_lock(&shared->lock);
        shared->count++;
        pthread_cond_broadcast(&shared->more);
        while (shared->count < i * 3) /* the others of this round */
            pthread_cond_wait(&shared->more, &shared->lock);
        pthread_mutex_unlock(&shared->lock);
        if (i % 5 == 0)
            sigqueue(getppid(), SIGRTMIN + 1, (union sigval){.sival_int = me});
        if (write(to, &byte, 1) != 1)
            return 2;
    }
    return 10 + me;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 60, down[3][2], up[3][2], status;
    char byte = 'x';
    pid_t pids[3];
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    pthread_mutexattr_init(&mutex);
    pthread_condattr_init(&condition);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->lock, &mutex);
    pthread_cond_init(&shared->more, &condition);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 1, &action, 0);
    for (int i = 0; i < 3; i++) {
        if (pipe(down[i]) || pipe(up[i]))
            return 3;
        if ((pids[i] = fork()) == 0)
            _exit(child(i + 1, rounds, down[i][0], up[i][1]));
    }
    for (int i = 1; i <= rounds; i++) {
        for (int j = 0; j < 3; j++)
            if (write(down[j][1], &byte, 1) != 1)
                return 4;
        for (int j = 0; j < 3; j++)
            if (read(up[j][0], &byte, 1) != 1)
                return 5;
        say("round %d count %d", i, shared->count);
        pause_ms(50);
    }
    for (int i = 0; i < 3; i++)
        if (waitpid(pids[i], &status, 0) == pids[i])
            say("child %d: %d", i + 1, WEXITSTATUS(status));
    say("queued %d", (int)queued);
    return 0;
}
