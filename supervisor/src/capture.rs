//! Capture: from a running process to an image. The other half of [`crate::restore`].
//!
//! ```text
//!  freeze    PTRACE_SEIZE + PTRACE_INTERRUPT: stopped between two instructions or inside a call that can restart
//!  verdict   what cannot move is refused by name, and the process runs on
//!  describe  /proc, ptrace and one script (what only the process itself can ask the kernel)
//!  dump      contents, read from outside
//! ```
//!
//! A thread that was stopped inside a system call shows the kernel's restart code in `rax`. In the image the call is
//! simply about to be made again, with what is left of its timeout; see [`crate::interrupted`].

use crate::areas::{self, AreaError, Catalogue, Extent, Known, Original, Purpose, View};
use crate::attributes;
use crate::interrupted::{self, LastRan, Sleep};
use crate::memory::MemoryError;
use crate::policy;
use crate::proc::{Backing, FdDetails, MapsEntry, ProcDir, ProcError, Status};
use crate::registers;
use crate::sys;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};
use vrun_image::state::{Area, Clocks, Memory, Process, Registers, SharedMemory, Signals, Slot, Vdso, Zombie};
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{Injection, Script, TraceError, Tracee, area};

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// What the program is or holds cannot be moved or saved: a sentence for `vctl ps`.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl From<AreaError> for CaptureError {
    fn from(error: AreaError) -> Self {
        match error {
            AreaError::Unsupported(reason) => Self::Unsupported(reason),
            AreaError::Memory(error) => error.into(),
            AreaError::Proc(error) => error.into(),
            AreaError::Trace(error) => error.into(),
        }
    }
}

type Result<T> = std::result::Result<T, CaptureError>;

/// A thread that stopped for our interrupt.
#[derive(Clone, Debug)]
pub struct Stopped {
    pub tracee: Tracee,
    /// Signals whose delivery was held up by that, in order.
    pub signals: Vec<[u8; SIGINFO]>,
    /// What was known before the interrupt.
    pub since: Option<LastRan>,
}

/// A thread that stands still.
#[derive(Debug)]
pub struct FrozenThread {
    injection: Injection,
    /// In the process's own PID namespace.
    inner_tid: i32,
    /// How long the call that it was stopped in had been asleep.
    sleep: Sleep,
}

/// A process whose threads all stand still, until they are released or dropped.
#[derive(Debug)]
pub struct Frozen {
    /// The thread group leader first.
    threads: Vec<FrozenThread>,
    pid: i32,
    maps: Vec<MapsEntry>,
    /// Mask of the signals that it reads from descriptors.
    read_signals: u64,
    /// The signal of the group stop (job control) that it is in, else 0.
    stop: i32,
}

/// A job that stands still.
#[derive(Debug)]
pub struct FrozenJob {
    /// Each after its parent, if that is one of them. The first is the one that was started.
    pub processes: Vec<Frozen>,
    pub zombies: Vec<Zombie>,
}

/// What frozen processes are, and where their contents are.
#[derive(Debug)]
pub struct Description {
    pub processes: Vec<Process>,
    pub shared: Vec<SharedMemory>,
    /// The areas whose contents are to be dumped.
    areas: Catalogue,
}

impl Description {
    /// The files that memory is to be kept in step with.
    pub fn originals(&self) -> Vec<Original> {
        self.areas.originals()
    }
}

/// A sentence saying why these processes cannot be captured, or nothing. Reads only /proc: it may be asked at any time,
/// and again once they stand still.
pub fn verdict(processes: &[i32], purpose: Purpose) -> std::result::Result<(), String> {
    let look = |pid: i32| -> Result<()> {
        let directory = ProcDir::open(pid)?;
        if matches!(directory.stat()?.state, b'Z' | b'X') {
            return Ok(()); // it goes along as what it is
        }
        let maps = directory.smaps()?;
        check(&directory, &maps)?;
        match purpose {
            Purpose::Move => Ok(areas::leaves(pid, &maps)?),
            Purpose::Save => Ok(()),
        }
    };
    let several = processes.len() > 1;
    for pid in processes {
        match look(*pid) {
            Ok(()) | Err(CaptureError::Proc(ProcError::Gone(_))) => {}
            // Not for who may trace everything.
            Err(CaptureError::Proc(ProcError::Read { source, .. }))
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(format!(
                    "process {pid} does not let others look at it (PR_SET_DUMPABLE)"
                ));
            }
            Err(error) if several => return Err(format!("{error} (process {pid})")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T> {
    Err(CaptureError::Unsupported(reason.into()))
}

/// Gives the mask of the signals that it reads from descriptors.
fn check(directory: &ProcDir, maps: &[MapsEntry]) -> Result<u64> {
    let stat = directory.stat()?;
    if matches!(stat.state, b'Z' | b'X') {
        return unsupported("it has ended");
    }
    let tracer = directory.status()?.tracer;
    if tracer != 0 && tracer != std::process::id() as i32 {
        return unsupported(format!("it is being traced by process {tracer}"));
    }
    if directory.personality()? & 0x0800_0000 != 0 {
        return unsupported("it has the personality of another system");
    }
    for entry in maps {
        if let Some(reason) = areas::reason(entry) {
            return unsupported(reason);
        }
    }
    let descriptors = directory.descriptors()?;
    if let Some(reason) = policy::held(directory.pid(), &descriptors) {
        return unsupported(reason);
    }
    let masks = descriptors.iter().map(|descriptor| match descriptor.info.details {
        FdDetails::Signalfd { mask } => mask,
        _ => 0,
    });
    Ok(masks.fold(0, |all, mask| all | mask))
}

/// The address of a `syscall` instruction in the target: in its vDSO, else in any of its code.
pub fn syscall_instruction(injection: &Injection, maps: &[MapsEntry]) -> std::result::Result<u64, TraceError> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let executable = |entry: &&MapsEntry| entry.protection as i32 & libc::PROT_EXEC != 0 && entry.path != b"[vsyscall]";
    let mut candidates: Vec<&MapsEntry> = maps.iter().filter(executable).collect();
    candidates.sort_by_key(|entry| entry.path != b"[vdso]");
    for entry in candidates {
        let mut code = vec![0; (entry.end - entry.start).min(4 << 20) as usize];
        if injection.read(entry.start, &mut code).is_ok()
            && let Some(offset) = code.windows(2).position(|pair| pair == SYSCALL)
        {
            return Ok(entry.start + offset as u64);
        }
    }
    let tid = injection.tracee().tid();
    Err(TraceError::Os {
        what: "find a system call instruction in",
        tid,
        source: io::Error::other("there is none"),
    })
}

/// Takes over a stopped process that is to become another one: it gets the vrun area.
pub fn take_over(tracee: Tracee) -> Result<Injection> {
    let maps = ProcDir::open(tracee.tid())?.maps()?;
    let injection = Injection::begin(tracee)?;
    injection.ensure_area(syscall_instruction(&injection, &maps)?)?;
    Ok(injection)
}

/// Stops processes that run on their own: all of a job. `processes` lists them, each after its parent, and is asked until
/// there is none that was not stopped already. On failure they go on.
///
/// To be called by the one thread that waits for the job's processes. It takes `SIGCHLD`, which must be blocked, so look
/// at the job's processes afterwards.
pub fn freeze(processes: &dyn Fn() -> Vec<i32>) -> Result<FrozenJob> {
    let mut held = Held::default();
    loop {
        let mut news = false;
        for pid in processes() {
            news |= held.stop(pid)?;
        }
        if !news {
            return held.adopt();
        }
    }
}

/// How long a thread may take to stop: one that made a child by vfork(2) stops when the child has executed its program.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stopped processes that are to become a [`FrozenJob`]. When dropped, those go on that did not.
#[derive(Default)]
struct Held {
    processes: Vec<HeldProcess>,
    /// PIDs of processes that have ended.
    ended: Vec<i32>,
}

struct HeldProcess {
    pid: i32,
    threads: BTreeMap<i32, Stopped>,
    /// The signal of a group stop.
    stop: i32,
}

impl Held {
    /// Stops what runs of a process. True: there was something. One that is gone is no error.
    fn stop(&mut self, pid: i32) -> Result<bool> {
        let index = match self.processes.iter().position(|process| process.pid == pid) {
            Some(index) => index,
            None => {
                self.processes.push(HeldProcess {
                    pid,
                    threads: BTreeMap::new(),
                    stop: 0,
                });
                self.processes.len() - 1
            }
        };
        let process = &mut self.processes[index];
        let known = process.threads.len();
        let result = process.stop_all();
        let news = process.threads.len() != known || matches!(result, Ok(Outcome::Changed));
        match result {
            Ok(Outcome::Ended) => {
                self.processes.remove(index);
                if !self.ended.contains(&pid) {
                    self.ended.push(pid);
                }
                Ok(false)
            }
            Ok(_) if process.threads.is_empty() => {
                self.processes.remove(index);
                Ok(false)
            }
            Ok(_) => Ok(news),
            Err(CaptureError::Proc(ProcError::Gone(_)) | CaptureError::Trace(TraceError::Gone(_))) => {
                self.processes.remove(index);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn adopt(mut self) -> Result<FrozenJob> {
        let mut job = FrozenJob {
            processes: Vec::new(),
            zombies: Vec::new(),
        };
        if self.processes.is_empty() {
            return Err(TraceError::Gone(self.ended.first().copied().unwrap_or(0)).into());
        }
        let build = |held: &mut Self, job: &mut FrozenJob| -> Result<()> {
            while let Some(process) = held.processes.first() {
                let mut frozen = Frozen::adopt(process.stopped())?;
                frozen.stop = process.stop;
                job.processes.push(frozen);
                // Its threads are the job's now.
                std::mem::take(&mut held.processes.remove(0).threads);
            }
            refuse_sharing(&job.processes)?;
            job.zombies = zombies(&job.processes, &held.ended)?;
            Ok(())
        };
        match build(&mut self, &mut job) {
            Ok(()) => Ok(job),
            Err(error) => {
                job.release()?;
                Err(error)
            }
        }
    }
}

impl Drop for HeldProcess {
    fn drop(&mut self) {
        for stopped in self.threads.values() {
            release(stopped.tracee, &stopped.signals);
        }
    }
}

/// What came of stopping a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Complete,
    /// Threads that had been stopped have gone.
    Changed,
    /// The process has ended, and nobody has waited for it.
    Ended,
}

impl HeldProcess {
    /// Stops its threads until none is left that runs.
    fn stop_all(&mut self) -> Result<Outcome> {
        let directory = ProcDir::open(self.pid)?;
        let mut outcome = Outcome::Complete;
        loop {
            let mut interrupted = Vec::new();
            for tid in directory.threads()? {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                let since = LastRan::of(tid);
                match self.seize(&directory, tid) {
                    Ok(Some(tracee)) => interrupted.push((tracee, since)),
                    Ok(None) if tid == self.pid && self.has_ended(&directory)? => return Ok(Outcome::Ended),
                    Ok(None)
                    | Err(CaptureError::Proc(ProcError::Gone(_)) | CaptureError::Trace(TraceError::Gone(_))) => {}
                    Err(error) => {
                        interrupted.into_iter().for_each(|(tracee, _)| release(tracee, &[]));
                        return Err(error);
                    }
                }
            }
            let found = !interrupted.is_empty();
            let deadline = Instant::now() + PATIENCE;
            let mut waiting = interrupted.into_iter();
            for (tracee, since) in waiting.by_ref() {
                let mut signals = Vec::new();
                match wait_stopped(tracee, &mut signals, deadline) {
                    Ok(Some(signal)) => {
                        if signal != libc::SIGTRAP {
                            self.stop = signal;
                        }
                        let stopped = Stopped { tracee, signals, since };
                        self.threads.insert(tracee.tid(), stopped);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        // One that has not stopped cannot be let go of; it is when it stops, or with us.
                        waiting.for_each(|(tracee, _)| let_go(tracee, deadline));
                        return Err(error);
                    }
                }
            }
            // An exec ends all other threads, also those that have stopped, and gives its own the leader's number.
            let before = self.threads.len();
            self.threads
                .retain(|_, stopped| !matches!(stopped.tracee.registers(), Err(TraceError::Gone(_))));
            if self.threads.len() != before {
                outcome = Outcome::Changed;
            } else if !found {
                return Ok(outcome);
            }
        }
    }

    /// Traces a thread and interrupts it; nothing for one that has ended.
    fn seize(&self, directory: &ProcDir, tid: i32) -> Result<Option<Tracee>> {
        let tracee = match Tracee::seize(tid, 0) {
            Err(TraceError::Os { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                let status = directory.thread(tid)?.status()?;
                if matches!(status.state, b'Z' | b'X') {
                    return Ok(None);
                }
                match status.tracer {
                    // By us: it has executed a program as another thread.
                    tracer if tracer == std::process::id() as i32 => Tracee::attached(tid),
                    0 => return unsupported(format!("process {tid} cannot be traced by its own user")),
                    tracer => return unsupported(format!("it is being traced by process {tracer}")),
                }
            }
            other => other?,
        };
        tracee.interrupt()?;
        Ok(Some(tracee))
    }

    /// Whether all of it has ended, or only its first thread, which is an error.
    fn has_ended(&self, directory: &ProcDir) -> Result<bool> {
        let others = directory.threads()?;
        for tid in others.iter().filter(|tid| **tid != self.pid) {
            let state = directory.thread(*tid).and_then(|thread| thread.stat());
            if state.is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X')) {
                return unsupported(format!(
                    "the first thread of process {} has ended while others go on",
                    self.pid
                ));
            }
        }
        Ok(true)
    }

    /// The threads, the leader first.
    fn stopped(&self) -> Vec<Stopped> {
        let leader = self.threads.get(&self.pid);
        let others = self.threads.values().filter(|stopped| stopped.tracee.tid() != self.pid);
        leader.into_iter().chain(others).cloned().collect()
    }
}

/// Waits for a thread that was interrupted; gives the signal of its stop, and nothing if it ended first.
fn wait_stopped(tracee: Tracee, signals: &mut Vec<[u8; SIGINFO]>, deadline: Instant) -> Result<Option<i32>> {
    loop {
        match tracee.has_interrupted(signals) {
            Ok(Some(signal)) => return Ok(Some(signal)),
            Ok(None) => {}
            Err(TraceError::Gone(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if !sys::await_children(deadline) {
            return unsupported(format!(
                "process {} does not stop: it waits for a device, or for a child that it made with vfork and that \
                 executes no program",
                tracee.tid()
            ));
        }
    }
}

/// Lets go of a thread that was interrupted, when it stops.
fn let_go(tracee: Tracee, deadline: Instant) {
    let mut signals = Vec::new();
    if let Ok(Some(_)) = wait_stopped(tracee, &mut signals, deadline) {
        release(tracee, &signals);
    }
}

/// Threads of a process that do not share what an image has once for all of them.
fn refuse_apart(leader: &Status, thread: &Status) -> Result<()> {
    let (a, b) = (leader.pid, thread.pid);
    let shares = |what| a == b || !sys::share(a, b, what).is_ok_and(|shared| !shared);
    let identity = |status: &Status| (status.uid, status.gid, status.groups.clone(), status.capabilities);
    let what = if !shares(sys::Shared::Descriptors) {
        "descriptor table"
    } else if !shares(sys::Shared::FileSystem) {
        "working directory"
    } else if identity(leader) != identity(thread) {
        "user and rights"
    } else {
        return Ok(());
    };
    unsupported(format!("its thread {b} has a {what} of its own"))
}

/// Processes that share what an image gives to each of them.
fn refuse_sharing(processes: &[Frozen]) -> Result<()> {
    for (index, a) in processes.iter().enumerate() {
        for b in &processes[index + 1..] {
            for (what, name) in [
                (sys::Shared::Memory, "memory"),
                (sys::Shared::Descriptors, "descriptor table"),
                (sys::Shared::FileSystem, "working directory"),
            ] {
                if sys::share(a.pid, b.pid, what).is_ok_and(|shared| shared) {
                    return unsupported(format!(
                        "its processes {} and {} share one {name} (clone)",
                        a.inner_pid(),
                        b.inner_pid()
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Those of the processes that have ended whose parent has yet to wait for them.
fn zombies(processes: &[Frozen], ended: &[i32]) -> Result<Vec<Zombie>> {
    let mut zombies = Vec::new();
    for pid in ended {
        let directory = match ProcDir::open(*pid) {
            Err(ProcError::Gone(_)) => continue,
            other => other?,
        };
        let stat = directory.stat()?;
        let Some(parent) = processes.iter().find(|process| process.pid == stat.parent) else {
            continue;
        };
        let family = Family::of(&directory, processes)?;
        zombies.push(Zombie {
            pid: family.pid,
            parent: parent.inner_pid(),
            group: family.group,
            session: family.session,
            exit_signal: stat.exit_signal,
            status: stat.exit_code,
        });
    }
    Ok(zombies)
}

/// Where a process stands, in the numbers of its own PID namespace; 0 is what lies outside of the job.
struct Family {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

impl Family {
    fn of(directory: &ProcDir, processes: &[Frozen]) -> Result<Self> {
        let (stat, status) = (directory.stat()?, directory.status()?);
        let parent = processes.iter().find(|process| process.pid == stat.parent);
        // Led by one of the job's, or by one that has ended: by nobody else's.
        let own = |leader: i32, numbers: &[i32]| {
            let ours = processes.iter().any(|process| process.pid == leader);
            let number = numbers.last().copied().unwrap_or(leader);
            let lives = || ProcDir::open(leader).and_then(|directory| directory.stat());
            let others = !ours && lives().is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'));
            if others { 0 } else { number }
        };
        Ok(Self {
            pid: status.namespace_pids.last().copied().unwrap_or(stat.pid),
            parent: parent.map_or(0, Frozen::inner_pid),
            group: own(stat.group, &status.namespace_groups),
            session: own(stat.session, &status.namespace_sessions),
        })
    }
}

/// The group and the session from which a job was started, as its host numbers them: no process of it shows that they are
/// not the job's own when who led them has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside {
    pub group: i32,
    pub session: i32,
}

impl Outside {
    /// Where a process stands that has done nothing yet.
    pub fn of(pid: i32) -> Result<Self> {
        let stat = ProcDir::open(pid)?.stat()?;
        Ok(Self {
            group: stat.group,
            session: stat.session,
        })
    }

    /// Makes 0 of what is outside.
    pub fn apply(self, processes: &mut [Process], zombies: &mut [Zombie]) {
        let processes = processes
            .iter_mut()
            .map(|process| (&mut process.group, &mut process.session));
        let zombies = zombies
            .iter_mut()
            .map(|zombie| (&mut zombie.group, &mut zombie.session));
        for (group, session) in processes.chain(zombies) {
            if *session == self.session {
                *session = 0;
            }
            if *group == self.group {
                *group = 0;
            }
        }
    }
}

impl FrozenJob {
    /// Lets everything go on as if nothing had been.
    pub fn release(self) -> Result<()> {
        let mut result = Ok(());
        for (index, process) in self.processes.into_iter().enumerate() {
            match process.release() {
                // What runs already may have ended it.
                Err(CaptureError::Trace(TraceError::Gone(_))) if index > 0 => {}
                released => result = result.and(released),
            }
        }
        result
    }

    /// Ends all of it; nothing of it runs another instruction, and its locks are free for who restores it.
    pub fn kill(self) -> io::Result<()> {
        for process in &self.processes {
            sys::kill(process.pid, libc::SIGKILL)?;
        }
        for process in &self.processes {
            // The end of the leader is told when the others have been reaped.
            for thread in &process.threads[1..] {
                let tid = thread.injection.tracee().tid();
                sys::await_end(tid)?;
                sys::reap(tid);
            }
            sys::await_end(process.pid)?;
        }
        Ok(())
    }
}

/// What the processes are. `slots[i]` are those of `processes[i]`, empty when they stay where they are. Areas within
/// `hidden[i]`, if there is one, are not the program's. `known` is what the areas of a guest showed when it arrived.
pub fn describe(
    processes: &[Frozen],
    slots: Vec<Vec<Slot>>,
    hidden: &[Vec<Range<u64>>],
    purpose: Purpose,
    known: &Known,
) -> Result<Description> {
    let hidden = hidden.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    let mut views = Vec::new();
    for ((frozen, slots), hidden) in processes.iter().zip(&slots).zip(hidden) {
        views.push(View {
            pid: frozen.pid,
            maps: &frozen.maps,
            slots,
            hidden,
        });
    }
    let catalogue = Catalogue::new(&views, purpose, known)?;
    let parts = processes.iter().zip(slots).zip(&catalogue.areas);
    let described = parts.map(|((frozen, slots), areas)| frozen.describe(slots, areas.clone(), processes, purpose));
    Ok(Description {
        processes: described.collect::<Result<_>>()?,
        shared: catalogue.shared.clone(),
        areas: catalogue,
    })
}

/// Sends the contents of memory to `sink` (index, address, bytes; see [`Catalogue::dump`]) in page-aligned runs of at
/// most 1 MiB; pages of zeroes are left out.
pub fn dump<E: From<MemoryError>>(
    description: &Description,
    sink: impl FnMut(u32, u64, &[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    description.areas.dump(sink)
}

/// Lets a thread that stands in the vDSO run to the end of it: its code is not the same everywhere.
fn leave_vdso(tracee: Tracee, maps: &[MapsEntry]) -> std::result::Result<(), TraceError> {
    let Some(vdso) = maps.iter().find(|entry| entry.backing() == Backing::Vdso) else {
        return Ok(());
    };
    let inside = || Ok::<_, TraceError>((vdso.start..vdso.end).contains(&tracee.registers()?.rip));
    if !inside()? {
        return Ok(());
    }
    let blocked = tracee.blocked()?;
    // A step traps, and that is not to take a handler away.
    tracee.set_blocked(blocked | !(1 << (libc::SIGTRAP - 1)))?;
    while inside()? {
        tracee.single_step()?;
    }
    tracee.set_blocked(blocked)
}

impl FrozenThread {
    /// The scope in which scripts may be run. The threads of a process share the memory that scripts use: one at a time.
    pub fn injection(&self) -> &Injection {
        &self.injection
    }

    /// Its number in the process's own PID namespace.
    pub fn inner_tid(&self) -> i32 {
        self.inner_tid
    }

    /// The registers with which the program goes on. `signals` are the process's.
    fn registers(&self, signals: &Signals) -> Result<Registers> {
        let tracee = self.injection.tracee();
        let saved = self.injection.saved_registers().copied();
        let saved = saved.ok_or(TraceError::Gone(tracee.tid()))?;
        let own: Vec<Vec<u8>> = tracee.pending(false)?.iter().map(|info| info.to_vec()).collect();
        let blocked = self.injection.saved_blocked().unwrap_or(0);
        let pending = own.iter().chain(&signals.pending);
        let handler = interrupted::next_handler(&signals.actions, blocked, pending);
        let mut registers = registers::to_image(&interrupted::reissue(tracee.tid(), saved, self.sleep, handler));
        if let Some(rseq) = tracee.rseq()?
            && let Some(abort) = self.critical_section(rseq.address, registers.rip)?
        {
            registers.rip = abort;
        }
        Ok(registers)
    }

    /// Where a restartable sequence that contains `rip` is to be aborted to (`struct rseq_cs`, `linux/rseq.h`).
    fn critical_section(&self, rseq: u64, rip: u64) -> Result<Option<u64>> {
        let mut word = [0; 8];
        self.injection.read(rseq + 8, &mut word)?;
        let descriptor = u64::from_le_bytes(word);
        if descriptor == 0 {
            return Ok(None);
        }
        let mut bytes = [0; 32];
        if self.injection.read(descriptor, &mut bytes).is_err() {
            return Ok(None);
        }
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (start, length, abort) = (field(8), field(16), field(24));
        Ok((rip.wrapping_sub(start) < length).then_some(abort))
    }
}

impl Frozen {
    /// Takes over the threads of a process, the leader first. They stay stopped and traced if this fails.
    pub fn adopt(threads: Vec<Stopped>) -> Result<Self> {
        let Some(leader) = threads.first() else {
            return Err(TraceError::Gone(0).into());
        };
        let pid = leader.tracee.tid();
        let directory = ProcDir::open(pid)?;
        let maps = directory.smaps()?;
        let read_signals = check(&directory, &maps)?;
        let status = directory.status()?;
        let mut frozen = Self {
            threads: Vec::with_capacity(threads.len()),
            pid,
            maps,
            read_signals,
            stop: 0,
        };
        for Stopped { tracee, signals, since } in &threads {
            let sleep = Sleep::between(*since, LastRan::of(tracee.tid()));
            let own = directory.thread(tracee.tid())?.status()?;
            refuse_apart(&status, &own)?;
            if let Some(reason) = attributes::thread::reason(*tracee)? {
                return unsupported(reason);
            }
            leave_vdso(*tracee, &frozen.maps)?;
            interrupted::undo(*tracee, signals, status.caught, sleep)?;
            let injection = match frozen.threads.first() {
                None => Injection::begin(*tracee)?,
                Some(leader) => leader.injection.beside(*tracee)?,
            };
            frozen.threads.push(FrozenThread {
                injection,
                inner_tid: own.namespace_pids.last().copied().unwrap_or(tracee.tid()),
                sleep,
            });
        }
        let leader = frozen.leader();
        leader.ensure_area(syscall_instruction(leader, &frozen.maps)?)?;
        for (thread, stopped) in frozen.threads.iter().zip(&threads) {
            frozen.queue(thread, &stopped.signals)?;
        }
        Ok(frozen)
    }

    /// PID as this host numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// PID in its own PID namespace.
    pub fn inner_pid(&self) -> i32 {
        self.threads[0].inner_tid
    }

    /// Its address space when it was stopped.
    pub fn maps(&self) -> &[MapsEntry] {
        &self.maps
    }

    /// The scope in which scripts may be run that concern the whole process.
    pub fn leader(&self) -> &Injection {
        &self.threads[0].injection
    }

    /// All threads, the thread group leader first.
    pub fn threads(&self) -> &[FrozenThread] {
        &self.threads
    }

    /// Puts signals back, into the queue of the thread that was about to get them.
    fn queue(&self, thread: &FrozenThread, signals: &[[u8; SIGINFO]]) -> Result<()> {
        if signals.is_empty() {
            return Ok(());
        }
        let mut script = Script::new(area::DATA.start);
        for info in signals {
            let number = u64::from(info[0]);
            if self.threads.len() == 1 {
                let arguments = [self.inner_pid() as u64, number, script.data(info)];
                script.call("queue a signal again", libc::SYS_rt_sigqueueinfo, &arguments);
            } else {
                let (pid, tid) = (self.inner_pid() as u64, thread.inner_tid as u64);
                let arguments = [pid, tid, number, script.data(info)];
                script.call("queue a signal again", libc::SYS_rt_tgsigqueueinfo, &arguments);
            }
        }
        thread.injection.run(&script)?;
        Ok(())
    }

    /// See [`describe`]. `job` are all of the job's processes.
    fn describe(&self, descriptors: Vec<Slot>, areas: Vec<Area>, job: &[Self], purpose: Purpose) -> Result<Process> {
        let directory = ProcDir::open(self.pid)?;
        let stat = directory.stat()?;
        let mut attributes = attributes::process(self.leader(), &directory)?;
        let thread = |thread: &FrozenThread| {
            let registers = thread.registers(&attributes.signals)?;
            attributes::thread(&thread.injection, thread.inner_tid, registers)
        };
        let threads = self.threads.iter().map(thread).collect::<Result<Vec<_>>>()?;
        if purpose == Purpose::Move {
            attributes::signals::leave(&mut attributes.signals, &threads, self.read_signals)?;
        }
        let family = Family::of(&directory, job)?;
        let extent = Extent::of(self.leader())?;
        let memory = Memory {
            areas,
            layout: stat.layout(attributes.brk),
            auxv: directory.auxv()?,
            vdso: self.vdso()?,
            lock_future: extent.lock_future,
            keys: extent.keys,
        };
        Ok(Process {
            pid: self.inner_pid(),
            parent: family.parent,
            group: family.group,
            session: family.session,
            exit_signal: stat.exit_signal,
            stopped: self.stop,
            stop_seen: self.stop != 0 && self.stop_is_seen(&directory, job)?,
            executable: directory.executable()?,
            memory,
            signals: attributes.signals,
            descriptors,
            working_directory: directory.working_directory()?,
            umask: attributes.umask,
            credentials: attributes.credentials,
            limits: attributes.limits,
            personality: attributes.personality,
            dumpable: attributes.dumpable,
            subreaper: attributes.subreaper,
            oom_score: attributes.oom_score,
            no_huge_pages: attributes.no_huge_pages,
            controls: attributes.controls,
            used: attributes.used,
            threads,
        })
    }

    /// Whether the parent, one of the job's, has waited for the stop that the process is in: asked by the parent itself.
    fn stop_is_seen(&self, directory: &ProcDir, job: &[Self]) -> Result<bool> {
        let parent = directory.stat()?.parent;
        let Some(parent) = job.iter().find(|process| process.pid == parent) else {
            return Ok(false);
        };
        let mut script = Script::new(area::DATA.start);
        let info = script.reserve(SIGINFO);
        let flags = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let arguments = [libc::P_PID.into(), self.inner_pid() as u64, info, flags as u64, 0];
        script.call("look for the child's stop", libc::SYS_waitid, &arguments);
        parent.leader().run(&script)?;
        let mut signal = [0; 4];
        parent.leader().read(info, &mut signal)?;
        Ok(signal == [0; 4])
    }

    /// Lets the process go on as if nothing had been; an interrupted call restarts by the kernel's own rules.
    pub fn release(self) -> Result<()> {
        let mut result = Ok(());
        for (index, thread) in self.threads.into_iter().enumerate() {
            let release = |tracee: Tracee| if index == 0 { tracee.let_go() } else { tracee.detach(0) };
            match thread.injection.finish().and_then(release) {
                // What runs already may have ended it.
                Err(TraceError::Gone(_)) if index > 0 => {}
                released => result = result.and(released),
            }
        }
        Ok(result?)
    }

    /// Like [`Frozen::release`], but it stays traced by us.
    pub fn resume_traced(self) -> Result<Vec<Tracee>> {
        let resume = |thread: FrozenThread| {
            let tracee = thread.injection.finish()?;
            tracee.resume(0)?;
            Ok(tracee)
        };
        self.threads.into_iter().map(resume).collect()
    }

    /// For whoever makes something else of the process: the threads, the leader first, with their saved states.
    pub fn into_injections(self) -> Vec<Injection> {
        self.threads.into_iter().map(|thread| thread.injection).collect()
    }

    fn vdso(&self) -> Result<Option<Vdso>> {
        let Some(entry) = self.maps.iter().find(|entry| entry.path == b"[vdso]") else {
            return Ok(None);
        };
        let mut code = vec![0; (entry.end - entry.start) as usize];
        self.leader().read(entry.start, &mut code)?;
        let data = self.maps.iter().filter(|entry| entry.path.starts_with(b"[vvar"));
        Ok(Some(Vdso {
            start: entry.start,
            code,
            data: data.map(|entry| (entry.start, entry.end)).collect(),
        }))
    }
}

/// Lets a thread go, with the signals that our stop held up. Only at the delivery of a signal could ptrace give it one.
fn release(tracee: Tracee, signals: &[[u8; SIGINFO]]) {
    let _ = tracee.detach(0);
    for info in signals {
        let _ = sys::kill(tracee.tid(), i32::from(info[0]));
    }
}

/// The clocks of a process, at this instant: those of a restored job or a guest are not ours (time_namespaces(7)).
pub fn clocks(pid: i32) -> Clocks {
    let (own, its) = (time_offsets(std::process::id() as i32), time_offsets(pid));
    let clock = |clock, index: usize| {
        let nanoseconds = i128::from(sys::clock(clock)) + its[index] - own[index];
        u64::try_from(nanoseconds).unwrap_or_default()
    };
    Clocks {
        realtime: sys::clock(libc::CLOCK_REALTIME),
        monotonic: clock(libc::CLOCK_MONOTONIC, 0),
        boottime: clock(libc::CLOCK_BOOTTIME, 1),
    }
}

/// How far a process's monotonic clock is ahead of ours, in nanoseconds.
pub fn monotonic_ahead(pid: i32) -> i128 {
    time_offsets(pid)[0] - time_offsets(std::process::id() as i32)[0]
}

/// How far a process's monotonic and boot clocks are ahead of the machine's, in nanoseconds: lines of a name, seconds and
/// nanoseconds. Nothing on kernels without time namespaces.
fn time_offsets(pid: i32) -> [i128; 2] {
    let text = ProcDir::open(pid).and_then(|directory| directory.read("timens_offsets"));
    let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
    ["monotonic", "boottime"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let mut numbers = line
            .unwrap_or_default()
            .split_whitespace()
            .map(|word| word.parse::<i128>());
        match (numbers.next(), numbers.next()) {
            (Some(Ok(seconds)), Some(Ok(nanoseconds))) => seconds * 1_000_000_000 + nanoseconds,
            _ => 0,
        }
    })
}
