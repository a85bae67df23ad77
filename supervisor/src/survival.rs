//! What survives: the one table from which the README tells it, and against which every row is tested.
//!
//! Each row is one behaviour, and has a program of its name in `tests/programs/rows` that checks itself. `tests/matrix` takes
//! every one of them through save and restore and through moves, and demands the fate that is written here.

use std::fmt::Write;

/// What becomes of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The program sees no difference.
    Survives,
    /// Nothing is done and the job runs on; these words are in what `vctl` and `vmigrate` say.
    Refused(&'static str),
    /// The same for who is not root; root's survive.
    RefusedUnlessRoot(&'static str),
    /// The job comes home by itself for what it does next with it.
    Home,
    /// It goes on, and this is what a careful program sees.
    Changes(&'static str),
}

/// The headings of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Tasks,
    Memory,
    Descriptors,
    LocalIpc,
    SignalsAndTime,
    CallsInProgress,
    TheRest,
}

impl Family {
    /// As the README names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::LocalIpc => "local IPC",
            Self::SignalsAndTime => "signals and time",
            Self::CallsInProgress => "calls in progress",
            Self::TheRest => "the rest",
        }
    }
}

/// One behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub family: Family,
    /// Its program: `tests/programs/rows/ID.c`.
    pub id: &'static str,
    /// As a user would name it.
    pub name: &'static str,
    /// `vctl save`, then `vctl restore`.
    pub saved: Fate,
    /// `vmigrate` to a host, to a second one, and home.
    pub moved: Fate,
}

/// A row that survives everything.
const fn row(family: Family, id: &'static str, name: &'static str) -> Row {
    Row {
        family,
        id,
        name,
        saved: Fate::Survives,
        moved: Fate::Survives,
    }
}

impl Row {
    /// The same with other fates.
    const fn but(self, saved: Fate, moved: Fate) -> Self {
        Self { saved, moved, ..self }
    }
}

/// Every row, by family.
pub const ROWS: &[Row] = {
    use Family::{CallsInProgress, Descriptors, LocalIpc, Memory, SignalsAndTime, Tasks, TheRest};
    use Fate::{Changes, Home, Refused, RefusedUnlessRoot, Survives};
    &[
        row(
            Tasks,
            "itself",
            "what a program sees of itself: /proc/self, descriptors, working directory, environment",
        ),
        row(Tasks, "two_threads", "threads, their TIDs and thread-local data"),
        row(Tasks, "thousand_threads", "1,000 threads"),
        row(Tasks, "raw_clone", "threads made with bare clone and clone3"),
        row(Tasks, "static_threads", "static programs with threads at a mutex"),
        row(
            Tasks,
            "thread_attributes",
            "names, masks, alternative stacks and nice values of threads",
        ),
        row(Tasks, "leader_exited", "a process whose first thread has ended").but(
            Refused("has ended while others go on"),
            Refused("has ended while others go on"),
        ),
        row(Tasks, "fork_tree", "child and grandchild, joined by pipes"),
        row(Tasks, "vfork_exec", "children made by vfork and exec").but(Survives, Home),
        row(Tasks, "posix_spawn", "children made by posix_spawn").but(Survives, Home),
        row(Tasks, "hundred_processes", "100 processes"),
        row(Tasks, "sessions_groups", "sessions and process groups"),
        row(
            Tasks,
            "controlling_terminal",
            "the controlling terminal and its foreground group",
        )
        .but(
            Changes("the group of the shell that restores it has the number 0"),
            Survives,
        ),
        row(
            Tasks,
            "foreground_group",
            "a shell's jobs that take turns in the foreground of its terminal, and its modes",
        ),
        row(Tasks, "zombie", "children that ended and were not waited for"),
        row(Tasks, "subreaper", "orphans and their subreaper"),
        row(Tasks, "stopped_child", "stopped processes"),
        row(
            Memory,
            "private_memory",
            "private memory, of every protection, copied on write",
        ),
        row(
            Memory,
            "shared_memory",
            "anonymous memory shared between processes of the job",
        ),
        row(Memory, "file_private", "files mapped privately"),
        row(Memory, "file_shared", "files mapped shared and writable"),
        row(
            Memory,
            "file_shared_calls",
            "files that one process has mapped and another reads, cuts and lengthens",
        ),
        row(
            Memory,
            "file_mapped_locked",
            "record locks on a file that is also mapped",
        ),
        row(Memory, "file_mapped_deleted", "deleted files, mapped"),
        row(Memory, "memfd", "memfd that is open and mapped by several processes"),
        row(Memory, "memfd_sealed", "sealed memfd"),
        row(Memory, "hugetlb", "huge pages (hugetlb)"),
        row(Memory, "huge_page_advice", "transparent huge pages, wanted and not"),
        row(Memory, "locked_memory", "mlock and mlock2"),
        row(Memory, "memory_advice", "MADV_* that sticks"),
        row(Memory, "guard_pages", "guard pages (MADV_GUARD_INSTALL)"),
        row(Memory, "growing_stack", "stacks that grow"),
        row(Memory, "program_break", "the break (brk)"),
        row(Memory, "reserved_terabyte", "terabytes of reserved address space"),
        row(Memory, "execute_only", "execute-only memory"),
        row(
            Memory,
            "sparse_memory",
            "sparse memory: only pages that hold data are stored",
        ),
        row(
            Descriptors,
            "dup_offsets",
            "one offset and one set of flags for dup and fork",
        ),
        row(Descriptors, "descriptor_flags", "close-on-exec and all status flags"),
        row(Descriptors, "high_descriptors", "numbers above 1,024"),
        row(Descriptors, "ten_thousand_descriptors", "10,000 descriptors"),
        row(Descriptors, "path_descriptor", "O_PATH"),
        row(Descriptors, "path_of_link", "O_PATH of a symbolic link itself"),
        row(Descriptors, "deleted_file", "open files that were deleted, O_TMPFILE"),
        row(Descriptors, "renamed_file", "open files that were renamed or replaced"),
        row(
            Descriptors,
            "directory_listing",
            "directories in the middle of a listing",
        ),
        row(
            Descriptors,
            "file_locks",
            "record locks, open file description locks, flock",
        ),
        row(Descriptors, "devices", "/dev/null, zero, full, random, urandom"),
        row(LocalIpc, "pipe_bytes", "pipes with bytes in flight"),
        row(LocalIpc, "fifo", "FIFOs with bytes in flight"),
        row(LocalIpc, "pipe_blocked", "a reader and a writer that wait at pipes"),
        row(LocalIpc, "unix_stream", "Unix stream sockets with queued bytes"),
        row(LocalIpc, "unix_datagram", "Unix datagram sockets with queued messages"),
        row(
            LocalIpc,
            "unix_seqpacket",
            "Unix seqpacket sockets with queued messages",
        ),
        row(LocalIpc, "passed_descriptors", "descriptors in flight (SCM_RIGHTS)"),
        row(LocalIpc, "unix_credentials", "credentials of peers and of messages")
            .but(Changes("SO_PEERCRED of a socket pair names who restored it"), Survives),
        row(LocalIpc, "unix_abstract", "abstract socket names"),
        row(LocalIpc, "unix_listener", "listeners with connections that wait"),
        row(
            LocalIpc,
            "unix_early_bytes",
            "bytes on a Unix connection that was not yet accepted",
        )
        .but(Refused("was not accepted yet and has sent something"), Survives),
        row(LocalIpc, "eventfd", "eventfd"),
        row(LocalIpc, "epoll", "epoll: nested, edge-triggered, one-shot, with data").but(
            Changes("an edge that was reported already is reported once more"),
            Survives,
        ),
        row(
            LocalIpc,
            "epoll_renumbered",
            "epoll on a descriptor whose number has changed",
        ),
        row(LocalIpc, "timerfd", "timerfd"),
        row(LocalIpc, "signalfd", "signalfd"),
        row(LocalIpc, "signalfd_loop", "signalfd in an event loop, with epoll"),
        row(LocalIpc, "inotify", "inotify"),
        row(LocalIpc, "inotify_unread", "inotify events that were not read yet")
            .but(Refused("unread events"), Survives),
        row(LocalIpc, "pidfd", "pidfd").but(Survives, Home),
        row(LocalIpc, "sysv_memory", "System V shared memory").but(Survives, Home),
        row(LocalIpc, "sysv_semaphores", "System V semaphores, with undo").but(Survives, Home),
        row(LocalIpc, "sysv_messages", "System V message queues").but(Survives, Home),
        row(LocalIpc, "posix_queue", "POSIX message queues").but(Survives, Home),
        row(LocalIpc, "internet_listener", "TCP listeners and UDP sockets"),
        row(LocalIpc, "internet_sockets", "TCP connections inside the job"),
        row(LocalIpc, "internet_datagrams", "datagrams in the queue of a UDP socket")
            .but(Changes("they are lost, as the network may lose them"), Survives),
        row(SignalsAndTime, "signal_handlers", "handlers, their flags and masks"),
        row(SignalsAndTime, "trap_signal", "SIGTRAP caught, ignored, blocked"),
        row(
            SignalsAndTime,
            "pending_signals",
            "pending signals of threads and process, with their data",
        ),
        row(
            SignalsAndTime,
            "handler_on_stack",
            "a handler that runs on its alternative stack",
        ),
        row(SignalsAndTime, "realtime_queue", "queued real-time signals, in order"),
        row(SignalsAndTime, "interval_timers", "setitimer in real time"),
        row(SignalsAndTime, "posix_timers", "POSIX timers, with overrun"),
        row(SignalsAndTime, "cpu_timers", "running timers of CPU time"),
        row(
            SignalsAndTime,
            "signals_interrupt",
            "calls that signals interrupt: of timers, of other threads, of the process itself",
        ),
        row(SignalsAndTime, "alarm", "alarm"),
        row(
            SignalsAndTime,
            "monotonic_clocks",
            "CLOCK_MONOTONIC and BOOTTIME that never jump back",
        ),
        row(SignalsAndTime, "cpu_clocks", "CPU time that goes on"),
        row(CallsInProgress, "call_read", "read"),
        row(CallsInProgress, "call_poll", "poll and ppoll"),
        row(CallsInProgress, "call_select", "select and pselect"),
        row(CallsInProgress, "call_epoll_wait", "epoll_wait"),
        row(CallsInProgress, "call_futex", "futex waits"),
        row(CallsInProgress, "call_futex_pi", "futex with priority inheritance"),
        row(
            CallsInProgress,
            "call_futex_requeue",
            "futex requeue (condition variables)",
        ),
        row(CallsInProgress, "call_nanosleep", "sleeps, relative and absolute"),
        row(CallsInProgress, "call_accept", "accept"),
        row(CallsInProgress, "call_wait", "wait4 and waitid"),
        row(
            CallsInProgress,
            "call_open",
            "opening a FIFO that waits for its other end",
        ),
        row(CallsInProgress, "call_lock", "fcntl and flock that wait for a lock"),
        row(
            CallsInProgress,
            "call_message",
            "recvmsg and recv (with a timeout, for all of it), send",
        ),
        row(CallsInProgress, "call_events", "reads of eventfd, timerfd and inotify"),
        row(CallsInProgress, "call_sigtimedwait", "sigtimedwait and sigsuspend"),
        row(CallsInProgress, "call_msgrcv", "msgrcv").but(Survives, Home),
        row(CallsInProgress, "call_semop", "semop").but(Survives, Home),
        row(TheRest, "robust_list", "robust mutexes"),
        row(TheRest, "restartable_sequences", "rseq"),
        row(TheRest, "tid_address", "set_tid_address"),
        row(TheRest, "membarrier", "membarrier registration"),
        row(TheRest, "credentials", "user and group ids"),
        row(TheRest, "capabilities", "capabilities"),
        row(TheRest, "resource_limits", "resource limits"),
        row(TheRest, "nice", "nice values"),
        row(TheRest, "scheduling_policy", "scheduling policy"),
        row(TheRest, "affinity", "CPU affinity"),
        row(TheRest, "oom_score", "the OOM score adjustment"),
        row(TheRest, "umask", "umask and working directory"),
        row(TheRest, "personality", "personality"),
        row(
            TheRest,
            "not_dumpable",
            "processes that others may not look at (PR_SET_DUMPABLE)",
        )
        .but(
            RefusedUnlessRoot("does not let others look at it"),
            RefusedUnlessRoot("does not let others look at it"),
        ),
        row(
            TheRest,
            "prctl_state",
            "PR_* state: name, dumpable, death signal, no_new_privs, THP, timer slack, subreaper",
        ),
        row(TheRest, "arguments", "argv and environment as /proc shows them"),
        row(TheRest, "host_name", "the host name"),
        row(TheRest, "vector_registers", "FPU, AVX and protection key registers"),
        row(TheRest, "vdso", "vDSO"),
    ]
};

/// The table as the README has it: what has the same fate stands together.
pub fn markdown() -> String {
    let mut text = String::from("| | what | saved and restored | moved |\n|---|---|---|---|\n");
    let mut groups: Vec<(Family, Fate, Fate, Vec<&str>)> = Vec::new();
    for row in ROWS {
        let same =
            |group: &&mut (Family, Fate, Fate, _)| (group.0, group.1, group.2) == (row.family, row.saved, row.moved);
        match groups.iter_mut().find(same) {
            Some(group) => group.3.push(row.name),
            None => groups.push((row.family, row.saved, row.moved, vec![row.name])),
        }
    }
    for (family, saved, moved, names) in groups {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            family.name(),
            names.join("; "),
            words(saved),
            words(moved)
        );
    }
    text
}

fn words(fate: Fate) -> String {
    match fate {
        Fate::Survives => "yes".to_owned(),
        Fate::Refused(reason) => format!("refused: {reason}"),
        Fate::RefusedUnlessRoot(reason) => format!("as root; else refused: {reason}"),
        Fate::Home => "yes; comes home to go on with it".to_owned(),
        Fate::Changes(what) => format!("yes, but {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_row_once_and_families_together() {
        let ids: BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        let names: BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!((ids.len(), names.len()), (ROWS.len(), ROWS.len()));
        let mut families: Vec<_> = ROWS.iter().map(|row| row.family.name()).collect();
        families.dedup();
        assert_eq!(families.len(), 7, "{families:?}");
    }
}
