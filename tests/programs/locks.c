/* locks: takes locks of three kinds after the move, and holds them until it reads a second line. */
#include "pause.h"
#include <fcntl.h>
#include <sys/file.h>

int main(void) {
    int whole = open("whole", O_RDWR | O_CREAT, 0600), record = open("record", O_RDWR | O_CREAT, 0600);
    int description = open("description", O_RDWR | O_CREAT, 0600);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    moment();
    TRY(flock(whole, LOCK_EX));
    TRY(flock(open("whole", O_RDWR), LOCK_SH | LOCK_NB));
    TRY(fcntl(record, F_SETLKW, &lock));
    TRY(fcntl(record, F_GETLK, &lock));
    say("  %d", lock.l_type == F_UNLCK);
    lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
    TRY(fcntl(description, F_OFD_SETLK, &lock));
    TRY(fcntl(open("description", O_RDWR), F_OFD_SETLK, &lock));
    lock.l_pid = 7;
    TRY(fcntl(description, F_OFD_GETLK, &lock));
    say("locked");
    moment();
    TRY(flock(whole, LOCK_UN));
    TRY(flock(99, LOCK_UN));
    return 0;
}
