//! What a job *is*, as plain data: the structured part of an image.
//!
//! ```text
//! Job ─┬─ Host, Clocks, CpuFeatures      where and when it was frozen
//!      ├─ OpenFile*                       open file descriptions: what `dup` and `fork` share
//!      ├─ SharedMemory*                   what several areas, of one or more processes, show
//!      ├─ Ipc                             System V objects and POSIX message queues
//!      ├─ Terminal                        who has it, and its modes
//!      ├─ Zombie*                         processes that have ended and were not waited for
//!      └─ Process ─┬─ Memory ── Area*     layout only; page contents travel as raw runs
//!                  ├─ Signals             dispositions, shared pending queue, timers
//!                  ├─ Slot*               descriptors: number, close-on-exec → open file description
//!                  └─ Thread*             registers, extended state, masks, per-thread pointers
//! ```
//!
//! These are *stored* types: they say what was found, in the kernel's own units (bytes, nanoseconds, raw flag
//! words), and know nothing of how it was read or how it is rebuilt. Addresses are those of the target and are
//! plain `u64`, because nothing in this crate may dereference one. Byte strings that the kernel does not promise to
//! be UTF-8 (paths, names) are bytes.
//!
//! bincode has no schema evolution: a change of any type here is a new section version in [`crate::format`].

use serde::{Deserialize, Serialize};

/// A whole job at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The id that `vctl ps` shows; unique per origin.
    pub id: String,
    /// The name given with `vrun -n`, if any.
    pub name: Option<String>,
    /// The command line that was given to `vrun`.
    #[serde(with = "byte_strings")]
    pub command: Vec<Vec<u8>>,
    pub host: Host,
    pub clocks: Clocks,
    pub cpu: CpuFeatures,
    /// What the slots of all processes point to.
    pub files: Vec<OpenFile>,
    /// What the shared areas of all processes point to.
    pub shared: Vec<SharedMemory>,
    pub ipc: Ipc,
    /// Of the session from which it was started, if it had that in the foreground.
    pub terminal: Option<Terminal>,
    /// Each after its parent, if that is one of them. The first is the one that was started.
    pub processes: Vec<Process>,
    pub zombies: Vec<Zombie>,
}

/// Identity of the host that a job sees as its own: its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub nodename: String,
    /// `uname -r` and `uname -v`, for people: nothing is decided from them.
    pub kernel: String,
    pub machine: String,
}

/// A terminal: `struct termios` without what belongs to the line, and the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The process group in the foreground; 0, like that of a process: one that began outside of the job.
    pub foreground: i32,
    /// `c_iflag`, `c_oflag`, `c_lflag`.
    pub input: u32,
    pub output: u32,
    pub local: u32,
    /// `c_cc`.
    pub characters: [u8; 19],
    pub rows: u16,
    pub columns: u16,
}

/// Clock readings at the instant of freezing, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub realtime: u64,
    /// `CLOCK_MONOTONIC` as the job sees it (its time namespace included).
    pub monotonic: u64,
    /// `CLOCK_BOOTTIME` as the job sees it.
    pub boottime: u64,
}

/// Instruction-set extensions that the program may have found with CPUID: Linux' names (`/proc/cpuinfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    pub vendor: String,
    pub model: String,
    /// Sorted, without duplicates.
    pub flags: Vec<String>,
}

/// One process (thread group) that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Its parent if that is one of the job's processes, else 0: whoever is over the job.
    pub parent: i32,
    /// 0, like the session: one that began outside of the job.
    pub group: i32,
    pub session: i32,
    /// What its parent is sent when it ends: 0 or a signal (`clone(2)`).
    pub exit_signal: i32,
    /// The signal by which job control has stopped it, else 0.
    pub stopped: i32,
    /// Its parent has waited for that stop.
    pub stop_seen: bool,
    /// Where `/proc/PID/exe` led.
    #[serde(with = "serde_bytes")]
    pub executable: Vec<u8>,
    pub memory: Memory,
    pub signals: Signals,
    /// Ascending by number.
    pub descriptors: Vec<Slot>,
    #[serde(with = "serde_bytes")]
    pub working_directory: Vec<u8>,
    pub umask: u32,
    pub credentials: Credentials,
    /// `RLIMIT_*` in numeric order (`asm-generic/resource.h`).
    pub limits: Vec<Limit>,
    pub personality: u64,
    pub dumpable: u32,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score: i32,
    /// `PR_SET_THP_DISABLE`.
    pub no_huge_pages: bool,
    pub controls: ProcessControls,
    pub used: Usage,
    /// The thread group leader first.
    pub threads: Vec<Thread>,
}

/// What a process once asked of the kernel for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessControls {
    /// `PR_GET_MDWE`: no memory that is or was writable may become executable.
    pub deny_write_execute: u32,
    /// `MEMBARRIER_CMD_GET_REGISTRATIONS`: a bit for each registering command (`linux/membarrier.h`).
    pub barriers: u32,
    /// `/proc/PID/coredump_filter`.
    pub core_filter: u32,
}

/// Resources used before, by the process and (waited for) by its children, in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub user: u64,
    pub system: u64,
    pub children_user: u64,
    pub children_system: u64,
}

/// A process that has ended and whose parent, one of the job's, has not waited for it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub exit_signal: i32,
    /// As `wait(2)` gives it.
    pub status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, file-system.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient: bit N for capability N.
    pub capabilities: [u64; 5],
    /// `PR_GET_SECUREBITS`.
    pub secure_bits: u32,
}

/// The address space: what is mapped, not what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Ascending, not overlapping; the program's own areas only (the vDSO's are in [`Memory::vdso`]).
    pub areas: Vec<Area>,
    pub layout: Layout,
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    pub vdso: Option<Vdso>,
    /// What `mlockall` has ordered for areas to come: `MCL_FUTURE`, `MCL_ONFAULT`.
    pub lock_future: u32,
    /// Bit N: protection key N is allocated (`pkey_alloc`), or the kernel's own for memory that is only executed.
    pub keys: u16,
}

/// One area of memory, `/proc/PID/smaps` in our own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC`.
    pub protection: u32,
    pub kind: AreaKind,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// `MAP_GROWSDOWN`: a stack that the kernel extends.
    pub grows_down: bool,
    /// `MAP_NORESERVE`.
    pub no_reserve: bool,
    /// Locked with `mlock`.
    pub locked: bool,
    /// … with `MLOCK_ONFAULT`.
    pub locked_on_fault: bool,
    /// `MADV_*` values in force that outlive the call (`MADV_DONTFORK`, `MADV_HUGEPAGE`, …).
    pub advice: Vec<i32>,
    /// Ranges that `MADV_GUARD_INSTALL` made: (start, end), ascending.
    pub guards: Vec<(u64, u64)>,
    /// Bytes of a huge page (`MAP_HUGETLB`), else 0.
    pub huge_page: u64,
    /// `pkey_mprotect`; 0 is the default key.
    pub key: u32,
    /// `PR_SET_VMA_ANON_NAME`.
    pub name: Option<String>,
    /// `MAP_DROPPABLE`: its contents are never stored.
    pub droppable: bool,
    /// `mseal(2)`.
    pub sealed: bool,
}

/// What an area was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AreaKind {
    Anonymous,
    /// The `brk` area.
    Heap,
    /// The initial thread's stack.
    Stack,
    /// A file. Where the mapping is private, pages of its own lie over those of the file.
    File(FileMapping),
    /// Shared memory without a file.
    Shared {
        object: u32,
        /// In bytes.
        offset: u64,
    },
}

/// Memory that areas of one process or more show: all of it, or what of it the image has.
///
/// Its contents are stored as those of a process whose index follows those of the processes, at addresses that are
/// offsets; but not if [`SharedKind::is_stored`] says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMemory {
    /// In bytes.
    pub size: u64,
    pub kind: SharedKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedKind {
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    Anonymous {
        /// Bytes of a huge page, else 0.
        huge_page: u64,
    },
    /// A file that no name leads to and that nobody has open: a memfd, or a deleted file.
    Unnamed {
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Bytes of a huge page, else 0.
        huge_page: u64,
    },
    /// The same, but an open file of the job shows it too and has its contents.
    Open { file: u32 },
    /// A file with a name.
    File {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Modification time, nanoseconds since the epoch.
        modified: i64,
        /// An area shows it shared and may write to it: nothing else will do in its place.
        written: bool,
    },
    /// `shmget(2)`: in [`Ipc::segments`], if the job is saved.
    SystemV { id: i32 },
    /// Of a job that moves: a file that stays at home, which an area shows shared and may write to. What is here is kept in
    /// step with it; `size` is what of it can be read, in whole pages.
    Mirrored {
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
}

/// Most bytes of [`SharedKind::Mirrored`] that a job may have.
pub const MIRRORED_MAX: u64 = 256 << 20;

impl SharedKind {
    /// Whether an image has the contents.
    pub fn is_stored(&self) -> bool {
        match self {
            Self::Anonymous { .. } | Self::Unnamed { .. } | Self::SystemV { .. } | Self::Mirrored { .. } => true,
            Self::File { written, .. } => !written,
            Self::Open { .. } => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMapping {
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// In bytes.
    pub offset: u64,
    pub device: u64,
    pub inode: u64,
    /// Index into [`Job::shared`].
    pub object: u32,
}

/// `struct prctl_mm_map`: the boundaries that `/proc/PID/stat` and `brk` work from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// The kernel's own code in the process. Programs keep pointers into it, so it must answer at this address for life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdso {
    /// Where `[vdso]` was.
    pub start: u64,
    /// Its bytes (an ELF shared object).
    #[serde(with = "serde_bytes")]
    pub code: Vec<u8>,
    /// The `[vvar]`-like areas in front of it: (start, end).
    pub data: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Dispositions that are not the default.
    pub actions: Vec<SignalAction>,
    /// Pending for the process as a whole, in order: raw `siginfo_t` (128 bytes each).
    #[serde(with = "byte_strings")]
    pub pending: Vec<Vec<u8>>,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF` as `getitimer` gave them.
    pub interval_timers: [IntervalTimer; 3],
    /// `timer_create(2)`, ascending by id.
    pub timers: Vec<PosixTimer>,
    /// Mask of the signals (bit 0 is signal 1) that a process which moves reads from descriptors: like these they stay at
    /// its origin. 0 in a file.
    pub read_at_origin: u64,
}

/// A timer of `timer_create(2)`, `/proc/PID/timers` and `timer_gettime` in our own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    /// A `CLOCK_*` number.
    pub clock: i32,
    pub notify: TimerNotify,
    /// `sigev_value`.
    pub value: u64,
    /// Nanoseconds; 0: fires once.
    pub interval: u64,
    /// Nanoseconds until it fires; 0: disarmed.
    pub remaining: u64,
    /// What its clock reads then, in nanoseconds; 0 for clocks of CPU time.
    pub expires: u64,
    /// It waits for a time of day, whatever happens to the clock (`TIMER_ABSTIME`).
    pub absolute: bool,
    /// `timer_getoverrun`.
    pub overrun: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimerNotify {
    None,
    Process { signal: i32 },
    Thread { signal: i32, tid: i32 },
}

/// `struct kernel_sigaction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    pub signal: i32,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// In microseconds; a zero `value` means disarmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalTimer {
    pub interval: u64,
    pub value: u64,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: i32,
    /// `PR_GET_NAME`.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    pub registers: Registers,
    /// The extended state as `NT_X86_XSTATE` gives it (standard format: legacy area, header, components).
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// The blocked mask, one bit per signal, bit 0 is signal 1.
    pub blocked: u64,
    /// Pending for this thread, raw `siginfo_t`.
    #[serde(with = "byte_strings")]
    pub pending: Vec<Vec<u8>>,
    pub alternate_stack: AlternateStack,
    pub robust_list: RobustList,
    /// `set_tid_address`.
    pub clear_child_tid: u64,
    pub rseq: Option<Rseq>,
    /// `PR_GET_TIMERSLACK`, nanoseconds.
    pub timer_slack: u64,
    /// `PR_GET_PDEATHSIG`.
    pub parent_death_signal: i32,
    pub scheduling: Scheduling,
    pub controls: ThreadControls,
    pub used: ThreadUsage,
}

/// What a thread may not do, or how the processor is to treat it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadControls {
    /// `PR_SET_TSC` with `PR_TSC_SIGSEGV`: reading the time-stamp counter is a fault.
    pub no_tsc: bool,
    /// `ARCH_SET_CPUID` with 0: the instruction is a fault.
    pub no_cpuid: bool,
    /// `PR_GET_SPECULATION_CTRL` of store bypass, indirect branches and L1D flushes.
    pub speculation: [u32; 3],
    /// `PR_MCE_KILL_GET`: 0 late, 1 early, 2 as the system has it. One more than that, so that 0 is unknown.
    pub memory_failure: u32,
}

/// CPU time used before, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadUsage {
    pub user: u64,
    pub system: u64,
}

/// `struct sched_attr` (`sched_setattr(2)`) and what else decides when a thread runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_RESET_ON_FORK` and its like.
    pub flags: u64,
    pub nice: i32,
    /// Of the real-time policies, 1 to 99.
    pub priority: u32,
    /// Of `SCHED_DEADLINE`, in nanoseconds: runtime, deadline, period.
    pub deadline: [u64; 3],
    /// Bit N: it may run on CPU N. Empty: on all.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    /// `ioprio_get(2)`.
    pub io_priority: i32,
}

/// `struct user_regs_struct` of x86_64, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlternateStack {
    pub address: u64,
    pub flags: i32,
    pub size: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobustList {
    pub head: u64,
    pub length: u64,
}

/// A registration with `rseq(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub number: i32,
    pub close_on_exec: bool,
    /// Index into [`Job::files`].
    pub file: u32,
}

/// An open file description: shared by every slot that `dup` or `fork` made from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// `O_*` status flags and access mode, as `/proc/PID/fdinfo` has them, without `O_CLOEXEC`.
    pub flags: u32,
    pub owner: Option<Owner>,
    /// Held through it.
    pub locks: Vec<FileLock>,
    pub kind: FileKind,
}

/// Who is sent a signal when I/O becomes possible: `F_SETOWN_EX` and `F_SETSIG`, fcntl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: i32,
    /// A number of the job's; 0: nobody.
    pub id: i32,
    /// 0: SIGIO without data.
    pub signal: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    pub holder: LockHolder,
    /// Exclusive.
    pub write: bool,
    pub start: u64,
    /// Inclusive; none: to the end of the file, however long it becomes.
    pub end: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockHolder {
    /// The open file description, by flock(2): the whole file.
    Whole,
    /// The open file description, by `F_OFD_SETLK`.
    Description,
    /// This process, by `F_SETLK`.
    Process(i32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    Regular(RegularFile),
    Directory {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// The cookie of `readdir`.
        offset: u64,
    },
    /// `/dev/null`, `/dev/zero`, `/dev/full`, `/dev/random`, `/dev/urandom`.
    Device {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        device: u64,
        offset: u64,
    },
    /// A stream that the job inherited (its terminal, or a pipe, file or socket that `vrun` got as standard input,
    /// output or error): a restored job gets its restorer's stream of the same number.
    Inherited {
        /// 0, 1 or 2.
        standard: u32,
        terminal: bool,
    },
    Pipe(PipeEnd),
    Socket(Box<Socket>),
    /// eventfd(2).
    Event {
        count: u64,
        semaphore: bool,
    },
    /// timerfd_create(2).
    Timer(TimerFile),
    /// signalfd(2).
    Signal {
        /// Bit 0 is signal 1.
        mask: u64,
    },
    /// epoll_create(2).
    Epoll {
        watches: Vec<EpollWatch>,
        /// Whether there was an event to be taken.
        ready: bool,
    },
    /// inotify_init(2), with nothing to be read.
    Inotify {
        /// Ascending by number.
        watches: Vec<InotifyWatch>,
    },
    /// pidfd_open(2).
    Process {
        /// 0: one that has ended and was waited for.
        pid: i32,
    },
    /// memfd_create(2).
    Memory(MemoryFile),
    /// A symbolic link itself (`O_PATH | O_NOFOLLOW`).
    Link {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// mq_open(3).
    Queue {
        /// Index into [`Ipc::queues`].
        queue: u32,
    },
}

/// An end of a pipe or FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeEnd {
    /// Index into [`Job::files`] of the first end of the same pipe, which alone says what follows.
    pub pipe: u32,
    /// Of a FIFO; empty for a pipe.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// `F_GETPIPE_SZ`.
    pub capacity: u32,
    /// How the content is divided into packets (`O_DIRECT` of pipe(2)), or one run of bytes.
    pub packets: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerFile {
    /// A `CLOCK_*` number.
    pub clock: i32,
    /// Expirations that were not read.
    pub ticks: u64,
    /// `TFD_TIMER_*`.
    pub set_flags: u32,
    /// Nanoseconds until the next expiration; 0: disarmed.
    pub remaining: u64,
    pub interval: u64,
}

/// What an epoll instance watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollWatch {
    /// The descriptor's number when it was added; it may have another meaning, or none, by now.
    pub number: i32,
    /// Index into [`Job::files`].
    pub file: u32,
    /// `EPOLL*`.
    pub events: u32,
    pub data: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// The number that `inotify_add_watch` gave.
    pub descriptor: i32,
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// `IN_*`.
    pub mask: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Index into [`Job::files`] of the first open file description of the same memory, which alone says what follows
    /// and has the content.
    pub memory: u32,
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Each description's own.
    pub offset: u64,
    pub size: u64,
    pub mode: u32,
    /// `F_SEAL_*`.
    pub seals: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_UNIX`, `AF_INET` or `AF_INET6`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    pub protocol: i32,
    /// A `struct sockaddr`, as getsockname(2) gives it; empty: none.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Of a Unix socket whose name is a path.
    pub place: Option<SocketPlace>,
    pub connection: Connection,
    /// Bit 0: nothing more will be received; bit 1: nothing more can be sent.
    pub shutdown: u8,
    pub options: Vec<SocketOption>,
    /// What was not received yet, in order; the bytes are this file's content.
    pub received: Vec<SocketMessage>,
}

/// What a path of a Unix socket led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketPlace {
    /// From where a relative path counts.
    #[serde(with = "serde_bytes")]
    pub directory: Vec<u8>,
    /// Of the socket's inode; 0: the path did not lead to the socket any more.
    pub mode: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    None,
    Listening {
        backlog: u32,
        /// Indices into [`Job::files`]: sockets that have connected and were not accepted, in order.
        waiting: Vec<u32>,
    },
    /// In a listener's queue.
    Waiting,
    /// To another Unix socket of the job: an index into [`Job::files`].
    Peer {
        file: u32,
    },
    /// To a Unix socket that was closed since.
    Closed {
        /// `ECONNRESET` was not reported yet.
        reset: bool,
    },
    /// A datagram socket's, to an Internet address: a `struct sockaddr`.
    Address(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What `setsockopt(2)` may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// A message, or of a stream the bytes up to the next message with descriptors or credentials of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketMessage {
    pub length: u32,
    /// Descriptors passed with it: indices into [`Job::files`].
    pub files: Vec<u32>,
    /// The sender's PID, user and group, if the receiver wants to know (`SO_PASSCRED`).
    pub credentials: Option<[u32; 3]>,
    /// A datagram's sender: a `struct sockaddr`; empty: it has no name.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
}

impl OpenFile {
    /// How many bytes of content the image holds for it; none if it is of a kind, or is marked, to have no content.
    pub fn content(&self) -> Option<u64> {
        match &self.kind {
            FileKind::Regular(file) => file.stored.then_some(file.size),
            FileKind::Memory(file) => Some(file.size),
            FileKind::Pipe(end) => Some(end.packets.iter().map(|length| u64::from(*length)).sum()),
            FileKind::Socket(socket) => Some(socket.received.iter().map(|message| u64::from(message.length)).sum()),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegularFile {
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    pub offset: u64,
    /// Size when the job was frozen.
    pub size: u64,
    pub mode: u32,
    /// Modification time, nanoseconds since the epoch.
    pub modified: i64,
    /// True when the image has a content section for this file.
    pub stored: bool,
}

/// What a job made by System V IPC and POSIX message queues, whether or not it has it attached or open: sysvipc(7),
/// mq_overview(7). Empty in the image of a job that moves, whose objects stay at home.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// Each kind ascending by id.
    pub segments: Vec<Segment>,
    pub semaphores: Vec<SemaphoreSet>,
    pub messages: Vec<MessageQueue>,
    pub queues: Vec<PosixQueue>,
}

/// `struct ipc_perm`: a System V object as such. Who made it is its first process's user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcObject {
    /// By which programs know it.
    pub id: i32,
    /// 0: `IPC_PRIVATE`, or it was removed.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    pub gid: u32,
    /// Of segments with `SHM_DEST` and `SHM_LOCKED`.
    pub mode: u32,
}

/// `shmget(2)`. Its contents are those of the [`SharedMemory`] of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub object: IpcObject,
    /// In bytes, as was asked for.
    pub size: u64,
}

/// `semget(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    pub object: IpcObject,
    pub semaphores: Vec<Semaphore>,
    pub adjustments: Vec<Adjustment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    pub value: u16,
    /// `GETPID`: the process that changed it last; 0: none, or one that is outside of the job.
    pub last: i32,
}

/// What is added to a semaphore when a process ends (`SEM_UNDO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjustment {
    pub process: i32,
    /// Of the semaphore in its set.
    pub number: u16,
    pub value: i16,
}

/// `msgget(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    pub object: IpcObject,
    /// The most bytes in it (`msg_qbytes`).
    pub room: u64,
    /// The process that sent last; 0: none, or one that is outside of the job.
    pub last: i32,
    /// The oldest first.
    pub messages: Vec<Message>,
}

/// A message of either kind of queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its type, or its priority.
    pub kind: i64,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// `mq_open(3)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixQueue {
    /// Without the slash in front.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The name is gone (`mq_unlink`).
    pub unlinked: bool,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// `mq_maxmsg` and `mq_msgsize`.
    pub most: u32,
    pub size: u32,
    /// As they would be received.
    pub messages: Vec<Message>,
    pub notify: Option<QueueNotify>,
}

/// `mq_notify(3)`: who is told when a message comes into the empty queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueNotify {
    pub process: i32,
    /// 0: it is registered, and is told nothing (`SIGEV_NONE`).
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
}

/// `Vec<Vec<u8>>` without an element-by-element encoding.
mod byte_strings {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Item(#[serde(with = "serde_bytes")] Vec<u8>);

    #[derive(Serialize)]
    struct ItemRef<'a>(#[serde(with = "serde_bytes")] &'a [u8]);

    pub(super) fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        list.iter()
            .map(|bytes| ItemRef(bytes))
            .collect::<Vec<_>>()
            .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Ok(Vec::<Item>::deserialize(deserializer)?
            .into_iter()
            .map(|item| item.0)
            .collect())
    }
}
