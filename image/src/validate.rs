//! What a job must satisfy before anything may rely on it: the one place where a peer's or a file's words are judged.
//!
//! ```text
//!  Job ── id, name, command, host, clocks, cpu
//!   ├ OpenFile, SharedMemory                      indices in range
//!   ├ Ipc ── segments, semaphores, queues         each identifier once, messages that fit
//!   ├ Process ── numbers, paths, credentials, …   a tree, parents first; groups do not cross sessions
//!   │  ├ Memory ── areas, layout, auxv, vdso      disjoint, page-aligned, below the top of user space
//!   │  ├ Signals ── actions, pending, timers      numbers 1..=64, siginfo_t of 128 bytes
//!   │  ├ Slot ── number → files                   indices in range
//!   │  └ Thread ── registers, scheduling, …       nothing that only a kernel may have
//!   └ Zombie ── parent, status                    children of the processes above
//! ```
//!
//! The rules are of two kinds: what later code indexes, adds up or allocates by, and what a kernel could not have given
//! to a program, so that nobody made it by freezing one. Whether this host can *do* what a job needs is not asked.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::format::PAGE;
use crate::state::*;

/// The first rule that a job breaks, as a sentence that says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(sentence: fmt::Arguments<'_>) -> Invalid {
        Invalid(sentence.to_string())
    }

    /// Says of what the sentence speaks.
    fn of(self, what: fmt::Arguments<'_>) -> Invalid {
        Invalid(format!("{what}: {}", self.0))
    }
}

/// Returns [`Invalid`] with the sentence unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err($crate::validate::Invalid::new(format_args!($($sentence)+)).into());
        }
    };
}
pub(crate) use ensure;

type Verdict = Result<(), Invalid>;

/// The end of user space with four page-table levels: `TASK_SIZE_MAX`, `arch/x86/include/asm/page_64_types.h`.
pub const USER_END: u64 = 0x7fff_ffff_f000;
/// The first address that is not canonical.
const CANONICAL_END: u64 = 1 << 47;
/// `PID_MAX_LIMIT`, `include/linux/threads.h`.
const MAX_PID: i32 = 1 << 22;
const MAX_PROCESSES: usize = 1 << 15;
const MAX_THREADS: usize = 1 << 16;
/// Areas of a process, slots of one, its open files, and its pending signals.
const MAX_ENTRIES: usize = 1 << 20;
/// `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// `NGROUPS_MAX`.
const MAX_GROUPS: usize = 1 << 16;
/// CPUs in an affinity mask: the most that `CONFIG_NR_CPUS` of x86_64 gives.
const MAX_CPUS: usize = 8192;
/// `CAP_LAST_CAP`, `include/uapi/linux/capability.h`.
const LAST_CAPABILITY: u32 = 40;
/// `ANON_VMA_NAME_MAX_LEN` without the zero, `kernel/sys.c`.
const MAX_AREA_NAME: usize = 79;
/// The sizes of huge pages that x86_64 has, in bytes.
const HUGE_PAGES: [u64; 2] = [2 << 20, 1 << 30];
/// Bytes in a `siginfo_t`, whose first four are its signal's number.
const SIGINFO: usize = 128;

impl Job {
    /// Checks everything that later code relies on, and that nothing is said which no kernel would have said.
    ///
    /// # Errors
    /// The first rule that is broken. Takes time linear in the job's size (hash sets for the uniqueness of numbers).
    pub fn validate(&self) -> Result<(), Invalid> {
        let of_id = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        ensure!(
            (1..=64).contains(&self.id.len()) && self.id.bytes().all(of_id),
            "the id must be 1 to 64 letters, digits, '-' and '_'"
        );
        if let Some(name) = &self.name {
            text("name", name, 64)?;
            ensure!(
                !name.is_empty() && !name.contains('/'),
                "the name must not be empty nor contain a slash"
            );
        }
        ensure!(!self.command.is_empty(), "the command line is empty");
        ensure!(
            self.command.iter().all(|word| !word.contains(&0)),
            "a word of the command line contains a zero byte"
        );
        text("node name", &self.host.nodename, 64)?;
        text("kernel version", &self.host.kernel, 256)?;
        text("machine", &self.host.machine, 64)?;
        let Clocks {
            realtime,
            monotonic,
            boottime,
        } = self.clocks;
        ensure!(
            [realtime, monotonic, boottime].iter().all(|clock| is_time(*clock)),
            "a clock reads more than 292 years"
        );
        text("CPU vendor", &self.cpu.vendor, 64)?;
        text("CPU model", &self.cpu.model, 256)?;
        ensure!(self.cpu.flags.len() <= 4096, "there are more than 4096 CPU flags");
        ensure!(
            self.cpu.flags.is_sorted_by(|a, b| a < b),
            "the CPU flags are not sorted, or one is there twice"
        );
        self.cpu.flags.iter().try_for_each(|flag| text("CPU flag", flag, 64))?;

        count("open files", self.files.len(), 0, MAX_ENTRIES)?;
        for (index, file) in self.files.iter().enumerate() {
            let check = || {
                file.check()?;
                let dangling = file.others().find(|other| *other as usize >= self.files.len());
                ensure!(
                    dangling.is_none(),
                    "refers to an open file that is not there: {dangling:?}"
                );
                if let FileKind::Queue { queue } = file.kind {
                    ensure!(
                        (queue as usize) < self.ipc.queues.len(),
                        "is the message queue {queue}, which is not there"
                    );
                }
                Ok(())
            };
            check().map_err(|invalid: Invalid| invalid.of(format_args!("open file {index}")))?;
        }
        count("shared memory objects", self.shared.len(), 0, MAX_ENTRIES)?;
        for (index, shared) in self.shared.iter().enumerate() {
            shared
                .check(self.files.len())
                .map_err(|invalid| invalid.of(format_args!("shared memory {index}")))?;
        }
        let mirrored = self
            .shared
            .iter()
            .filter(|memory| matches!(memory.kind, SharedKind::Mirrored { .. }));
        let mirrored = mirrored.fold(0_u64, |sum, memory| sum.saturating_add(memory.size));
        ensure!(
            mirrored <= MIRRORED_MAX,
            "{mirrored} bytes are to be kept in step with files"
        );
        count("processes", self.processes.len(), 1, MAX_PROCESSES)?;
        count("zombies", self.zombies.len(), 0, MAX_PROCESSES)?;
        let (mut pids, mut tids, mut sessions) = (HashSet::new(), HashSet::new(), HashMap::new());
        for process in &self.processes {
            let mut check = || {
                ensure!(!pids.contains(&process.pid), "this PID is there twice");
                process.check()?;
                ensure!(
                    process.parent == 0 || pids.contains(&process.parent),
                    "its parent {} is not one of the processes before it",
                    process.parent
                );
                pids.insert(process.pid);
                relations(&mut sessions, process.pid, process.group, process.session)?;
                let dangling = process
                    .descriptors
                    .iter()
                    .find(|slot| slot.file as usize >= self.files.len());
                ensure!(
                    dangling.is_none(),
                    "a descriptor refers to an open file that is not there: {dangling:?}"
                );
                for area in &process.memory.areas {
                    area.check_object(&self.shared)
                        .map_err(|invalid| invalid.of(format_args!("area {:#x}-{:#x}", area.start, area.end)))?;
                }
                let twice = process.threads.iter().find(|thread| !tids.insert(thread.tid));
                ensure!(twice.is_none(), "a thread of it has a TID that is there twice");
                Ok(())
            };
            check().map_err(|invalid: Invalid| invalid.of(format_args!("process {}", process.pid)))?;
        }
        if let Some(Terminal { foreground, .. }) = self.terminal {
            ensure!(
                self.processes.iter().any(|process| process.group == foreground),
                "the terminal is said to be process group {foreground}'s, in which there is no process"
            );
        }
        self.ipc.check(&pids)?;
        for segment in &self.ipc.segments {
            let of =
                |shared: &&SharedMemory| matches!(shared.kind, SharedKind::SystemV { id } if id == segment.object.id);
            let sizes: Vec<u64> = self.shared.iter().filter(of).map(|shared| shared.size).collect();
            ensure!(
                sizes == [segment.size.next_multiple_of(PAGE)],
                "the contents of the segment {} have {sizes:?} bytes",
                segment.object.id
            );
        }
        for zombie in &self.zombies {
            let mut check = || {
                zombie.check()?;
                ensure!(tids.insert(zombie.pid), "its PID is there twice");
                ensure!(
                    pids.contains(&zombie.parent),
                    "its parent {} is not one of the processes",
                    zombie.parent
                );
                relations(&mut sessions, zombie.pid, zombie.group, zombie.session)
            };
            check().map_err(|invalid: Invalid| invalid.of(format_args!("zombie {}", zombie.pid)))?;
        }
        Ok(())
    }
}

/// What `setpgid(2)` and `setsid(2)` leave true: a group lies in one session, a session's leader leads a group too, and
/// what lies in a session of the job is in a group of the job. `sessions` has those of the groups so far.
fn relations(sessions: &mut HashMap<i32, i32>, pid: i32, group: i32, session: i32) -> Verdict {
    ensure!(
        group != 0 || session == 0,
        "its session {session} is the job's and its process group is not"
    );
    ensure!(
        pid != session || pid == group,
        "it leads its session and is in the process group {group}"
    );
    let first = *sessions.entry(group).or_insert(session);
    ensure!(
        first == session,
        "its process group {group} is in the sessions {first} and {session}"
    );
    Ok(())
}

impl SharedMemory {
    fn check(&self, files: usize) -> Verdict {
        let whole = self.size.checked_next_multiple_of(PAGE);
        ensure!(whole.is_some_and(is_offset), "has {} bytes", self.size);
        match &self.kind {
            SharedKind::Anonymous { huge_page } | SharedKind::Unnamed { huge_page, .. } => {
                let unit = if *huge_page == 0 { PAGE } else { *huge_page };
                ensure!(
                    unit == PAGE || HUGE_PAGES.contains(&unit),
                    "there are no pages of {unit} bytes"
                );
                // A file may be as long as it is.
                let whole = matches!(self.kind, SharedKind::Unnamed { .. }) || self.size.is_multiple_of(unit);
                ensure!(whole, "has {} bytes, which are not pages of {unit}", self.size);
            }
            SharedKind::Open { file } => ensure!(
                (*file as usize) < files,
                "is said to be of open file {file}, which is not there"
            ),
            SharedKind::File { path: name, .. } => path("file", name)?,
            SharedKind::SystemV { id } => ensure!(*id >= 0, "has the identifier {id}"),
            SharedKind::Mirrored { .. } => ensure!(
                self.size.is_multiple_of(PAGE),
                "has {} bytes, which are not pages",
                self.size
            ),
        }
        Ok(())
    }
}

/// `SEMVMX`, `include/uapi/linux/sem.h`.
const MAX_SEMAPHORE: u16 = 32767;
/// `HARD_MSGMAX` and `HARD_MSGSIZEMAX`, `include/linux/ipc_namespace.h`.
const MAX_QUEUED: u32 = 1 << 16;
const MAX_MESSAGE: u32 = 1 << 24;
/// `MQ_PRIO_MAX`, `include/uapi/linux/mqueue.h`.
const PRIORITIES: i64 = 1 << 15;

impl Ipc {
    /// `pids` are those of the job's processes.
    fn check(&self, pids: &HashSet<i32>) -> Verdict {
        let kinds = [
            objects("segment", self.segments.iter().map(|segment| segment.object), 0o3777)?,
            objects("semaphore set", self.semaphores.iter().map(|set| set.object), 0o777)?,
            objects("message queue", self.messages.iter().map(|queue| queue.object), 0o777)?,
        ];
        count("System V objects", kinds.iter().sum(), 0, MAX_ENTRIES)?;
        for segment in &self.segments {
            let whole = segment.size.checked_next_multiple_of(PAGE);
            ensure!(
                segment.size > 0 && whole.is_some_and(is_offset),
                "the segment {} has {} bytes",
                segment.object.id,
                segment.size
            );
        }
        for set in &self.semaphores {
            let of = |invalid: Invalid| invalid.of(format_args!("semaphore set {}", set.object.id));
            set.check(pids).map_err(of)?;
        }
        for queue in &self.messages {
            let of = |invalid: Invalid| invalid.of(format_args!("message queue {}", queue.object.id));
            queue.check().map_err(of)?;
        }
        count("POSIX message queues", self.queues.len(), 0, MAX_ENTRIES)?;
        let mut names = HashSet::new();
        for queue in &self.queues {
            let name = String::from_utf8_lossy(&queue.name);
            let of = |invalid: Invalid| invalid.of(format_args!("POSIX message queue {name:?}"));
            queue.check(pids).map_err(of)?;
            ensure!(
                queue.unlinked || names.insert(&queue.name),
                "the POSIX message queue {name:?} is there twice"
            );
        }
        Ok(())
    }
}

/// Counts System V objects of a kind.
fn objects(kind: &str, all: impl Iterator<Item = IpcObject>, modes: u32) -> Result<usize, Invalid> {
    let (mut last, mut keys, mut found) = (-1, HashSet::new(), 0);
    for IpcObject { id, key, mode, .. } in all {
        ensure!(id > last, "the {kind} {id} is negative or out of order");
        ensure!(
            key == 0 || keys.insert(key),
            "the key {key:#x} leads to two objects: {kind}"
        );
        ensure!(mode & !modes == 0, "the {kind} {id} has mode {mode:#o}");
        (last, found) = (id, found + 1);
    }
    Ok(found)
}

impl SemaphoreSet {
    fn check(&self, pids: &HashSet<i32>) -> Verdict {
        count("semaphores", self.semaphores.len(), 1, 1 << 16)?;
        let fits = |one: &Semaphore| one.value <= MAX_SEMAPHORE && (0..=MAX_PID).contains(&one.last);
        ensure!(
            self.semaphores.iter().all(fits),
            "a semaphore has a value or process that none can have"
        );
        let mut seen = HashSet::new();
        for Adjustment { process, number, value } in &self.adjustments {
            ensure!(
                pids.contains(process) && usize::from(*number) < self.semaphores.len() && *value != 0,
                "process {process} adjusts the semaphore {number} by {value}"
            );
            ensure!(
                seen.insert((process, number)),
                "process {process} adjusts the semaphore {number} twice"
            );
        }
        Ok(())
    }
}

impl MessageQueue {
    fn check(&self) -> Verdict {
        ensure!(is_offset(self.room), "has room for {} bytes", self.room);
        ensure!((0..=MAX_PID).contains(&self.last), "its last sender is no process");
        count("messages", self.messages.len(), 0, MAX_ENTRIES)?;
        ensure!(
            self.messages.iter().all(|message| message.kind > 0),
            "a message has a type that none can have"
        );
        Ok(())
    }
}

impl PosixQueue {
    fn check(&self, pids: &HashSet<i32>) -> Verdict {
        let plain = !self.name.iter().any(|byte| matches!(byte, 0 | b'/'));
        ensure!(
            (1..=255).contains(&self.name.len()) && plain && !matches!(&self.name[..], b"." | b".."),
            "this is no name"
        );
        ensure!(self.mode & !0o7777 == 0, "has mode {:#o}", self.mode);
        ensure!(
            (1..=MAX_QUEUED).contains(&self.most) && (1..=MAX_MESSAGE).contains(&self.size),
            "holds {} messages of {} bytes",
            self.most,
            self.size
        );
        let fits =
            |message: &Message| (0..PRIORITIES).contains(&message.kind) && message.bytes.len() <= self.size as usize;
        ensure!(
            self.messages.len() <= self.most as usize && self.messages.iter().all(fits),
            "has a message that does not fit"
        );
        ensure!(
            self.messages.is_sorted_by(|a, b| a.kind >= b.kind),
            "its messages are not in the order of their priority"
        );
        if let Some(QueueNotify { process, signal, .. }) = self.notify {
            ensure!(
                pids.contains(&process) && (0..=64).contains(&signal),
                "notifies process {process} with signal {signal}"
            );
        }
        Ok(())
    }
}

impl Zombie {
    fn check(&self) -> Verdict {
        ensure!((1..=MAX_PID).contains(&self.pid), "the PID is not one");
        ensure!(
            [self.group, self.session].iter().all(|pid| (0..=MAX_PID).contains(pid)),
            "the process group or session is not a PID"
        );
        exit_signal(self.exit_signal)?;
        // WIFEXITED, WIFSIGNALED with or without a core: wait(2).
        let (signal, code) = (self.status & 0x7f, self.status >> 8);
        let ended = match signal {
            0 => self.status & 0x80 == 0 && (0..=0xff).contains(&code),
            _ => signal <= 64 && code == 0,
        };
        ensure!(
            ended,
            "the status {:#x} is not one of a process that has ended",
            self.status
        );
        Ok(())
    }
}

fn exit_signal(signal: i32) -> Verdict {
    ensure!((0..=64).contains(&signal), "the exit signal is {signal}");
    Ok(())
}

impl Process {
    fn check(&self) -> Verdict {
        ensure!((1..=MAX_PID).contains(&self.pid), "the PID is not one");
        // 0 is what a PID namespace shows of a process outside of it.
        ensure!(
            [self.parent, self.group, self.session]
                .iter()
                .all(|pid| (0..=MAX_PID).contains(pid)),
            "the parent, process group or session is not a PID"
        );
        exit_signal(self.exit_signal)?;
        // SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
        ensure!(
            matches!(self.stopped, 0 | 19..=22),
            "it is said to be stopped by signal {}",
            self.stopped
        );
        path("executable", &self.executable)?;
        path("working directory", &self.working_directory)?;
        ensure!(self.umask <= 0o777, "the umask is {:#o}", self.umask);
        self.credentials.check()?;
        count("limits", self.limits.len(), 0, 16)?;
        ensure!(
            self.limits.iter().all(|limit| limit.soft <= limit.hard),
            "a soft limit is above its hard limit"
        );
        ensure!(
            self.personality <= u64::from(u32::MAX),
            "the personality is {:#x}",
            self.personality
        );
        ensure!(self.dumpable <= 2, "dumpable is {}", self.dumpable);
        // OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX.
        ensure!(
            (-1000..=1000).contains(&self.oom_score),
            "the OOM score is adjusted by {}",
            self.oom_score
        );
        // MEMBARRIER_CMD_REGISTER_*: global, private, with core serialisation, with rseq.
        const REGISTERING: u32 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
        let ProcessControls {
            deny_write_execute,
            barriers,
            ..
        } = self.controls;
        ensure!(deny_write_execute <= 3, "the W^X rule is {deny_write_execute:#x}");
        ensure!(barriers & !REGISTERING == 0, "the memory barriers are {barriers:#x}");
        let Usage {
            user,
            system,
            children_user,
            children_system,
        } = self.used;
        spent(&[user, system, children_user, children_system])?;
        self.memory.check()?;
        self.signals.check()?;
        count("descriptors", self.descriptors.len(), 0, MAX_ENTRIES)?;
        ensure!(
            self.descriptors.iter().all(|slot| slot.number >= 0),
            "a descriptor is negative"
        );
        ensure!(
            self.descriptors.is_sorted_by(|a, b| a.number < b.number),
            "the descriptors are not ascending"
        );
        count("threads", self.threads.len(), 1, MAX_THREADS)?;
        ensure!(
            self.threads[0].tid == self.pid,
            "the first thread is {}, not the leader",
            self.threads[0].tid
        );
        for thread in &self.threads {
            thread
                .check()
                .map_err(|invalid| invalid.of(format_args!("thread {}", thread.tid)))?;
        }
        Ok(())
    }
}

impl Credentials {
    fn check(&self) -> Verdict {
        count("groups", self.groups.len(), 0, MAX_GROUPS)?;
        // (uid_t)-1 is nobody: `setresuid` takes it for "leave as it is", which would be our own.
        let all = self.uid.iter().chain(&self.gid).chain(&self.groups);
        ensure!(all.clone().all(|id| *id != u32::MAX), "a user or group id is -1");
        let [inheritable, permitted, effective, _, ambient] = self.capabilities;
        ensure!(
            self.capabilities.iter().all(|set| set >> (LAST_CAPABILITY + 1) == 0),
            "a set has a capability above {LAST_CAPABILITY}"
        );
        // What the kernel keeps true of them: capabilities(7).
        ensure!(
            effective & !permitted == 0,
            "the effective capabilities {effective:#x} are not all permitted"
        );
        ensure!(
            ambient & !(permitted & inheritable) == 0,
            "the ambient capabilities {ambient:#x} are not all permitted and inheritable"
        );
        // SECBIT_* up to SECBIT_EXEC_DENY_INTERACTIVE_LOCKED, `include/uapi/linux/securebits.h`.
        ensure!(self.secure_bits <= 0xfff, "the secure bits are {:#x}", self.secure_bits);
        Ok(())
    }
}

impl Memory {
    fn check(&self) -> Verdict {
        count("areas", self.areas.len(), 0, MAX_ENTRIES)?;
        let mut before = 0;
        for area in &self.areas {
            let check = || {
                range(area.start, area.end)?;
                ensure!(before <= area.start, "overlaps the area before it, or is out of order");
                area.check()
            };
            check().map_err(|invalid| invalid.of(format_args!("area {:#x}-{:#x}", area.start, area.end)))?;
            before = area.end;
        }
        self.layout.check()?;
        // MCL_FUTURE, and MCL_ONFAULT with it.
        ensure!(
            [0, 2, 6].contains(&self.lock_future),
            "areas to come are locked in the way {:#x}",
            self.lock_future
        );
        ensure!(
            self.auxv.len() <= 4096 && self.auxv.len().is_multiple_of(16),
            "the auxiliary vector has {} bytes",
            self.auxv.len()
        );
        match &self.vdso {
            Some(vdso) => vdso
                .check(&self.areas)
                .map_err(|invalid| invalid.of(format_args!("vdso"))),
            None => Ok(()),
        }
    }
}

impl Area {
    fn check(&self) -> Verdict {
        ensure!(self.protection <= 7, "has protection {:#x}", self.protection);
        if let AreaKind::File(file) = &self.kind {
            path("file", &file.path)?;
            ensure!(
                file.offset.is_multiple_of(PAGE),
                "the offset {:#x} in its file is not page-aligned",
                file.offset
            );
            let end = file.offset.checked_add(self.end - self.start);
            ensure!(end.is_some_and(is_offset), "goes beyond what a file can have");
        }
        // MADV_RANDOM, SEQUENTIAL, DONTFORK, MERGEABLE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, WIPEONFORK: the advice that is
        // a property of an area. The other numbers are actions, some of them destructive.
        count("pieces of advice", self.advice.len(), 0, 8)?;
        let foreign = self
            .advice
            .iter()
            .find(|advice| ![1, 2, 10, 12, 14, 15, 16, 18].contains(*advice));
        ensure!(
            foreign.is_none(),
            "has the advice {foreign:?}, which does not outlive the call"
        );
        ensure!(
            self.locked || !self.locked_on_fault,
            "is locked on fault and not locked"
        );
        count("guards", self.guards.len(), 0, MAX_ENTRIES)?;
        let mut before = self.start;
        for &(start, end) in &self.guards {
            range(start, end)?;
            ensure!(
                before <= start && end <= self.end,
                "its guard {start:#x}-{end:#x} is outside, or out of order"
            );
            before = end;
        }
        ensure!(
            self.huge_page == 0 || HUGE_PAGES.contains(&self.huge_page),
            "has pages of {} bytes, which there are not",
            self.huge_page
        );
        ensure!(
            self.huge_page == 0 || self.start.is_multiple_of(self.huge_page) && self.end.is_multiple_of(self.huge_page),
            "is not made of whole pages of {} bytes",
            self.huge_page
        );
        ensure!(self.key < 16, "has the protection key {}", self.key);
        if let Some(name) = &self.name {
            // `is_valid_name_char`, `kernel/sys.c`.
            let nameable = |c: u8| (b' '..0x7f).contains(&c) && !b"\\`$[]".contains(&c);
            ensure!(
                name.len() <= MAX_AREA_NAME && name.bytes().all(nameable),
                "has a name that the kernel does not take"
            );
            ensure!(
                !matches!(self.kind, AreaKind::File(_)),
                "is of a file and has a name of its own"
            );
        }
        Ok(())
    }

    /// A shared area shows a part of an object that is there.
    fn check_object(&self, shared: &[SharedMemory]) -> Verdict {
        let (object, offset) = match &self.kind {
            AreaKind::Shared { object, offset } => (object, offset),
            AreaKind::File(file) => (&file.object, &file.offset),
            AreaKind::Anonymous | AreaKind::Heap | AreaKind::Stack => return Ok(()),
        };
        let Some(object) = shared.get(*object as usize) else {
            return Err(Invalid::new(format_args!(
                "shows the shared memory {object}, which is not there"
            )));
        };
        ensure!(
            offset.is_multiple_of(PAGE.max(self.huge_page)),
            "the offset {offset:#x} in its shared memory is not page-aligned"
        );
        let end = offset.checked_add(self.end - self.start).filter(|end| is_offset(*end));
        // A file may be mapped beyond its end (SIGBUS), and is as long as it is.
        let inside = match object.kind {
            SharedKind::Anonymous { .. } | SharedKind::SystemV { .. } => {
                end.is_some_and(|end| end <= object.size.next_multiple_of(PAGE))
            }
            SharedKind::Unnamed { .. }
            | SharedKind::Open { .. }
            | SharedKind::File { .. }
            | SharedKind::Mirrored { .. } => end.is_some(),
        };
        ensure!(inside, "goes beyond the {} bytes of its shared memory", object.size);
        if let SharedKind::Anonymous { huge_page } | SharedKind::Unnamed { huge_page, .. } = object.kind {
            ensure!(
                huge_page == self.huge_page,
                "has pages of {} bytes and its shared memory of {huge_page}",
                self.huge_page
            );
        }
        Ok(())
    }
}

impl Layout {
    /// The order that `PR_SET_MM_MAP` demands (`validate_prctl_map_addr`, `kernel/sys.c`).
    fn check(&self) -> Verdict {
        let pairs = [
            ("code", self.start_code, self.end_code),
            ("data", self.start_data, self.end_data),
            ("brk", self.start_brk, self.brk),
            ("arguments", self.arg_start, self.arg_end),
            ("environment", self.env_start, self.env_end),
            ("stack", self.start_stack, self.start_stack),
        ];
        for (what, start, end) in pairs {
            ensure!(
                start <= end && end <= USER_END,
                "the {what} is said to be at {start:#x}-{end:#x}"
            );
        }
        Ok(())
    }
}

impl Vdso {
    fn check(&self, areas: &[Area]) -> Verdict {
        let length = self.code.len() as u64;
        ensure!(length <= 64 << 10, "has {length} bytes, the most is 64 KiB");
        let end = self.start.checked_add(length);
        count("data areas", self.data.len(), 0, 16)?;
        let mut ranges: Vec<(u64, u64)> = end.map(|end| (self.start, end)).into_iter().collect();
        ensure!(!ranges.is_empty(), "begins at {:#x}", self.start);
        ranges.extend(&self.data);
        ranges.sort_unstable();
        ranges.iter().try_for_each(|&(start, end)| range(start, end))?;
        ensure!(ranges.is_sorted_by(|a, b| a.1 <= b.0), "its code and data overlap");
        for (start, end) in ranges {
            let behind = areas.partition_point(|area| area.end <= start);
            let free = areas.get(behind).is_none_or(|area| end <= area.start);
            ensure!(free, "{start:#x}-{end:#x} overlaps an area");
        }
        Ok(())
    }
}

impl Signals {
    fn check(&self) -> Verdict {
        let mut seen = HashSet::new();
        for SignalAction { signal, .. } in &self.actions {
            // SIGKILL and SIGSTOP: sigaction(2) gives EINVAL.
            let settable = (1..=64).contains(signal) && *signal != 9 && *signal != 19;
            ensure!(settable, "signal {signal} has a disposition");
            ensure!(seen.insert(*signal), "signal {signal} has two dispositions");
        }
        let unblockable = 1 << (9 - 1) | 1 << (19 - 1);
        ensure!(
            self.read_at_origin & unblockable == 0,
            "it reads SIGKILL or SIGSTOP from a descriptor"
        );
        let micros = self
            .interval_timers
            .iter()
            .flat_map(|timer| [timer.interval, timer.value]);
        ensure!(
            micros.clone().all(|micros| micros <= i64::MAX as u64 / 1000),
            "an interval timer runs for more than 292 years"
        );
        count("timers", self.timers.len(), 0, MAX_ENTRIES)?;
        ensure!(
            self.timers.is_sorted_by(|a, b| a.id < b.id),
            "the timers are not ascending"
        );
        for timer in &self.timers {
            timer
                .check()
                .map_err(|invalid| invalid.of(format_args!("timer {}", timer.id)))?;
        }
        pending(&self.pending)
    }
}

impl PosixTimer {
    fn check(&self) -> Verdict {
        ensure!(self.id >= 0, "the id is negative");
        // Negative: the CPU clock of a process or thread (clock_getcpuclockid(3)), whose last bits say which; 3 is a
        // clock that is a descriptor, and has no timers.
        ensure!(
            matches!(self.clock, 0..=3 | 7..=9 | 11) || (self.clock < 0 && self.clock & 3 != 3),
            "the clock {} has no timers",
            self.clock
        );
        let signal = match self.notify {
            TimerNotify::None => 1,
            TimerNotify::Process { signal } => signal,
            TimerNotify::Thread { signal, tid } => {
                ensure!((1..=MAX_PID).contains(&tid), "it notifies the thread {tid}");
                signal
            }
        };
        ensure!((1..=64).contains(&signal), "it sends the signal {signal}");
        ensure!(
            [self.interval, self.remaining, self.expires]
                .iter()
                .all(|time| is_time(*time)),
            "it waits for more than 292 years"
        );
        ensure!(self.overrun >= 0, "the overrun is {}", self.overrun);
        Ok(())
    }
}

impl OpenFile {
    fn check(&self) -> Verdict {
        // O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC: do_dentry_open (`fs/open.c`) takes them away, and opening with one again
        // could destroy the file. O_CLOEXEC belongs to the slot.
        const FORBIDDEN: u32 = 0o100 | 0o200 | 0o400 | 0o1000 | 0o2000000;
        ensure!(
            self.flags & FORBIDDEN == 0,
            "has the flags {:#o}, which no open file has",
            self.flags
        );
        let offset = match &self.kind {
            FileKind::Regular(file) => {
                path("file", &file.path)?;
                ensure!(is_offset(file.size), "has {} bytes", file.size);
                ensure!(file.mode <= 0o177777, "has mode {:#o}", file.mode);
                file.offset
            }
            FileKind::Directory {
                path: directory,
                offset,
            } => {
                path("directory", directory)?;
                *offset
            }
            FileKind::Link { path: link } => {
                path("symbolic link", link)?;
                0
            }
            FileKind::Device {
                path: device, offset, ..
            } => {
                let known = ["null", "zero", "full", "random", "urandom"].map(|name| format!("/dev/{name}"));
                ensure!(
                    known.iter().any(|path| path.as_bytes() == device),
                    "is a device other than null, zero, …"
                );
                *offset
            }
            FileKind::Inherited { standard, .. } => {
                ensure!(*standard <= 2, "is said to be the standard stream {standard}");
                0
            }
            FileKind::Pipe(end) => {
                if !end.path.is_empty() {
                    path("FIFO", &end.path)?;
                }
                // Root may make a pipe as large as an int can say (fs/pipe.c); its pages are the kernel's memory.
                ensure!(end.capacity <= 1 << 30, "is a pipe of {} bytes", end.capacity);
                count("packets", end.packets.len(), 0, MAX_ENTRIES)?;
                let held = self.content().unwrap_or(0);
                ensure!(held <= end.capacity.into(), "is a pipe with {held} bytes in it");
                0
            }
            FileKind::Socket(socket) => {
                socket.check()?;
                0
            }
            FileKind::Event { count, .. } => {
                ensure!(*count != u64::MAX, "is an eventfd with a count that none can have");
                0
            }
            FileKind::Timer(timer) => {
                ensure!(
                    is_offset(timer.remaining) && is_offset(timer.interval),
                    "is a timer that is set to more than 292 years"
                );
                0
            }
            FileKind::Signal { .. } | FileKind::Queue { .. } => 0,
            FileKind::Epoll { watches, .. } => {
                count("watches", watches.len(), 0, MAX_ENTRIES)?;
                ensure!(
                    watches.iter().all(|watch| watch.number >= 0),
                    "watches a negative descriptor"
                );
                0
            }
            FileKind::Inotify { watches } => {
                count("watches", watches.len(), 0, MAX_ENTRIES)?;
                watches.iter().try_for_each(|watch| path("watch", &watch.path))?;
                // Numbers are found by counting up to them.
                ensure!(
                    watches.is_sorted_by(|a, b| a.descriptor < b.descriptor)
                        && watches.iter().all(|watch| (1..=1 << 24).contains(&watch.descriptor)),
                    "the watches are not ascending"
                );
                0
            }
            FileKind::Process { pid } => {
                ensure!((0..=MAX_PID).contains(pid), "is of a process whose PID is not one");
                0
            }
            FileKind::Memory(memory) => {
                // NAME_MAX without the prefix `memfd:` (mm/memfd.c).
                ensure!(
                    memory.name.len() <= 249 && !memory.name.contains(&0),
                    "is a memory file whose name is not one"
                );
                ensure!(is_offset(memory.size), "has {} bytes", memory.size);
                ensure!(memory.mode <= 0o177777, "has mode {:#o}", memory.mode);
                memory.offset
            }
        };
        ensure!(is_offset(offset), "is at offset {offset}");
        if let Some(owner) = self.owner {
            ensure!(
                (0..=2).contains(&owner.kind) && (0..=MAX_PID).contains(&owner.id) && (0..=64).contains(&owner.signal),
                "has an owner that is none: {owner:?}"
            );
        }
        count("locks", self.locks.len(), 0, MAX_ENTRIES)?;
        for lock in &self.locks {
            let end = lock.end.unwrap_or(i64::MAX.cast_unsigned());
            ensure!(
                lock.start <= end && is_offset(end),
                "has a lock from {} to {end}",
                lock.start
            );
            if let LockHolder::Process(pid) = lock.holder {
                ensure!(
                    (1..=MAX_PID).contains(&pid),
                    "is locked by a process whose PID is not one"
                );
            }
        }
        Ok(())
    }

    /// The open files that it refers to.
    fn others(&self) -> impl Iterator<Item = u32> + '_ {
        let (first, socket, watches) = match &self.kind {
            FileKind::Pipe(end) => (Some(end.pipe), None, &[][..]),
            FileKind::Memory(memory) => (Some(memory.memory), None, &[][..]),
            FileKind::Socket(socket) => (None, Some(socket), &[][..]),
            FileKind::Epoll { watches, .. } => (None, None, &watches[..]),
            _ => (None, None, &[][..]),
        };
        let connected = socket.into_iter().flat_map(|socket| {
            let (peer, waiting) = match &socket.connection {
                Connection::Peer { file } => (Some(*file), &[][..]),
                Connection::Listening { waiting, .. } => (None, &waiting[..]),
                _ => (None, &[][..]),
            };
            let passed = socket.received.iter().flat_map(|message| message.files.iter().copied());
            peer.into_iter().chain(waiting.iter().copied()).chain(passed)
        });
        first
            .into_iter()
            .chain(connected)
            .chain(watches.iter().map(|watch| watch.file))
    }
}

impl Socket {
    fn check(&self) -> Verdict {
        // AF_UNIX, AF_INET, AF_INET6; SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
        ensure!(
            [1, 2, 10].contains(&self.family) && [1, 2, 5].contains(&self.kind),
            "is a socket of family {} and type {}",
            self.family,
            self.kind
        );
        let address = |address: &[u8]| address.is_empty() || (2..=128).contains(&address.len());
        ensure!(address(&self.name), "has a name of {} bytes", self.name.len());
        if let Some(place) = &self.place {
            path("socket's directory", &place.directory)?;
            ensure!(place.mode <= 0o177777, "has mode {:#o}", place.mode);
        }
        if let Connection::Address(peer) = &self.connection {
            ensure!(
                address(peer) && !peer.is_empty(),
                "has a peer's name of {} bytes",
                peer.len()
            );
        }
        ensure!(self.shutdown <= 3, "is shut down in the way {}", self.shutdown);
        count("socket options", self.options.len(), 0, 256)?;
        ensure!(
            self.options.iter().all(|option| option.value.len() <= 4096),
            "has a socket option of more than 4096 bytes"
        );
        count("messages", self.received.len(), 0, MAX_ENTRIES)?;
        // They are held in memory when they are sent again.
        let bytes: u64 = self.received.iter().map(|message| u64::from(message.length)).sum();
        ensure!(bytes <= 1 << 30, "holds messages of {bytes} bytes");
        for message in &self.received {
            // SCM_MAX_FD, include/net/scm.h; the largest send buffer.
            count("descriptors in a message", message.files.len(), 0, 253)?;
            ensure!(message.length <= 1 << 30, "holds a message of {} bytes", message.length);
            ensure!(
                address(&message.from),
                "holds a message from a name of {} bytes",
                message.from.len()
            );
        }
        Ok(())
    }
}

impl Thread {
    fn check(&self) -> Verdict {
        ensure!((1..=MAX_PID).contains(&self.tid), "the TID is not one");
        // TASK_COMM_LEN is 16 with the zero.
        ensure!(
            self.name.len() <= 15 && !self.name.contains(&0),
            "the name is too long or contains a zero byte"
        );
        self.registers.check()?;
        ensure!(
            (576..=65536).contains(&self.xstate.len()),
            "the extended state has {} bytes instead of 576 to 65536",
            self.xstate.len()
        );
        pending(&self.pending)?;
        // SS_ONSTACK, SS_DISABLE, SS_AUTODISARM.
        let AlternateStack { address, flags, size } = self.alternate_stack;
        ensure!(
            flags & !(1 | 2 | i32::MIN) == 0,
            "the alternate stack has the flags {flags:#x}"
        );
        ensure!(address.checked_add(size).is_some(), "the alternate stack wraps around");
        // set_robust_list(2) takes no other size than that of struct robust_list_head.
        let robust = self.robust_list.length;
        ensure!(robust == 0 || robust == 24, "the robust list's head has {robust} bytes");
        if let Some(rseq) = self.rseq {
            let end = rseq.address.checked_add(rseq.size.into());
            let inside = rseq.size <= 4096 && end.is_some_and(|end| end <= USER_END);
            ensure!(inside, "the rseq area is {} bytes at {:#x}", rseq.size, rseq.address);
        }
        ensure!(
            (0..=64).contains(&self.parent_death_signal),
            "the parent-death signal is not one"
        );
        self.scheduling.check()?;
        let ThreadControls {
            speculation,
            memory_failure,
            ..
        } = self.controls;
        // PR_SPEC_*, linux/prctl.h.
        ensure!(
            speculation.iter().all(|control| *control <= 0x1f),
            "the speculation controls are {speculation:?}"
        );
        ensure!(memory_failure <= 3, "the memory failure policy is {memory_failure}");
        spent(&[self.used.user, self.used.system])
    }
}

impl Scheduling {
    /// What `sched_setattr(2)` takes (`__sched_setscheduler`, `kernel/sched/syscalls.c`).
    fn check(&self) -> Verdict {
        const DEADLINE: u32 = 6;
        // SCHED_OTHER, FIFO, RR, BATCH, IDLE, DEADLINE, EXT.
        ensure!(
            matches!(self.policy, 0..=3 | 5..=7),
            "the scheduling policy is {}",
            self.policy
        );
        ensure!(self.flags <= 0x7f, "the scheduling flags are {:#x}", self.flags);
        ensure!((-20..=19).contains(&self.nice), "the nice value is {}", self.nice);
        let real_time = matches!(self.policy, 1 | 2);
        ensure!(
            if real_time {
                (1..=99).contains(&self.priority)
            } else {
                self.priority == 0
            },
            "the priority is {} under policy {}",
            self.priority,
            self.policy
        );
        let [runtime, deadline, period] = self.deadline;
        let ordered = runtime != 0 && runtime <= deadline && (period == 0 || deadline <= period) && is_time(period);
        ensure!(
            if self.policy == DEADLINE {
                ordered && is_time(deadline)
            } else {
                // The runtime is the slice of a fair policy, since Linux 6.12.
                (deadline, period) == (0, 0)
            },
            "the deadline {:?} is not one of policy {}",
            self.deadline,
            self.policy
        );
        ensure!(
            self.affinity.len() <= MAX_CPUS / 8,
            "the affinity has {} bytes",
            self.affinity.len()
        );
        ensure!(
            self.affinity.is_empty() || self.affinity.iter().any(|cpus| *cpus != 0),
            "the affinity is without a CPU"
        );
        // IOPRIO_PRIO_CLASS: none, real-time, best-effort, idle.
        ensure!(
            (0..4 << 13).contains(&self.io_priority),
            "the I/O priority is {:#x}",
            self.io_priority
        );
        Ok(())
    }
}

impl Registers {
    /// What `ptrace(PTRACE_SETREGS)` accepts and a 64-bit program can have: `arch/x86/kernel/ptrace.c`.
    fn check(&self) -> Verdict {
        for (name, value) in [("rip", self.rip), ("rsp", self.rsp)] {
            ensure!(
                value < CANONICAL_END,
                "{name} is {value:#x}, not an address of a program"
            );
        }
        for (name, value) in [("fs_base", self.fs_base), ("gs_base", self.gs_base)] {
            ensure!(value < USER_END, "{name} is {value:#x}, not an address of a program");
        }
        ensure!(
            self.cs == 0x33 && self.ss == 0x2b,
            "cs is {:#x} and ss {:#x}, not 64-bit user mode",
            self.cs,
            self.ss
        );
        for (name, value) in [("ds", self.ds), ("es", self.es), ("fs", self.fs), ("gs", self.gs)] {
            let user = value == 0 || (value <= 0xffff && value & 3 == 3);
            ensure!(user, "{name} is {value:#x}, not a user selector");
        }
        // CF, PF, AF, ZF, SF, TF, DF, OF, NT, RF, AC and ID are the program's, bit 1 and IF are always set. IOPL, VM,
        // VIF and VIP are the kernel's.
        const USER: u64 = 0xdd5 | 0x4000 | 0x1_0000 | 0x4_0000 | 0x20_0000;
        const ALWAYS: u64 = 0x2 | 0x200;
        ensure!(
            self.eflags & !(USER | ALWAYS) == 0,
            "eflags is {:#x}, not all of it a program's",
            self.eflags
        );
        Ok(())
    }
}

/// Neither too long nor with a control character, which could talk to a person's terminal.
fn text(what: &str, text: &str, most: usize) -> Verdict {
    ensure!(
        text.len() <= most,
        "the {what} has {} bytes, the most is {most}",
        text.len()
    );
    ensure!(
        !text.chars().any(char::is_control),
        "the {what} contains a control character"
    );
    Ok(())
}

/// An absolute path as the kernel could have given it.
fn path(what: &str, path: &[u8]) -> Verdict {
    ensure!(
        path.len() <= MAX_PATH,
        "the path of the {what} has {} bytes, the most is {MAX_PATH}",
        path.len()
    );
    ensure!(
        path.first() == Some(&b'/'),
        "the path of the {what} does not begin with a slash"
    );
    ensure!(!path.contains(&0), "the path of the {what} contains a zero byte");
    Ok(())
}

/// Times that add up.
fn spent(times: &[u64]) -> Verdict {
    ensure!(
        times.iter().all(|time| *time <= i64::MAX as u64 / 8),
        "CPU time of more than 36 years was used"
    );
    Ok(())
}

fn count(what: &str, found: usize, least: usize, most: usize) -> Verdict {
    ensure!(
        (least..=most).contains(&found),
        "there are {found} {what} instead of {least} to {most}"
    );
    Ok(())
}

/// Whole pages, at least one, of user space.
fn range(start: u64, end: u64) -> Verdict {
    let whole = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
    ensure!(
        whole && start < end && end <= USER_END,
        "{start:#x}-{end:#x} is not a range of user pages"
    );
    Ok(())
}

/// Offsets and sizes of files are `loff_t`.
fn is_offset(offset: u64) -> bool {
    i64::try_from(offset).is_ok()
}

/// Nanoseconds are `s64` in the kernel.
fn is_time(nanoseconds: u64) -> bool {
    i64::try_from(nanoseconds).is_ok()
}

fn pending(list: &[Vec<u8>]) -> Verdict {
    count("pending signals", list.len(), 0, MAX_ENTRIES)?;
    for info in list {
        ensure!(
            info.len() == SIGINFO,
            "a siginfo_t has {} bytes instead of {SIGINFO}",
            info.len()
        );
        let signal = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
        ensure!((1..=64).contains(&signal), "signal {signal} is pending");
    }
    Ok(())
}
