/* inotify_unread: an event that has not been read yet. */
#include "rows.h"
#include <sys/inotify.h>

int main(void) {
    static char text[4096] __attribute__((aligned(8)));
    int fd = MUST(inotify_init1(IN_NONBLOCK));
    close(MUST(open("file", O_CREAT | O_WRONLY, 0600)));
    int watch = MUST(inotify_add_watch(fd, "file", IN_OPEN));
    close(MUST(open("file", O_RDONLY)));
    journey();
    struct inotify_event *event = (void *)text;
    IS(read(fd, text, sizeof text) == sizeof *event && event->wd == watch && event->mask == IN_OPEN);
    IS(read(fd, text, sizeof text) == -1 && errno == EAGAIN);
    return 0;
}
