//! The system-call table: one row for every x86_64 number, and all that vrun knows of it.
//!
//! A row says what happens to the call at home (`native`: most run without anyone noticing) and away from home (`away`:
//! done by the guest's kernel, forwarded to the deputy, or a reason to go home). The filters, the marshalling of the
//! guest's arguments, the executor's checks and the README's table all come from here.
//!
//! ```text
//!                     ┌ Local ────── the guest's kernel; never notified
//!   row(number).away ─┤ Forward ──── pointers marshalled as its `Arg`s say, executed by the deputy
//!                     │ Both ─────── forwarded, and if that succeeds also done here
//!                     │ Special ──── decided by the values of the arguments, in `decide`
//!                     │ Home ─────── the job goes home and does it there
//!                     └ Refuse ───── an errno
//! ```
//!
//! Argument lists are those of the kernel's `include/linux/syscalls.h`, sizes those of its x86_64 `uapi` structures.

use std::borrow::Cow;
use std::fmt::Write;

use Arg::*;
use Away::{Both, Forward, Home, Local, Refuse};
use Native::{Free, Track};
use Size::*;
use Special::*;

/// One system call.
#[derive(Debug)]
pub struct Row {
    /// Its x86_64 number.
    pub number: u32,
    /// Its name in the kernel.
    pub name: &'static str,
    /// What happens to it at home.
    pub native: Native,
    /// What happens to it away from home.
    pub away: Away,
    /// The subject it belongs to, or why it is treated so: a short phrase for people.
    pub why: &'static str,
}

/// What happens to a call while its job runs at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// It is never notified.
    Free,
    /// It is notified, so that none is under way while a checkpoint is taken, and then continues.
    Track,
    /// It fails with this errno, because of this.
    Refuse(i32, &'static str),
}

/// What happens to a call while its job runs away from home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// The guest's kernel does it; never notified.
    Local,
    /// The deputy does it; arguments beyond the list are zero.
    Forward(&'static [Arg]),
    /// The deputy does it, and when that succeeded the guest's kernel does it too and its answer counts.
    Both(&'static [Arg]),
    /// It depends on the values of the arguments; if it is forwarded, then with this list.
    Special(Special, &'static [Arg]),
    /// The job goes home, because of this, and does it there.
    Home(&'static str),
    /// It fails with this errno, because of this.
    Refuse(i32, &'static str),
}

/// Calls whose treatment depends on their arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Bytes in or out of a descriptor, in chunks when there are many; vectors become one buffer.
    Transfer,
    /// `sendmsg`, `recvmsg` and their plurals.
    Messages,
    /// Forwarded, but files of `/proc` about the process's own memory are the guest's.
    Open,
    /// Anonymous memory is local, the rest is the supervisor's.
    Mmap,
    /// Local, but what waits until a file is on its disk is the supervisor's.
    Msync,
    /// By the command.
    Ioctl,
    /// By the command.
    Fcntl,
    /// By the option; names of processes and relations in the tree cross, what is the thread's own stays.
    Prctl,
    /// Forwarded but for options whose values have addresses in them.
    SocketOption,
    /// To itself local, to others forwarded.
    Signal,
    /// Real time forwarded, processor time local: it is measured where the process runs.
    Itimer,
    /// Reading the own limits is local, setting them both, those of others forwarded.
    Limits,
    /// Its own local, that of others forwarded.
    Priority,
    /// Forwarded, but unsharing the table is not possible for the deputy.
    CloseRange,
}

/// What one argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// No argument of this call: zero.
    Unused,
    /// A number: also a descriptor, a PID, flags.
    Value,
    /// A path: NUL-terminated, at most 4096 bytes.
    Path,
    /// Another NUL-terminated string, of which the kernel looks at this many bytes.
    Text(u16),
    /// Memory that is read.
    In(Size),
    /// Memory that is written as a whole when the call succeeds.
    Out(Size),
    /// Memory that is read and written, or written only sometimes.
    InOut(Size),
    /// A time that the kernel may reduce, and does not mind if it cannot (`poll_select_finish` in `fs/select.c`).
    Timeout(u32),
    /// Memory of which as many bytes are written as the call returns.
    Got(Size),
    /// `struct epoll_event`s, as many as that argument says; as many are written as the call returns.
    Events(u8),
    /// A value whose length is the `int` that argument points to: room before the call, size after it.
    Name(u8),
    /// A signal mask for the time of the call, with its size in that argument: kept by the guest.
    Mask(u8),
    /// `pselect6`'s address of a mask and its size: kept by the guest.
    MaskPair,
    /// `struct iovec`s, always one when forwarded, their number in the next argument.
    Vector,
    /// One `struct msghdr`.
    Message,
    /// `struct mmsghdr`s, as many as that argument says.
    Batch(u8),
}

/// How large the memory is that an argument points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Bytes.
    Is(u32),
    /// As many bytes as that argument, a `size_t`, says.
    Long(u8),
    /// As many bytes as that argument, an `int`, says.
    Int(u8),
    /// As many items as that argument, an `int`, says, of this size.
    Times(u8, u32),
    /// A bit for each descriptor below that argument, in whole longs.
    Bits(u8),
}

/// A condition on one argument under which a call is notified at all: `arguments[argument] & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits looked at.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// What is to be done with one call, given its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Local,
    Forward([Arg; 6]),
    Both([Arg; 6]),
    Mmap,
    Msync,
    Home(Cow<'static, str>),
    Refuse(i32),
}

const ABSENT: &str = "not implemented by Linux on this architecture, which says so itself";
const ADMIN: &str = "administration of the host";
const ASYNC: &str = "asynchronous I/O into memory";
const ATTRIBUTES: &str = "attributes of the process";
const CLOCKS: &str = "clocks and sleeping";
const CREDENTIALS: &str = "changes of credentials";
const DATA: &str = "contents of files, pipes and directories";
const DESCRIPTORS: &str = "descriptors";
const DEVICES: &str = "terminals and devices, by command";
const HANDLES: &str = "structures with addresses or lengths inside";
const IPC: &str = "System V IPC and POSIX message queues";
const KEYS: &str = "kernel keyrings";
const LIMITS: &str = "resource limits";
const MAPPING: &str = "memory mapped from a file";
const MAPPING_KINDS: &str = "memory shared with the kernel or with others";
const MEMORY: &str = "the process's own memory";
const MOUNTS: &str = "mounts, roots and namespaces";
const OTHERS: &str = "priority of itself and of others";
const PATHS: &str = "files and directories by name";
const PIDFD: &str = "processes as descriptors";
const PLACE: &str = "working directory, umask, host name";
const PROCESSES: &str = "new processes and programs";
const SEGMENTS: &str = "x86 descriptor tables and ports";
const SELF: &str = "what the process is and has used";
const SENDING: &str = "signals to itself and to others";
const SIGNALFD: &str = "signals as a descriptor";
const SIGNALS: &str = "signal handling";
const SOCKETS: &str = "sockets";
const THREADS: &str = "threads, futexes and scheduling";
const TIMERS: &str = "timers that send signals";
const TRACING: &str = "tracing, inspection and sandboxes";
const TREE: &str = "parents, children, groups and sessions";
const URING: &str = "its rings bypass every system call; programs fall back without it";
const WAITING: &str = "waiting for descriptors";

const V: Arg = Value;
const P: Arg = Path;
const SET: Arg = InOut(Bits(0));
const ROOM: Arg = InOut(Is(4));
const HIDE: Native = Native::Refuse(libc::ENOSYS, URING);

const fn r(number: u32, name: &'static str, native: Native, away: Away, why: &'static str) -> Row {
    Row {
        number,
        name,
        native,
        away,
        why,
    }
}

const fn special(special: Special, list: &'static [Arg]) -> Away {
    Away::Special(special, list)
}

#[rustfmt::skip]
static TABLE: &[Row] = &[
    r(0,   "read",                   Free,  special(Transfer, &[V, Got(Long(2)), V]), DATA),
    r(1,   "write",                  Free,  special(Transfer, &[V, In(Long(2)), V]), DATA),
    r(2,   "open",                   Track, special(Open, &[P, V, V]), PATHS),
    r(3,   "close",                  Free,  Forward(&[V]), DESCRIPTORS),
    r(4,   "stat",                   Free,  Forward(&[P, Out(Is(144))]), PATHS),
    r(5,   "fstat",                  Free,  Forward(&[V, Out(Is(144))]), DESCRIPTORS),
    r(6,   "lstat",                  Free,  Forward(&[P, Out(Is(144))]), PATHS),
    r(7,   "poll",                   Free,  Forward(&[InOut(Times(1, 8)), V, V]), WAITING),
    r(8,   "lseek",                  Free,  Forward(&[V, V, V]), DATA),
    r(9,   "mmap",                   Free,  special(Mmap, &[]), MAPPING),
    r(10,  "mprotect",               Free,  Local, MEMORY),
    r(11,  "munmap",                 Free,  Local, MEMORY),
    r(12,  "brk",                    Free,  Local, MEMORY),
    r(13,  "rt_sigaction",           Free,  Local, SIGNALS),
    r(14,  "rt_sigprocmask",         Free,  Local, SIGNALS),
    r(15,  "rt_sigreturn",           Free,  Local, SIGNALS),
    r(16,  "ioctl",                  Free,  special(Ioctl, &[]), DEVICES),
    r(17,  "pread64",                Free,  special(Transfer, &[V, Got(Long(2)), V, V]), DATA),
    r(18,  "pwrite64",               Free,  special(Transfer, &[V, In(Long(2)), V, V]), DATA),
    r(19,  "readv",                  Free,  special(Transfer, &[V, Vector, V]), DATA),
    r(20,  "writev",                 Free,  special(Transfer, &[V, Vector, V]), DATA),
    r(21,  "access",                 Free,  Forward(&[P, V]), PATHS),
    r(22,  "pipe",                   Track, Forward(&[Out(Is(8))]), DESCRIPTORS),
    r(23,  "select",                 Free,  Forward(&[V, SET, SET, SET, Timeout(16)]), WAITING),
    r(24,  "sched_yield",            Free,  Local, THREADS),
    r(25,  "mremap",                 Free,  Local, MEMORY),
    r(26,  "msync",                  Free,  special(Msync, &[]), MAPPING),
    r(27,  "mincore",                Free,  Local, MEMORY),
    r(28,  "madvise",                Free,  Local, MEMORY),
    r(29,  "shmget",                 Track, Home(IPC), IPC),
    r(30,  "shmat",                  Track, Home(IPC), IPC),
    r(31,  "shmctl",                 Free,  Home(IPC), IPC),
    r(32,  "dup",                    Track, Forward(&[V]), DESCRIPTORS),
    r(33,  "dup2",                   Track, Forward(&[V, V]), DESCRIPTORS),
    r(34,  "pause",                  Free,  Local, SIGNALS),
    r(35,  "nanosleep",              Free,  Local, CLOCKS),
    r(36,  "getitimer",              Free,  special(Itimer, &[V, Out(Is(32))]), TIMERS),
    r(37,  "alarm",                  Free,  Forward(&[V]), TIMERS),
    r(38,  "setitimer",              Free,  special(Itimer, &[V, In(Is(32)), Out(Is(32))]), TIMERS),
    r(39,  "getpid",                 Free,  Local, SELF),
    r(40,  "sendfile",               Free,  Forward(&[V, V, InOut(Is(8)), V]), DATA),
    r(41,  "socket",                 Track, Forward(&[V, V, V]), SOCKETS),
    r(42,  "connect",                Track, Forward(&[V, In(Int(2)), V]), SOCKETS),
    r(43,  "accept",                 Track, Forward(&[V, Name(2), ROOM]), SOCKETS),
    r(44,  "sendto",                 Free,  special(Transfer, &[V, In(Long(2)), V, V, In(Int(5)), V]), SOCKETS),
    r(45,  "recvfrom",               Free,  special(Transfer, &[V, Got(Long(2)), V, V, Name(5), ROOM]), SOCKETS),
    r(46,  "sendmsg",                Free,  special(Messages, &[V, Message, V]), SOCKETS),
    r(47,  "recvmsg",                Free,  special(Messages, &[V, Message, V]), SOCKETS),
    r(48,  "shutdown",               Free,  Forward(&[V, V]), SOCKETS),
    r(49,  "bind",                   Track, Forward(&[V, In(Int(2)), V]), SOCKETS),
    r(50,  "listen",                 Track, Forward(&[V, V]), SOCKETS),
    r(51,  "getsockname",            Free,  Forward(&[V, Name(2), ROOM]), SOCKETS),
    r(52,  "getpeername",            Free,  Forward(&[V, Name(2), ROOM]), SOCKETS),
    r(53,  "socketpair",             Track, Forward(&[V, V, V, Out(Is(8))]), SOCKETS),
    r(54,  "setsockopt",             Free,  special(SocketOption, &[V, V, V, In(Int(4)), V]), SOCKETS),
    r(55,  "getsockopt",             Free,  special(SocketOption, &[V, V, V, Name(4), ROOM]), SOCKETS),
    r(56,  "clone",                  Track, Home(PROCESSES), PROCESSES),
    r(57,  "fork",                   Track, Home(PROCESSES), PROCESSES),
    r(58,  "vfork",                  Track, Home(PROCESSES), PROCESSES),
    r(59,  "execve",                 Track, Home(PROCESSES), PROCESSES),
    r(60,  "exit",                   Free,  Local, THREADS),
    r(61,  "wait4",                  Free,  Forward(&[V, InOut(Is(4)), V, InOut(Is(144))]), TREE),
    r(62,  "kill",                   Free,  special(Signal, &[V, V]), SENDING),
    r(63,  "uname",                  Free,  Forward(&[Out(Is(390))]), PLACE),
    r(64,  "semget",                 Track, Home(IPC), IPC),
    r(65,  "semop",                  Free,  Home(IPC), IPC),
    r(66,  "semctl",                 Free,  Home(IPC), IPC),
    r(67,  "shmdt",                  Free,  Home(IPC), IPC),
    r(68,  "msgget",                 Track, Home(IPC), IPC),
    r(69,  "msgsnd",                 Free,  Home(IPC), IPC),
    r(70,  "msgrcv",                 Free,  Home(IPC), IPC),
    r(71,  "msgctl",                 Free,  Home(IPC), IPC),
    r(72,  "fcntl",                  Free,  special(Fcntl, &[]), DESCRIPTORS),
    r(73,  "flock",                  Free,  Forward(&[V, V]), DESCRIPTORS),
    r(74,  "fsync",                  Free,  Forward(&[V]), DATA),
    r(75,  "fdatasync",              Free,  Forward(&[V]), DATA),
    r(76,  "truncate",               Free,  Forward(&[P, V]), PATHS),
    r(77,  "ftruncate",              Free,  Forward(&[V, V]), DATA),
    r(78,  "getdents",               Free,  Forward(&[V, Got(Int(2)), V]), DATA),
    r(79,  "getcwd",                 Free,  Forward(&[Got(Long(1)), V]), PLACE),
    r(80,  "chdir",                  Free,  Forward(&[P]), PLACE),
    r(81,  "fchdir",                 Free,  Forward(&[V]), PLACE),
    r(82,  "rename",                 Free,  Forward(&[P, P]), PATHS),
    r(83,  "mkdir",                  Free,  Forward(&[P, V]), PATHS),
    r(84,  "rmdir",                  Free,  Forward(&[P]), PATHS),
    r(85,  "creat",                  Track, Forward(&[P, V]), PATHS),
    r(86,  "link",                   Free,  Forward(&[P, P]), PATHS),
    r(87,  "unlink",                 Free,  Forward(&[P]), PATHS),
    r(88,  "symlink",                Free,  Forward(&[P, P]), PATHS),
    r(89,  "readlink",               Free,  Forward(&[P, Got(Int(2)), V]), PATHS),
    r(90,  "chmod",                  Free,  Forward(&[P, V]), PATHS),
    r(91,  "fchmod",                 Free,  Forward(&[V, V]), DESCRIPTORS),
    r(92,  "chown",                  Free,  Forward(&[P, V, V]), PATHS),
    r(93,  "fchown",                 Free,  Forward(&[V, V, V]), DESCRIPTORS),
    r(94,  "lchown",                 Free,  Forward(&[P, V, V]), PATHS),
    r(95,  "umask",                  Free,  Forward(&[V]), PLACE),
    r(96,  "gettimeofday",           Free,  Local, CLOCKS),
    r(97,  "getrlimit",              Free,  Local, SELF),
    r(98,  "getrusage",              Free,  Local, SELF),
    r(99,  "sysinfo",                Free,  Local, SELF),
    r(100, "times",                  Free,  Local, SELF),
    r(101, "ptrace",                 Track, Home(TRACING), TRACING),
    r(102, "getuid",                 Free,  Forward(&[]), SELF),
    r(103, "syslog",                 Free,  Home(ADMIN), ADMIN),
    r(104, "getgid",                 Free,  Forward(&[]), SELF),
    r(105, "setuid",                 Track, Home(CREDENTIALS), CREDENTIALS),
    r(106, "setgid",                 Track, Home(CREDENTIALS), CREDENTIALS),
    r(107, "geteuid",                Free,  Forward(&[]), SELF),
    r(108, "getegid",                Free,  Forward(&[]), SELF),
    r(109, "setpgid",                Track, Forward(&[V, V]), TREE),
    r(110, "getppid",                Free,  Forward(&[]), TREE),
    r(111, "getpgrp",                Free,  Forward(&[]), TREE),
    r(112, "setsid",                 Track, Forward(&[]), TREE),
    r(113, "setreuid",               Track, Home(CREDENTIALS), CREDENTIALS),
    r(114, "setregid",               Track, Home(CREDENTIALS), CREDENTIALS),
    r(115, "getgroups",              Free,  Forward(&[V, InOut(Times(0, 4))]), SELF),
    r(116, "setgroups",              Track, Home(CREDENTIALS), CREDENTIALS),
    r(117, "setresuid",              Track, Home(CREDENTIALS), CREDENTIALS),
    r(118, "getresuid",              Free,  Forward(&[Out(Is(4)), Out(Is(4)), Out(Is(4))]), SELF),
    r(119, "setresgid",              Track, Home(CREDENTIALS), CREDENTIALS),
    r(120, "getresgid",              Free,  Forward(&[Out(Is(4)), Out(Is(4)), Out(Is(4))]), SELF),
    r(121, "getpgid",                Free,  Forward(&[V]), TREE),
    r(122, "setfsuid",               Track, Home(CREDENTIALS), CREDENTIALS),
    r(123, "setfsgid",               Track, Home(CREDENTIALS), CREDENTIALS),
    r(124, "getsid",                 Free,  Forward(&[V]), TREE),
    // The data of the oldest version is shorter; what the kernel does not write stays as it was.
    r(125, "capget",                 Free,  Forward(&[InOut(Is(8)), InOut(Is(24))]), SELF),
    r(126, "capset",                 Track, Home(CREDENTIALS), CREDENTIALS),
    r(127, "rt_sigpending",          Free,  Local, SIGNALS),
    r(128, "rt_sigtimedwait",        Free,  Local, SIGNALS),
    r(129, "rt_sigqueueinfo",        Free,  special(Signal, &[V, V, In(Is(128))]), SENDING),
    r(130, "rt_sigsuspend",          Free,  Local, SIGNALS),
    r(131, "sigaltstack",            Free,  Local, SIGNALS),
    r(132, "utime",                  Free,  Forward(&[P, In(Is(16))]), PATHS),
    r(133, "mknod",                  Free,  Forward(&[P, V, V]), PATHS),
    r(134, "uselib",                 Free,  Home(PROCESSES), PROCESSES),
    r(135, "personality",            Free,  Local, SELF),
    r(136, "ustat",                  Free,  Forward(&[V, Out(Is(32))]), PATHS),
    r(137, "statfs",                 Free,  Forward(&[P, Out(Is(120))]), PATHS),
    r(138, "fstatfs",                Free,  Forward(&[V, Out(Is(120))]), DESCRIPTORS),
    r(139, "sysfs",                  Free,  Home(ADMIN), ADMIN),
    r(140, "getpriority",            Free,  special(Priority, &[V, V]), OTHERS),
    r(141, "setpriority",            Free,  special(Priority, &[V, V, V]), OTHERS),
    r(142, "sched_setparam",         Free,  Local, THREADS),
    r(143, "sched_getparam",         Free,  Local, THREADS),
    r(144, "sched_setscheduler",     Free,  Local, THREADS),
    r(145, "sched_getscheduler",     Free,  Local, THREADS),
    r(146, "sched_get_priority_max", Free,  Local, THREADS),
    r(147, "sched_get_priority_min", Free,  Local, THREADS),
    r(148, "sched_rr_get_interval",  Free,  Local, THREADS),
    r(149, "mlock",                  Free,  Local, MEMORY),
    r(150, "munlock",                Free,  Local, MEMORY),
    r(151, "mlockall",               Free,  Local, MEMORY),
    r(152, "munlockall",             Free,  Local, MEMORY),
    r(153, "vhangup",                Free,  Home(ADMIN), ADMIN),
    r(154, "modify_ldt",             Track, Home(SEGMENTS), SEGMENTS),
    r(155, "pivot_root",             Track, Home(MOUNTS), MOUNTS),
    r(156, "_sysctl",                Free,  Local, ABSENT),
    r(157, "prctl",                  Free,  special(Prctl, &[]), ATTRIBUTES),
    r(158, "arch_prctl",             Free,  Local, THREADS),
    r(159, "adjtimex",               Free,  Home(ADMIN), ADMIN),
    r(160, "setrlimit",              Free,  Both(&[V, In(Is(16))]), LIMITS),
    r(161, "chroot",                 Track, Home(MOUNTS), MOUNTS),
    r(162, "sync",                   Free,  Forward(&[]), DATA),
    r(163, "acct",                   Free,  Home(ADMIN), ADMIN),
    r(164, "settimeofday",           Free,  Home(ADMIN), ADMIN),
    r(165, "mount",                  Track, Home(MOUNTS), MOUNTS),
    r(166, "umount2",                Track, Home(MOUNTS), MOUNTS),
    r(167, "swapon",                 Free,  Home(ADMIN), ADMIN),
    r(168, "swapoff",                Free,  Home(ADMIN), ADMIN),
    r(169, "reboot",                 Free,  Home(ADMIN), ADMIN),
    r(170, "sethostname",            Free,  Home(ADMIN), ADMIN),
    r(171, "setdomainname",          Free,  Home(ADMIN), ADMIN),
    r(172, "iopl",                   Track, Home(SEGMENTS), SEGMENTS),
    r(173, "ioperm",                 Track, Home(SEGMENTS), SEGMENTS),
    r(174, "create_module",          Free,  Local, ABSENT),
    r(175, "init_module",            Free,  Home(ADMIN), ADMIN),
    r(176, "delete_module",          Free,  Home(ADMIN), ADMIN),
    r(177, "get_kernel_syms",        Free,  Local, ABSENT),
    r(178, "query_module",           Free,  Local, ABSENT),
    r(179, "quotactl",               Free,  Home(ADMIN), ADMIN),
    r(180, "nfsservctl",             Free,  Local, ABSENT),
    r(181, "getpmsg",                Free,  Local, ABSENT),
    r(182, "putpmsg",                Free,  Local, ABSENT),
    r(183, "afs_syscall",            Free,  Local, ABSENT),
    r(184, "tuxcall",                Free,  Local, ABSENT),
    r(185, "security",               Free,  Local, ABSENT),
    r(186, "gettid",                 Free,  Local, SELF),
    r(187, "readahead",              Free,  Forward(&[V, V, V]), DATA),
    r(188, "setxattr",               Free,  Forward(&[P, Text(256), In(Long(3)), V, V]), PATHS),
    r(189, "lsetxattr",              Free,  Forward(&[P, Text(256), In(Long(3)), V, V]), PATHS),
    r(190, "fsetxattr",              Free,  Forward(&[V, Text(256), In(Long(3)), V, V]), DESCRIPTORS),
    r(191, "getxattr",               Free,  Forward(&[P, Text(256), Got(Long(3)), V]), PATHS),
    r(192, "lgetxattr",              Free,  Forward(&[P, Text(256), Got(Long(3)), V]), PATHS),
    r(193, "fgetxattr",              Free,  Forward(&[V, Text(256), Got(Long(3)), V]), DESCRIPTORS),
    r(194, "listxattr",              Free,  Forward(&[P, Got(Long(2)), V]), PATHS),
    r(195, "llistxattr",             Free,  Forward(&[P, Got(Long(2)), V]), PATHS),
    r(196, "flistxattr",             Free,  Forward(&[V, Got(Long(2)), V]), DESCRIPTORS),
    r(197, "removexattr",            Free,  Forward(&[P, Text(256)]), PATHS),
    r(198, "lremovexattr",           Free,  Forward(&[P, Text(256)]), PATHS),
    r(199, "fremovexattr",           Free,  Forward(&[V, Text(256)]), DESCRIPTORS),
    r(200, "tkill",                  Free,  special(Signal, &[V, V]), SENDING),
    r(201, "time",                   Free,  Local, CLOCKS),
    r(202, "futex",                  Free,  Local, THREADS),
    r(203, "sched_setaffinity",      Free,  Local, THREADS),
    r(204, "sched_getaffinity",      Free,  Local, THREADS),
    r(205, "set_thread_area",        Free,  Local, ABSENT),
    r(206, "io_setup",               Track, Home(ASYNC), ASYNC),
    r(207, "io_destroy",             Free,  Home(ASYNC), ASYNC),
    r(208, "io_getevents",           Free,  Home(ASYNC), ASYNC),
    r(209, "io_submit",              Free,  Home(ASYNC), ASYNC),
    r(210, "io_cancel",              Free,  Home(ASYNC), ASYNC),
    r(211, "get_thread_area",        Free,  Local, ABSENT),
    r(212, "lookup_dcookie",         Free,  Home(ADMIN), ADMIN),
    r(213, "epoll_create",           Track, Forward(&[V]), DESCRIPTORS),
    r(214, "epoll_ctl_old",          Free,  Local, ABSENT),
    r(215, "epoll_wait_old",         Free,  Local, ABSENT),
    r(216, "remap_file_pages",       Free,  Home(MAPPING_KINDS), MAPPING_KINDS),
    r(217, "getdents64",             Free,  Forward(&[V, Got(Int(2)), V]), DATA),
    r(218, "set_tid_address",        Free,  Local, THREADS),
    r(219, "restart_syscall",        Free,  Local, SIGNALS),
    r(220, "semtimedop",             Free,  Home(IPC), IPC),
    r(221, "fadvise64",              Free,  Forward(&[V, V, V, V]), DATA),
    r(222, "timer_create",           Free,  Local, TIMERS),
    r(223, "timer_settime",          Free,  Local, TIMERS),
    r(224, "timer_gettime",          Free,  Local, TIMERS),
    r(225, "timer_getoverrun",       Free,  Local, TIMERS),
    r(226, "timer_delete",           Free,  Local, TIMERS),
    r(227, "clock_settime",          Free,  Home(ADMIN), ADMIN),
    r(228, "clock_gettime",          Free,  Local, CLOCKS),
    r(229, "clock_getres",           Free,  Local, CLOCKS),
    r(230, "clock_nanosleep",        Free,  Local, CLOCKS),
    r(231, "exit_group",             Free,  Local, THREADS),
    r(232, "epoll_wait",             Free,  Forward(&[V, Events(2), V, V]), WAITING),
    r(233, "epoll_ctl",              Free,  Forward(&[V, V, V, In(Is(12))]), WAITING),
    r(234, "tgkill",                 Free,  special(Signal, &[V, V, V]), SENDING),
    r(235, "utimes",                 Free,  Forward(&[P, In(Is(32))]), PATHS),
    r(236, "vserver",                Free,  Local, ABSENT),
    r(237, "mbind",                  Free,  Local, MEMORY),
    r(238, "set_mempolicy",          Free,  Local, MEMORY),
    r(239, "get_mempolicy",          Free,  Local, MEMORY),
    r(240, "mq_open",                Track, Home(IPC), IPC),
    r(241, "mq_unlink",              Free,  Home(IPC), IPC),
    r(242, "mq_timedsend",           Free,  Home(IPC), IPC),
    r(243, "mq_timedreceive",        Free,  Home(IPC), IPC),
    r(244, "mq_notify",              Track, Home(IPC), IPC),
    r(245, "mq_getsetattr",          Free,  Home(IPC), IPC),
    r(246, "kexec_load",             Free,  Home(ADMIN), ADMIN),
    r(247, "waitid",                 Free,  Forward(&[V, V, InOut(Is(128)), V, InOut(Is(144))]), TREE),
    r(248, "add_key",                Free,  Home(KEYS), KEYS),
    r(249, "request_key",            Free,  Home(KEYS), KEYS),
    r(250, "keyctl",                 Free,  Home(KEYS), KEYS),
    r(251, "ioprio_set",             Free,  Forward(&[V, V, V]), DATA),
    r(252, "ioprio_get",             Free,  Forward(&[V, V]), DATA),
    r(253, "inotify_init",           Track, Forward(&[]), DESCRIPTORS),
    r(254, "inotify_add_watch",      Free,  Forward(&[V, P, V]), PATHS),
    r(255, "inotify_rm_watch",       Free,  Forward(&[V, V]), DESCRIPTORS),
    r(256, "migrate_pages",          Free,  Local, MEMORY),
    r(257, "openat",                 Track, special(Open, &[V, P, V, V]), PATHS),
    r(258, "mkdirat",                Free,  Forward(&[V, P, V]), PATHS),
    r(259, "mknodat",                Free,  Forward(&[V, P, V, V]), PATHS),
    r(260, "fchownat",               Free,  Forward(&[V, P, V, V, V]), PATHS),
    r(261, "futimesat",              Free,  Forward(&[V, P, In(Is(32))]), PATHS),
    r(262, "newfstatat",             Free,  Forward(&[V, P, Out(Is(144)), V]), PATHS),
    r(263, "unlinkat",               Free,  Forward(&[V, P, V]), PATHS),
    r(264, "renameat",               Free,  Forward(&[V, P, V, P]), PATHS),
    r(265, "linkat",                 Free,  Forward(&[V, P, V, P, V]), PATHS),
    r(266, "symlinkat",              Free,  Forward(&[P, V, P]), PATHS),
    r(267, "readlinkat",             Free,  Forward(&[V, P, Got(Int(3)), V]), PATHS),
    r(268, "fchmodat",               Free,  Forward(&[V, P, V]), PATHS),
    r(269, "faccessat",              Free,  Forward(&[V, P, V]), PATHS),
    r(270, "pselect6",               Free,  Forward(&[V, SET, SET, SET, Timeout(16), MaskPair]), WAITING),
    r(271, "ppoll",                  Free,  Forward(&[InOut(Times(1, 8)), V, Timeout(16), Mask(4), V]), WAITING),
    r(272, "unshare",                Track, Home(MOUNTS), MOUNTS),
    r(273, "set_robust_list",        Free,  Local, THREADS),
    r(274, "get_robust_list",        Free,  Local, THREADS),
    r(275, "splice",                 Free,  Forward(&[V, InOut(Is(8)), V, InOut(Is(8)), V, V]), DATA),
    r(276, "tee",                    Free,  Forward(&[V, V, V, V]), DATA),
    r(277, "sync_file_range",        Free,  Forward(&[V, V, V, V]), DATA),
    r(278, "vmsplice",               Free,  Home(MAPPING_KINDS), MAPPING_KINDS),
    r(279, "move_pages",             Free,  Local, MEMORY),
    r(280, "utimensat",              Free,  Forward(&[V, P, In(Is(32)), V]), PATHS),
    r(281, "epoll_pwait",            Free,  Forward(&[V, Events(2), V, V, Mask(5), V]), WAITING),
    r(282, "signalfd",               Track, Home(SIGNALFD), SIGNALFD),
    r(283, "timerfd_create",         Track, Forward(&[V, V]), DESCRIPTORS),
    r(284, "eventfd",                Track, Forward(&[V]), DESCRIPTORS),
    r(285, "fallocate",              Free,  Forward(&[V, V, V, V]), DATA),
    r(286, "timerfd_settime",        Free,  Forward(&[V, V, In(Is(32)), Out(Is(32))]), DESCRIPTORS),
    r(287, "timerfd_gettime",        Free,  Forward(&[V, Out(Is(32))]), DESCRIPTORS),
    r(288, "accept4",                Track, Forward(&[V, Name(2), ROOM, V]), SOCKETS),
    r(289, "signalfd4",              Track, Home(SIGNALFD), SIGNALFD),
    r(290, "eventfd2",               Track, Forward(&[V, V]), DESCRIPTORS),
    r(291, "epoll_create1",          Track, Forward(&[V]), DESCRIPTORS),
    r(292, "dup3",                   Track, Forward(&[V, V, V]), DESCRIPTORS),
    r(293, "pipe2",                  Track, Forward(&[Out(Is(8)), V]), DESCRIPTORS),
    r(294, "inotify_init1",          Track, Forward(&[V]), DESCRIPTORS),
    r(295, "preadv",                 Free,  special(Transfer, &[V, Vector, V, V, V]), DATA),
    r(296, "pwritev",                Free,  special(Transfer, &[V, Vector, V, V, V]), DATA),
    r(297, "rt_tgsigqueueinfo",      Free,  special(Signal, &[V, V, V, In(Is(128))]), SENDING),
    r(298, "perf_event_open",        Track, Home(TRACING), TRACING),
    r(299, "recvmmsg",               Free,  special(Messages, &[V, Batch(2), V, V, Timeout(16)]), SOCKETS),
    r(300, "fanotify_init",          Track, Home(ADMIN), ADMIN),
    r(301, "fanotify_mark",          Free,  Home(ADMIN), ADMIN),
    r(302, "prlimit64",              Free,  special(Limits, &[V, V, In(Is(16)), Out(Is(16))]), LIMITS),
    r(303, "name_to_handle_at",      Free,  Home(HANDLES), HANDLES),
    r(304, "open_by_handle_at",      Track, Home(HANDLES), HANDLES),
    r(305, "clock_adjtime",          Free,  Home(ADMIN), ADMIN),
    r(306, "syncfs",                 Free,  Forward(&[V]), DATA),
    r(307, "sendmmsg",               Free,  special(Messages, &[V, Batch(2), V, V]), SOCKETS),
    r(308, "setns",                  Track, Home(MOUNTS), MOUNTS),
    r(309, "getcpu",                 Free,  Local, THREADS),
    r(310, "process_vm_readv",       Free,  Home(TRACING), TRACING),
    r(311, "process_vm_writev",      Free,  Home(TRACING), TRACING),
    r(312, "kcmp",                   Free,  Home(TRACING), TRACING),
    r(313, "finit_module",           Free,  Home(ADMIN), ADMIN),
    r(314, "sched_setattr",          Free,  Local, THREADS),
    r(315, "sched_getattr",          Free,  Local, THREADS),
    r(316, "renameat2",              Free,  Forward(&[V, P, V, P, V]), PATHS),
    r(317, "seccomp",                Track, Home(TRACING), TRACING),
    r(318, "getrandom",              Free,  Local, SELF),
    r(319, "memfd_create",           Track, Forward(&[Text(256), V]), DESCRIPTORS),
    r(320, "kexec_file_load",        Free,  Home(ADMIN), ADMIN),
    r(321, "bpf",                    Track, Home(TRACING), TRACING),
    r(322, "execveat",               Track, Home(PROCESSES), PROCESSES),
    r(323, "userfaultfd",            Track, Home(MAPPING_KINDS), MAPPING_KINDS),
    r(324, "membarrier",             Free,  Local, THREADS),
    r(325, "mlock2",                 Free,  Local, MEMORY),
    r(326, "copy_file_range",        Free,  Forward(&[V, InOut(Is(8)), V, InOut(Is(8)), V, V]), DATA),
    r(327, "preadv2",                Free,  special(Transfer, &[V, Vector, V, V, V, V]), DATA),
    r(328, "pwritev2",               Free,  special(Transfer, &[V, Vector, V, V, V, V]), DATA),
    r(329, "pkey_mprotect",          Free,  Local, MEMORY),
    r(330, "pkey_alloc",             Free,  Local, MEMORY),
    r(331, "pkey_free",              Free,  Local, MEMORY),
    r(332, "statx",                  Free,  Forward(&[V, P, V, V, Out(Is(256))]), PATHS),
    r(333, "io_pgetevents",          Free,  Home(ASYNC), ASYNC),
    r(334, "rseq",                   Free,  Local, THREADS),
    r(335, "uretprobe",              Free,  Local, THREADS),
    r(336, "uprobe",                 Free,  Local, THREADS),
    r(424, "pidfd_send_signal",      Track, Home(PIDFD), PIDFD),
    r(425, "io_uring_setup",         HIDE,  Refuse(libc::ENOSYS, URING), URING),
    r(426, "io_uring_enter",         HIDE,  Refuse(libc::ENOSYS, URING), URING),
    r(427, "io_uring_register",      HIDE,  Refuse(libc::ENOSYS, URING), URING),
    r(428, "open_tree",              Track, Home(MOUNTS), MOUNTS),
    r(429, "move_mount",             Track, Home(MOUNTS), MOUNTS),
    r(430, "fsopen",                 Track, Home(MOUNTS), MOUNTS),
    r(431, "fsconfig",               Track, Home(MOUNTS), MOUNTS),
    r(432, "fsmount",                Track, Home(MOUNTS), MOUNTS),
    r(433, "fspick",                 Track, Home(MOUNTS), MOUNTS),
    r(434, "pidfd_open",             Track, Home(PIDFD), PIDFD),
    r(435, "clone3",                 Track, Home(PROCESSES), PROCESSES),
    r(436, "close_range",            Free,  special(CloseRange, &[V, V, V]), DESCRIPTORS),
    r(437, "openat2",                Track, special(Open, &[V, P, In(Long(3)), V]), PATHS),
    r(438, "pidfd_getfd",            Track, Home(PIDFD), PIDFD),
    r(439, "faccessat2",             Free,  Forward(&[V, P, V, V]), PATHS),
    r(440, "process_madvise",        Free,  Home(PIDFD), PIDFD),
    r(441, "epoll_pwait2",           Free,  Forward(&[V, Events(2), V, In(Is(16)), Mask(5), V]), WAITING),
    r(442, "mount_setattr",          Track, Home(MOUNTS), MOUNTS),
    r(443, "quotactl_fd",            Free,  Home(ADMIN), ADMIN),
    r(444, "landlock_create_ruleset",Track, Home(TRACING), TRACING),
    r(445, "landlock_add_rule",      Track, Home(TRACING), TRACING),
    r(446, "landlock_restrict_self", Track, Home(TRACING), TRACING),
    r(447, "memfd_secret",           Track, Home(MAPPING_KINDS), MAPPING_KINDS),
    r(448, "process_mrelease",       Free,  Home(PIDFD), PIDFD),
    r(449, "futex_waitv",            Free,  Local, THREADS),
    r(450, "set_mempolicy_home_node",Free,  Local, MEMORY),
    r(451, "cachestat",              Free,  Forward(&[V, In(Is(16)), Out(Is(40)), V]), DATA),
    r(452, "fchmodat2",              Free,  Forward(&[V, P, V, V]), PATHS),
    r(453, "map_shadow_stack",       Free,  Local, MEMORY),
    r(454, "futex_wake",             Free,  Local, THREADS),
    r(455, "futex_wait",             Free,  Local, THREADS),
    r(456, "futex_requeue",          Free,  Local, THREADS),
    r(457, "statmount",              Free,  Home(MOUNTS), MOUNTS),
    r(458, "listmount",              Free,  Home(MOUNTS), MOUNTS),
    r(459, "lsm_get_self_attr",      Free,  Home(CREDENTIALS), CREDENTIALS),
    r(460, "lsm_set_self_attr",      Free,  Home(CREDENTIALS), CREDENTIALS),
    r(461, "lsm_list_modules",       Free,  Home(CREDENTIALS), CREDENTIALS),
    r(462, "mseal",                  Free,  Local, MEMORY),
    r(463, "setxattrat",             Free,  Home(HANDLES), HANDLES),
    r(464, "getxattrat",             Free,  Home(HANDLES), HANDLES),
    r(465, "listxattrat",            Free,  Forward(&[V, P, V, Got(Long(4)), V]), PATHS),
    r(466, "removexattrat",          Free,  Forward(&[V, P, V, Text(256)]), PATHS),
    r(467, "open_tree_attr",         Track, Home(MOUNTS), MOUNTS),
    r(468, "file_getattr",           Free,  Forward(&[V, P, Out(Long(3)), V, V]), PATHS),
    r(469, "file_setattr",           Free,  Forward(&[V, P, In(Long(3)), V, V]), PATHS),
];

/// The row of a system call; `None` for numbers that x86_64 does not have, or did not have up to Linux 6.17.
pub fn row(number: u32) -> Option<&'static Row> {
    TABLE
        .binary_search_by_key(&number, |row| row.number)
        .ok()
        .map(|index| &TABLE[index])
}

/// All rows, by rising number.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter()
}

/// The rows that the filter notifies at home. Those with [`Native::Refuse`] are answered by the filter itself.
pub fn notified_native() -> impl Iterator<Item = &'static Row> {
    rows().filter(|row| row.native == Track)
}

/// The rows that the filter notifies away from home, each under its [`Row::condition`]. Those with [`Away::Refuse`] are
/// answered by the filter itself; so must be, or be notified, all numbers that have no row.
pub fn notified_away() -> impl Iterator<Item = &'static Row> {
    rows().filter(|row| !matches!(row.away, Local | Refuse(..)))
}

impl Row {
    /// The only case in which the call needs to be notified away from home; `None` for always. One per call, because
    /// libseccomp gets several wrong.
    pub fn condition(&self) -> Option<Condition> {
        match self.away {
            Away::Special(Mmap, _) => Some(Condition {
                argument: 3,
                mask: libc::MAP_ANONYMOUS as u64,
                value: 0,
            }),
            Away::Special(Msync, _) => Some(Condition {
                argument: 2,
                mask: libc::MS_SYNC as u64,
                value: libc::MS_SYNC as u64,
            }),
            _ => None,
        }
    }
}

/// A process that none is: to it, a signal that another one sends itself is for others.
pub const NOBODY: i32 = i32::MIN;

/// All six arguments of a list.
fn six(list: &[Arg]) -> [Arg; 6] {
    std::array::from_fn(|i| list.get(i).copied().unwrap_or(Unused))
}

/// Decides one call of `process`. Of `arguments` only numbers and whether a pointer is null are looked at, so that both
/// sides of the channel come to the same decision.
pub(crate) fn decide(row: &Row, process: i32, arguments: &[u64; 6]) -> Decision {
    let (special, list) = match row.away {
        Local => return Decision::Local,
        Forward(list) => return Decision::Forward(six(list)),
        Both(list) => return Decision::Both(six(list)),
        Home(why) => return Decision::Home(why.into()),
        Refuse(errno, _) => return Decision::Refuse(errno),
        Away::Special(special, list) => (special, list),
    };
    let home = |why: &'static str| Decision::Home(why.into());
    let [first, second, third, ..] = *arguments;
    let own = |who: u64| who as i32 == process;
    match special {
        Transfer | Messages | Open => {}
        Mmap if arguments[3] as i32 & libc::MAP_ANONYMOUS != 0 => return Decision::Local,
        Mmap => return Decision::Mmap,
        Msync if third as i32 & libc::MS_SYNC == 0 => return Decision::Local,
        Msync => return Decision::Msync,
        Ioctl => return ioctl(second as u32),
        Fcntl => return fcntl(second as i32),
        Prctl => return prctl(first as i32),
        SocketOption if has_addresses(second as i32, third as i32) => {
            return home("a socket option with addresses in it");
        }
        // Delivered at once, as the program may expect, by the guest's own kernel.
        Signal if own(first) => return Decision::Local,
        Itimer if first as i32 != libc::ITIMER_REAL => return Decision::Local,
        Limits if first as i32 == 0 || own(first) => {
            return if third == 0 {
                Decision::Local
            } else {
                Decision::Both(six(list))
            };
        }
        Priority if first as u32 == libc::PRIO_PROCESS && (second as i32 == 0 || own(second)) => {
            return Decision::Local;
        }
        CloseRange if third as u32 & libc::CLOSE_RANGE_UNSHARE != 0 => {
            return home("close_range that unshares the table");
        }
        SocketOption | Signal | Itimer | Limits | Priority | CloseRange => {}
    }
    Decision::Forward(six(list))
}

/// `fcntl` by its command (`fs/fcntl.c`).
fn fcntl(command: i32) -> Decision {
    use libc::*;
    let third = match command {
        F_DUPFD | F_DUPFD_CLOEXEC | F_DUPFD_QUERY | F_CREATED_QUERY | F_GETFD | F_SETFD | F_GETFL | F_SETFL => Value,
        F_SETOWN | F_GETOWN | F_SETSIG | F_GETSIG | F_SETLEASE | F_GETLEASE | F_NOTIFY => Value,
        F_SETPIPE_SZ | F_GETPIPE_SZ | F_ADD_SEALS | F_GET_SEALS => Value,
        F_SETLK | F_SETLKW | F_OFD_SETLK | F_OFD_SETLKW => In(Is(size_of::<flock>() as u32)),
        F_GETLK | F_OFD_GETLK => InOut(Is(size_of::<flock>() as u32)),
        F_SETOWN_EX | F_SET_RW_HINT | F_SET_FILE_RW_HINT => In(Is(8)),
        F_GETOWN_EX | F_GETOWNER_UIDS | F_GET_RW_HINT | F_GET_FILE_RW_HINT => Out(Is(8)),
        _ => return Decision::Home(format!("fcntl command {command} is not known").into()),
    };
    Decision::Forward(six(&[V, V, third]))
}

// Commands that libc does not have for every target.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_DUPFD_QUERY: i32 = 1027;
const F_CREATED_QUERY: i32 = 1028;
const F_GET_RW_HINT: i32 = 1035;
const F_SET_RW_HINT: i32 = 1036;
const F_GET_FILE_RW_HINT: i32 = 1037;
const F_SET_FILE_RW_HINT: i32 = 1038;

/// `prctl` by its option (`kernel/sys.c`).
fn prctl(option: i32) -> Decision {
    use libc::*;
    match option {
        PR_SET_CHILD_SUBREAPER => Decision::Forward(six(&[V, V])),
        PR_GET_CHILD_SUBREAPER => Decision::Forward(six(&[V, Out(Is(4))])),
        // Asked of the guest: the deputy's executor is another thread than the one that had it.
        PR_SET_PDEATHSIG => Decision::Both(six(&[V, V])),
        // A guest and a deputy have to be looked at.
        PR_GET_DUMPABLE => Decision::Forward(six(&[V])),
        PR_SET_DUMPABLE => Decision::Home(ATTRIBUTES.into()),
        PR_SET_NAME => Decision::Both(six(&[V, Text(16)])),
        PR_SET_SECCOMP => Decision::Home(TRACING.into()),
        PR_CAPBSET_DROP | PR_SET_SECUREBITS | PR_SET_KEEPCAPS | PR_CAP_AMBIENT => Decision::Home(CREDENTIALS.into()),
        _ => Decision::Local,
    }
}

/// Socket options whose value holds addresses of the process: packet filters, netfilter's tables, mapped receives.
fn has_addresses(level: i32, option: i32) -> bool {
    const SOL_XDP: i32 = 283;
    const SOL_SCTP: i32 = 132;
    const PACKET_FANOUT_DATA: i32 = 22;
    const SCTP_SOCKOPT_CONNECTX3: i32 = 111;
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    match level {
        libc::SOL_SOCKET => matches!(option, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF),
        // Of netfilter's numbers only those that IPv6 does not use for options of its own.
        libc::SOL_IP => option >= 64,
        libc::SOL_IPV6 => matches!(option, 64 | 65 | 68 | 69),
        libc::SOL_TCP => option == TCP_ZEROCOPY_RECEIVE,
        libc::SOL_PACKET => option == PACKET_FANOUT_DATA,
        SOL_SCTP => option == SCTP_SOCKOPT_CONNECTX3,
        SOL_XDP => true,
        _ => false,
    }
}

/// `ioctl` by its command: the classic ones, whose numbers do not tell what they take, and then those whose numbers do
/// (`include/uapi/asm-generic/ioctl.h`).
fn ioctl(command: u32) -> Decision {
    let home = || Decision::Home(format!("ioctl {command:#x} is not known").into());
    let third = match command {
        // Terminals (asm-generic/ioctls.h): struct termios is 36 bytes, struct termio 18, struct winsize 8.
        0x5401 => Out(Is(36)),                                    // TCGETS
        0x5402..=0x5404 => In(Is(36)),                            // TCSETS, W, F
        0x5405 => Out(Is(18)),                                    // TCGETA
        0x5406..=0x5408 => In(Is(18)),                            // TCSETA, W, F
        0x5409..=0x540e => Value,                                 // TCSBRK, TCXONC, TCFLSH, TIOCEXCL, NXCL, SCTTY
        0x540f | 0x5411 | 0x5415 | 0x5419 | 0x541b => Out(Is(4)), // TIOCGPGRP, OUTQ, MGET, GSOFTCAR, FIONREAD
        0x5410 | 0x5416..=0x5418 | 0x541a => In(Is(4)),           // TIOCSPGRP, MBIS, MBIC, MSET, SSOFTCAR
        0x5412 => In(Is(1)),                                      // TIOCSTI
        0x5413 => Out(Is(8)),                                     // TIOCGWINSZ
        0x5414 => In(Is(8)),                                      // TIOCSWINSZ
        0x541d | 0x5422 | 0x5425 | 0x5427 | 0x5428 => Value,      // TIOCCONS, NOTTY, TCSBRKP, TIOCSBRK, CBRK
        0x5420 | 0x5421 | 0x5423 | 0x5452 => In(Is(4)),           // TIOCPKT, FIONBIO, TIOCSETD, FIOASYNC
        0x5424 | 0x5429 => Out(Is(4)),                            // TIOCGETD, GSID
        0x4004_5436 | 0x5441 => Value,                            // TIOCSIG, GPTPEER
        0x5450 | 0x5451 => Value,                                 // FIONCLEX, FIOCLEX
        0x5460 => Out(Is(8)),                                     // FIOQSIZE
        0x4b33 => Out(Is(1)),                                     // KDGKBTYPE
        0x4b3b | 0x4b44 => Out(Is(4)),                            // KDGETMODE, KDGKBMODE
        // Sockets (asm-generic/sockios.h, linux/sockios.h): struct ifreq is 40 bytes.
        0x8901 | 0x8902 => In(Is(4)),                                // FIOSETOWN, SIOCSPGRP
        0x8903..=0x8905 => Out(Is(4)),                               // FIOGETOWN, SIOCGPGRP, ATMARK
        0x8906 | 0x8907 => Out(Is(16)),                              // SIOCGSTAMP, STAMPNS
        0x8910 | 0x8913..=0x8917 | 0x8919..=0x891e => InOut(Is(40)), // interface name, flags, addresses, metric
        0x8921 | 0x8922 | 0x8927 | 0x8933 | 0x8935 | 0x8942 => InOut(Is(40)), // MTU, address, index, flags, queue
        // Block devices (linux/fs.h).
        0x125d => In(Is(4)),                             // BLKROSET
        0x125e | 0x1268 | 0x1278..=0x127c => Out(Is(4)), // BLKROGET, SSZGET, IOMIN .. DISCARDZEROES
        0x1260 | 0x1263 | 0x1265 => Out(Is(8)),          // BLKGETSIZE, RAGET, FRAGET
        0x1261 | 0x1262 | 0x1264 => Value,               // BLKFLSBUF, RASET, FRASET
        0x1267 | 0x127e => Out(Is(2)),                   // BLKSECTGET, ROTATIONAL
        0x1277 | 0x127f => In(Is(16)),                   // BLKDISCARD, ZEROOUT
        // Files (linux/fs.h): what the number says of the first four (long) is not what they take (int).
        0x8008_6601 | 0x8008_7601 => Out(Is(4)), // FS_IOC_GETFLAGS, GETVERSION
        0x4008_6602 | 0x4008_7602 => In(Is(4)),  // FS_IOC_SETFLAGS, SETVERSION
        0x4004_9409 => Value,                    // FICLONE: a descriptor
        1 => InOut(Is(4)),                       // FIBMAP
        2 => Out(Is(4)),                         // FIGETBSZ
        _ => {
            let (direction, size) = (command >> 30, command >> 16 & 0x3fff);
            if direction == 0 || size == 0 || is_opaque(command) {
                return home();
            }
            // What a command with _IOC_READ leaves as it was must stay so in the guest.
            if direction == 1 { In(Is(size)) } else { InOut(Is(size)) }
        }
    };
    Decision::Forward(six(&[V, V, third]))
}

/// Commands whose number has a size, while their argument has addresses in it, or more behind it, or is no pointer.
fn is_opaque(command: u32) -> bool {
    let kind = (command >> 8) as u8;
    let index = command as u8;
    match kind {
        b'"' | b'A' | b'H' | b'M' | b'N' | b'O' | b'U' | b'V' | b'b' | b'd' | b'k' | b't' | b'|' => true,
        // autofs, userfaultfd, KVM, vhost, MMC, device mapper.
        0x93 | 0xaa | 0xae | 0xaf | 0xb3 | 0xfd => true,
        // TUNSETIFF and its kin say int and take struct ifreq or more.
        b'T' => index >= 200,
        b'f' => index == 11,                         // FS_IOC_FIEMAP
        b'X' => matches!(index, 119 | 120),          // FIFREEZE, FITHAW
        b'R' => index == 3,                          // RNDADDENTROPY
        b'E' => matches!(index, 0x80 | 0x92 | 0x93), // EVIOCSFF, GMASK, SMASK
        0x94 => index != 13,                         // all of btrfs but FICLONERANGE
        _ => false,
    }
}

/// The README's table of what happens to each call away from home.
pub fn markdown() -> String {
    let mut groups: Vec<(String, &str, Vec<&str>)> = Vec::new();
    let order = [
        "done by the guest's kernel",
        "forwarded to the deputy",
        "depends on the arguments",
        "forwarded, then also done by the guest's kernel",
        "goes home",
        "refused",
    ];
    for row in rows() {
        let what = match row.away {
            Local => order[0].to_string(),
            Forward(_) => order[1].to_string(),
            // The arguments of these decide how, not whether.
            Away::Special(Transfer | Messages, _) => order[1].to_string(),
            Away::Special(..) => order[2].to_string(),
            Both(_) => order[3].to_string(),
            Home(_) => order[4].to_string(),
            Refuse(errno, _) => format!("{}: {}", order[5], errno_name(errno)),
        };
        match groups.iter_mut().find(|group| group.0 == what && group.1 == row.why) {
            Some(group) => group.2.push(row.name),
            None => groups.push((what, row.why, vec![row.name])),
        }
    }
    groups.sort_by_key(|group| order.iter().position(|name| group.0.starts_with(name)));
    let mut text = String::from("| away from home | subject | calls |\n|---|---|---|\n");
    for (what, why, names) in groups {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {what} | {why} | {} |", names.join(" "));
    }
    text
}

fn errno_name(errno: i32) -> String {
    if errno == libc::ENOSYS {
        "ENOSYS".to_string()
    } else {
        std::io::Error::from_raw_os_error(errno).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_row() {
        // Sysno::new and Sysno::iter leave out the last number of all.
        let last = syscalls::Sysno::file_setattr;
        let known: Vec<(u32, &str)> = (0..last as usize)
            .filter_map(syscalls::Sysno::new)
            .chain([last])
            .map(|call| (call.id() as u32, call.name()))
            .collect();
        let ours: Vec<(u32, &str)> = rows().map(|row| (row.number, row.name)).collect();
        for (ours, known) in ours.iter().zip(&known) {
            assert_eq!(ours, known);
        }
        assert_eq!(ours.len(), known.len());
        assert!(ours.is_sorted());
        assert_eq!(ours.last(), Some(&(469, "file_setattr")));
    }

    #[test]
    fn descriptors_and_names_never_meet_the_guests_kernel() {
        for row in rows() {
            let list = match row.away {
                Forward(list) | Both(list) | Away::Special(_, list) => list,
                Local | Home(_) | Refuse(..) => continue,
            };
            assert!(list.len() <= 6, "{}", row.name);
            for arg in list {
                let length = match arg {
                    In(Long(at) | Int(at) | Times(at, _) | Bits(at)) | Out(Long(at) | Int(at)) => at,
                    Got(Long(at) | Int(at)) | Events(at) | Name(at) | Mask(at) | Batch(at) => at,
                    _ => continue,
                };
                assert!(
                    usize::from(*length) < list.len(),
                    "{} has no argument {length}",
                    row.name
                );
            }
        }
        for name in ["read", "openat", "connect", "epoll_wait", "fcntl", "wait4", "prlimit64"] {
            assert!(notified_away().any(|row| row.name == name), "{name}");
        }
        for name in ["brk", "futex", "rt_sigreturn", "exit_group", "clock_nanosleep"] {
            assert!(!notified_away().any(|row| row.name == name), "{name}");
        }
    }

    #[test]
    fn at_home_the_data_path_is_free() {
        for name in [
            "read",
            "write",
            "poll",
            "epoll_wait",
            "futex",
            "mmap",
            "recvmsg",
            "sendto",
            "close",
        ] {
            assert!(!notified_native().any(|row| row.name == name), "{name}");
        }
        for name in ["openat", "socket", "clone3", "execve", "setns", "dup2", "memfd_create"] {
            assert!(notified_native().any(|row| row.name == name), "{name}");
        }
        assert_eq!(row(425).unwrap().native, Native::Refuse(libc::ENOSYS, URING));
        let conditional: Vec<&str> = notified_away()
            .filter(|r| r.condition().is_some())
            .map(|r| r.name)
            .collect();
        assert_eq!(conditional, ["mmap", "msync"]);
    }

    #[test]
    fn arguments_decide() {
        let decide = |name: &str, arguments: [u64; 6]| decide(rows().find(|r| r.name == name).unwrap(), 77, &arguments);
        let third = |decision| match decision {
            Decision::Forward(list) => list[2],
            other => panic!("{other:?}"),
        };
        assert_eq!(third(decide("ioctl", [0, 0x5401, 1, 0, 0, 0])), Out(Is(36)));
        assert_eq!(third(decide("ioctl", [0, 0x802c_542a, 1, 0, 0, 0])), InOut(Is(44))); // TCGETS2
        assert_eq!(third(decide("ioctl", [0, 0x8004_5430, 1, 0, 0, 0])), InOut(Is(4))); // TIOCGPTN
        for unknown in [0x8912, 0x8946, 0x4004_54ca, 0xc020_660b, 0xae01] {
            assert!(
                matches!(decide("ioctl", [0, unknown, 1, 0, 0, 0]), Decision::Home(_)),
                "{unknown:#x}"
            );
        }
        assert_eq!(decide("kill", [77, 9, 0, 0, 0, 0]), Decision::Local);
        assert!(matches!(decide("kill", [78, 9, 0, 0, 0, 0]), Decision::Forward(_)));
        assert_eq!(decide("prlimit64", [0, 7, 0, 1, 0, 0]), Decision::Local);
        assert!(matches!(decide("prlimit64", [77, 7, 1, 0, 0, 0]), Decision::Both(_)));
        assert!(matches!(decide("prlimit64", [78, 7, 1, 0, 0, 0]), Decision::Forward(_)));
        assert_eq!(decide("mmap", [0, 1, 0, 0x22, 0, 0]), Decision::Local);
        assert_eq!(decide("mmap", [0, 1, 0, 2, 3, 0]), Decision::Mmap);
        assert!(matches!(decide("fcntl", [0, 9999, 0, 0, 0, 0]), Decision::Home(_)));
    }

    #[test]
    fn the_table_for_people_names_every_call_once() {
        let text = markdown();
        for row in rows() {
            assert_eq!(text.matches(&format!("`{}`", row.name)).count(), 1, "{}", row.name);
        }
        assert!(
            text.lines()
                .all(|line| line.starts_with("| ") || line.starts_with("|-"))
        );
    }
}
