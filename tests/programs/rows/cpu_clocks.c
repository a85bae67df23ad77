/* cpu_clocks: CPU time that was used stays used, by every clock and count of it. */
#include "rows.h"
#include <sys/times.h>

static double used(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(void) {
    clockid_t of_process, of_thread;
    struct tms tms;
    MUST(-clock_getcpuclockid(getpid(), &of_process) + 0), MUST(-pthread_getcpuclockid(pthread_self(), &of_thread) + 0);
    while (seconds(CLOCK_PROCESS_CPUTIME_ID) < 0.3)
        ;
    double process = seconds(CLOCK_PROCESS_CPUTIME_ID), thread = seconds(CLOCK_THREAD_CPUTIME_ID), self = used(RUSAGE_SELF);
    long ticks = times(&tms) * 0 + tms.tms_utime + tms.tms_stime;
    journey();
    IS(seconds(CLOCK_PROCESS_CPUTIME_ID) >= process && seconds(CLOCK_PROCESS_CPUTIME_ID) < process + 10);
    IS(seconds(CLOCK_THREAD_CPUTIME_ID) >= thread);
    IS(seconds(of_process) >= process && seconds(of_thread) >= thread);
    IS(used(RUSAGE_SELF) >= self && used(RUSAGE_THREAD) >= self * 0.9);
    IS(times(&tms) != -1 && tms.tms_utime + tms.tms_stime >= ticks);
    IS(clock() >= process * 1e6);
    process = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (volatile int i = 0; i < 10000000; i++)
        ;
    IS(seconds(CLOCK_PROCESS_CPUTIME_ID) > process);
    return 0;
}
