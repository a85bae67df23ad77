/* homes HOW: does what cannot be done away from home, and goes on. */
#include "pause.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

static char stack[65536];
static int child(void *from) { return *(int *)from + 1; }
static void *thread(void *from) { return (char *)from + 1; }

int main(int argc, char **argv) {
    int how = argc > 1 ? atoi(argv[1]) : 0, status = 41, fd;
    pthread_t one;
    void *result;
    struct signalfd_siginfo info;
    sigset_t set;
    char text[10] = {0};
    moment();
    fd = open("before", O_RDWR | O_CREAT, 0600);
    TRY(write(fd, "0123456789", 10));
    switch (how) {
    case 0: {
        pid_t pid = fork();
        if (!pid)
            _exit(lseek(fd, 2, SEEK_SET) + 40);
        TRY(waitpid(pid, &status, 0) == pid);
        TRY(status), TRY(lseek(fd, 0, SEEK_CUR));
        break;
    }
    case 1: pthread_create(&one, 0, thread, stack), pthread_join(one, &result), TRY((char *)result == stack + 1); break;
    case 2: execl("/bin/sh", "sh", "-c", "echo executed; cat before; exit 9", (char *)0); break;
    case 3: {
        int memory = memfd_create("shared", 0);
        TRY(ftruncate(memory, 8192));
        char *at = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        strcpy(at + 4096, "seen"), TRY(pread(memory, text, 10, 4096)), say("%s", text);
        break;
    }
    case 4:
        sigemptyset(&set), sigaddset(&set, SIGUSR1), sigprocmask(SIG_BLOCK, &set, 0), raise(SIGUSR1);
        TRY(read(signalfd(-1, &set, 0), &info, sizeof info)), TRY(info.ssi_signo);
        break;
    case 5: TRY(waitpid(clone(child, stack + sizeof stack, SIGCHLD, &status), &status, 0) > 0), TRY(status); break;
    case 6: {
        int id = shmget(IPC_PRIVATE, 4096, 0600);
        char *at = shmat(id, 0, 0);
        TRY(shmctl(id, IPC_RMID, 0) + (*at = 5)), TRY(shmdt(at));
        break;
    }
    case 7: say("%s", popen("echo piped", "r") && system("exit 4") == 4 << 8 ? "yes" : "no"); break;
    case 8: {
        char *at = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
        TRY(pwrite(fd, "new", 3, 2)), say("%.10s", at);
        break;
    }
    }
    moment();
    TRY(write(fd, "the end", 7));
    return 0;
}
