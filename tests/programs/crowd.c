/* crowd N: N threads that compute, sleep, wait for a futex, for a pipe, and use files; the first one counts rounds. */
#include <fcntl.h>
#include <pthread.h>
#include "pause.h"

enum { ROUNDS = 60, MOST = 2000 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int round_now, ring[MOST][2];
static long done[5];

static void *work(void *number) {
    int me = (int)(long)number, kind = me % 5, wrong = 0;
    char name[32], byte;
    unsigned long value = me;
    snprintf(name, sizeof name, "crowd.%d", me);
    for (int i = 1; i <= ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        while (round_now < i)
            pthread_cond_wait(&turned, &lock);
        pthread_mutex_unlock(&lock);
        if (kind == 0)
            for (int j = 0; j < 20000; j++)
                value = value * 6364136223846793005UL + 1442695040888963407UL;
        if (kind == 1)
            pause_ms(5);
        if (kind == 2 && i % 20 == 0) {
            int file = open(name, O_RDWR | O_CREAT | O_APPEND, 0600);
            wrong += write(file, "line\n", 5) != 5 || lseek(file, 0, SEEK_END) != i / 20 * 5;
            close(file);
        }
        if (kind == 3 && i % 10 == 0)
            wrong += write(ring[me][1], "x", 1) != 1 || read(ring[me][0], &byte, 1) != 1;
        if (kind == 4 && i == ROUNDS / 2)
            wrong += read(ring[me][0], &byte, 1) != 1; /* the first thread writes in the last round */
    }
    __atomic_add_fetch(&done[kind], wrong ? 1000000 : 1, __ATOMIC_SEQ_CST);
    return (void *)value;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 100;
    static pthread_t made[MOST];
    unsigned long sum = 0;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (long i = 0; i < threads; i++)
        if ((i % 5 > 2 && pipe(ring[i])) || pthread_create(&made[i], &small, work, (void *)i))
            return 1;
    for (int i = 1; i <= ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        round_now = i;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&lock);
        say("round %d", i);
        pause_ms(100);
    }
    for (int i = 4; i < threads; i += 5)
        if (write(ring[i][1], "x", 1) != 1)
            return 2;
    for (int i = 0; i < threads; i++) {
        void *value;
        pthread_join(made[i], &value);
        sum += (unsigned long)value;
    }
    say("sum %lx of %ld %ld %ld %ld %ld", sum, done[0], done[1], done[2], done[3], done[4]);
    return 0;
}
