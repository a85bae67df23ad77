/* inotify: watches and their numbers. */
#include "rows.h"
#include <sys/inotify.h>
#include <sys/stat.h>

static char text[4096] __attribute__((aligned(8)));
static int next(int fd, int watch, unsigned mask, const char *name) {
    struct inotify_event *event = (void *)text;
    return read(fd, text, sizeof *event + (*name ? 16 : 0)) == sizeof *event + (*name ? 16 : 0) && event->wd == watch && event->mask == mask &&
        (!*name || !strcmp(event->name, name));
}

int main(void) {
    int fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)), dir, file;
    mkdir("watched", 0700), close(MUST(open("file", O_CREAT | O_WRONLY, 0600)));
    MUST(inotify_rm_watch(fd, MUST(inotify_add_watch(fd, "file", IN_ATTRIB))));
    MUST(read(fd, text, sizeof text));
    dir = MUST(inotify_add_watch(fd, "watched", IN_CREATE | IN_DELETE)), file = MUST(inotify_add_watch(fd, "file", IN_ATTRIB | IN_ONESHOT));
    journey();
    close(MUST(open("watched/before", O_CREAT | O_WRONLY, 0600)));
    IS(next(fd, dir, IN_CREATE, "before"));
    IS(read(fd, text, sizeof text) == -1 && errno == EAGAIN);
    MUST(unlink("watched/before"));
    IS(next(fd, dir, IN_DELETE, "before"));
    MUST(chmod("file", 0640));
    IS(next(fd, file, IN_ATTRIB, ""));
    IS(next(fd, file, IN_IGNORED, ""));
    IS(inotify_rm_watch(fd, file) == -1 && errno == EINVAL);
    IS(inotify_add_watch(fd, "watched", IN_CREATE) == dir);
    return 0;
}
