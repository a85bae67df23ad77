//! The deputy: what stays of a process at its origin after its body moved.
//!
//! ```text
//!   stopped threads ──settle──► memory emptied, foreman cloned, the process's own threads parked, detached
//!
//!   channel ── Call ──► submit ──► answer VRUN_NEXT ──► an executor makes the call ──► VRUN_NEXT(result) ──► Reply
//!   channel ── Cancel ► interrupt: the call returns with the kernel's restart code
//!   VRUN_SIGNAL(info) ► Signal
//!
//!   come home: retire (foreman and executors leave, the parked threads stop) ──► the restorer
//! ```
//!
//! **Threads.** The process's own threads stay, each under its TID, and fetch signals: the leader all of them, the others
//! what may be meant for one thread. They leave real-time signals to the leader, because two threads that fetch such
//! signals at once may hand them over in the wrong order, and all leave those that are read from descriptors
//! ([`crate::attributes::signals`]). The calls are made by *executors*, as many as there are calls at a time, at most
//! one for each thread of the process. The first of them that is needed, and every further one, is cloned by the
//! *foreman*, the one thread that is not confined, which does nothing but that.
//!
//! **Interrupting.** An executor is traced by a thread of ours, the *usher*, and only while it is to be interrupted or to
//! leave. One that has no call any more would stop only with its next order: it is told to ask again, so that the usher
//! never waits for long. A cancelled call is answered even if its process is stopped: the guest cannot stop before.
//!
//! **Stops.** Whether a process is stopped by job control is its deputy's to know, wherever the body is: its parent and its
//! shell look at it, and SIGCONT goes to it. It is stopped with all its threads, and stays so while it is emptied and
//! rebuilt: a traced thread goes on in a group stop, and is in it again when it is let go (ptrace(2)). A guest that is
//! stopped by what it got (SIGTSTP that it does not catch) has its deputy stopped in the same way ([`Deputy::stop`]).
//!
//! Every door call is answered by the thread that holds what it waits for; there is no lock order beyond the one
//! mutex. Invariants: at most one call is with an executor; `parked` is the notification of one that waits for
//! work, and then no call is current.

use crate::areas::{AreaError, Kept};
use crate::memory::{MemoryError, TargetMemory};
use crate::notify::{Listener, Notification};
use crate::proc::{ProcDir, ProcError};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::thread;
use vrun_remote_io::call::{Call, Reply};
use vrun_remote_io::executor::{self, Plan};
use vrun_remote_io::message::{ExitStatus, Stopped};
use vrun_shim::deputy::{DeputyCode, SLOT, SLOT_MASK};
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{Expect, Injection, Script, Status, TraceError, Tracee, area};

/// Room for one call's buffers: the largest call and the alignment of its segments.
const SCRATCH: u64 = (vrun_remote_io::call::MAX_BYTES as u64 + 128 * 1024).next_multiple_of(area::PAGE);
/// Bytes of a station: its page, and the room for its calls. The foreman's, the first, has no room.
const STATION: u64 = area::PAGE + SCRATCH;
/// Where the slots of the parked threads are: an emptied process has nothing there.
const SLOTS: u64 = 0x1000_0000_0000;
/// Where the stations are.
const STATIONS: u64 = 0x1001_0000_0000;
/// All of that: whatever of ours outlives a program's memory must lie elsewhere.
pub(crate) const SCRATCH_AREA: Range<u64> = SLOTS..0x1100_0000_0000;
/// The kernel's code for "restart this call, whatever the signal's handler says of it" (`include/linux/errno.h`).
const ERESTARTSYS: i64 = -512;
/// The same, but `EINTR` if a handler runs.
const ERESTARTNOHAND: i64 = -514;
const EINTR: i64 = -(libc::EINTR as i64);

/// The signals that a call sends to the thread that makes it.
const RAISED: u64 = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
/// Where the executor puts one of them, in its scratch memory.
const FETCHED: u64 = 64;
/// What a parked thread other than the leader fetches: signals that do not queue, and the two of the C library's own that
/// are only ever sent to a thread.
const UNQUEUED: u64 = (1 << 33) - 1;

#[derive(Debug, thiserror::Error)]
pub enum DeputyError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("what it shares cannot be kept: {0}")]
    Shared(AreaError),
    #[error(transparent)]
    Filter(#[from] crate::filter::FilterError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot end process {pid}: {source}")]
    Kill { pid: i32, source: io::Error },
}

impl From<AreaError> for DeputyError {
    fn from(error: AreaError) -> Self {
        match error {
            AreaError::Trace(error) => error.into(),
            other => Self::Shared(other),
        }
    }
}

type Result<T> = std::result::Result<T, DeputyError>;

/// Takes what the executors bring back, and the signals.
pub trait Correspondent: Send + Sync {
    /// The answer to a call.
    fn reply(&self, reply: Reply);
    /// A child was stopped, as its parent has read from a descriptor.
    fn stopped(&self, stopped: Stopped);
    /// Somebody sent the process a signal, or one of its threads (else 0): numbers as the job sees them.
    fn signal(&self, process: i32, thread: i32, info: [u8; SIGINFO]);
}

/// A deputy at work. Shared by the thread at the notification door, the channel's receiver and the main thread.
pub struct Deputy {
    pid: i32,
    /// Its PID as the job sees it.
    process: i32,
    /// Parked, the leader first.
    threads: Vec<ParkedThread>,
    /// Mask of the signals that are not fetched.
    read_here: u64,
    code: DeputyCode,
    memory: TargetMemory,
    listener: Arc<Listener>,
    correspondent: Arc<dyn Correspondent>,
    /// The executors' filter, as the kernel reads it.
    confinement: Vec<u8>,
    usher: mpsc::Sender<Errand>,
    state: Mutex<State>,
    /// The guest knows that the process is stopped, and of no `SIGCONT` since.
    pub stop_told: AtomicBool,
    /// [`Deputy::stop`] was called; it has neither stopped nor gone on since.
    pub stopping: AtomicBool,
}

/// What stays of a process beside its threads and what they hold.
#[derive(Clone, Debug)]
pub struct Remains {
    /// Where its command line and environment are, which `ps` goes on showing.
    pub arguments: Range<u64>,
    /// The memory that it shared, for its return.
    pub kept: Kept,
    /// Mask of the signals that it reads here from descriptors: they are not fetched.
    pub read_here: u64,
}

#[derive(Clone, Copy, Debug)]
struct ParkedThread {
    tid: i32,
    /// As the job sees it.
    inner: i32,
}

/// A parked thread of a retired deputy, stopped and traced.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    pub tracee: Tracee,
    /// Its TID as the job sees it.
    pub tid: i32,
    /// Its process is stopped by job control, and will be when it is let go.
    pub stopped: bool,
}

/// What an usher is to do.
#[derive(Debug)]
enum Errand {
    /// Make the call at a station return, if it is still the one to be cancelled.
    Interrupt(Weak<Deputy>, usize, u64),
    /// Wait for the end of all threads of a process but these, which have been told to leave, and say so.
    SeeOut(i32, Vec<i32>, mpsc::Sender<()>),
}

/// The deputies that the thread at the door serves at the moment. Between a deputy's first call and its registration here
/// its calls wait.
#[derive(Debug, Default)]
pub struct Desk {
    seats: Mutex<Seats>,
    usher: OnceLock<mpsc::Sender<Errand>>,
}

#[derive(Debug, Default)]
struct Seats {
    /// By host PID.
    deputies: HashMap<i32, Arc<Deputy>>,
    /// By the PID that the job sees.
    processes: HashMap<i32, i32>,
    /// Host PIDs by host TID, of threads that have called before.
    threads: HashMap<i32, i32>,
    waiting: Vec<Notification>,
}

impl Seats {
    /// The deputy that this thread belongs to.
    fn of(&mut self, tid: i32) -> Option<Arc<Deputy>> {
        let pid = match self.threads.get(&tid) {
            Some(pid) => *pid,
            None => {
                let pid = group_of(tid)?;
                if self.deputies.contains_key(&pid) {
                    self.threads.insert(tid, pid);
                }
                pid
            }
        };
        self.deputies.get(&pid).cloned()
    }
}

/// The process of a thread: host numbers.
fn group_of(tid: i32) -> Option<i32> {
    let status = ProcDir::open(tid).and_then(|directory| directory.read("status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    group.trim().parse().ok()
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a notification if it comes from a deputy's code. To be called by the thread at the door.
    pub fn door(&self, notification: &Notification) -> bool {
        let code = area::DEPUTY..area::DEPUTY + area::PAGE;
        if !code.contains(&notification.instruction_pointer) {
            return false;
        }
        let mut seats = self.lock();
        match seats.of(notification.pid) {
            Some(deputy) => {
                drop(seats);
                deputy.door(notification);
            }
            None => seats.waiting.push(*notification),
        }
        true
    }

    /// The deputy of this process, by the PID that the job sees.
    pub fn deputy(&self, process: i32) -> Option<Arc<Deputy>> {
        let seats = self.lock();
        seats.deputies.get(seats.processes.get(&process)?).cloned()
    }

    /// From now on this one is served.
    pub fn seat(&self, deputy: &Arc<Deputy>) {
        let mut seats = self.lock();
        seats.deputies.insert(deputy.pid, Arc::clone(deputy));
        seats.processes.insert(deputy.process, deputy.pid);
        let waiting = std::mem::take(&mut seats.waiting);
        let (its, others) = waiting
            .into_iter()
            .partition::<Vec<_>, _>(|notification| seats.of(notification.pid).is_some_and(|of| of.pid == deputy.pid));
        seats.waiting = others;
        drop(seats);
        its.iter().for_each(|notification| deputy.door(notification));
    }

    /// From now on this one is not served.
    pub fn leave(&self, deputy: &Deputy) {
        let mut seats = self.lock();
        seats.deputies.remove(&deputy.pid);
        seats.processes.remove(&deputy.process);
        seats.threads.retain(|_, pid| *pid != deputy.pid);
    }

    /// The guest wants this call back.
    pub fn cancel(&self, call: u64) {
        let deputies: Vec<_> = self.lock().deputies.values().cloned().collect();
        let _ = deputies.iter().any(|deputy| deputy.cancel(call));
    }

    /// The usher, who begins with the first deputy and serves all.
    fn usher(&self) -> Result<mpsc::Sender<Errand>> {
        if let Some(usher) = self.usher.get() {
            return Ok(usher.clone());
        }
        let (usher, errands) = mpsc::channel();
        thread::Builder::new()
            .name("usher".into())
            .spawn(move || {
                for errand in errands {
                    if let Err(error) = run_errand(errand) {
                        tracing::debug!("an executor: {error}");
                    }
                }
            })
            .map_err(DeputyError::Thread)?;
        Ok(self.usher.get_or_init(|| usher).clone())
    }
}

impl std::fmt::Debug for Deputy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deputy").field("pid", &self.pid).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// The foreman's, then the executors'.
    stations: Vec<Station>,
    /// Executors that wait for work.
    idle: Vec<usize>,
    queue: VecDeque<Call>,
    /// Executors that have been ordered and have not asked for work yet.
    coming: usize,
    /// The foreman is making one.
    creating: bool,
    /// The kernel gives us no more of them.
    exhausted: bool,
    /// No new work: foreman and executors are told to leave.
    retiring: bool,
    /// Nothing comes of any call any more.
    closed: bool,
}

/// Where a foreman or executor works.
#[derive(Default)]
struct Station {
    /// 0: it has not asked for work yet.
    tid: i32,
    /// Its waiting notification.
    parked: Option<u64>,
    current: Option<Current>,
    /// Its call is to be interrupted.
    cancelled: bool,
    /// The usher is about to interrupt it.
    ushered: bool,
    /// It blocks SIGTTOU: [`Call::unstoppable`].
    unstoppable: bool,
}

/// A call that is not one to be executed; it has been answered.
struct Refused;

enum Current {
    /// The executor confines itself before its first call.
    Confining,
    Call {
        id: u64,
        thread: i32,
        plan: Plan,
    },
    /// The executor changes its mask before a call; `None` if that was cancelled.
    Masking(Option<Call>),
    /// The executor fetches a signal that its last call raised in it; the answer to that call waits.
    Fetching {
        reply: Reply,
        thread: i32,
    },
    /// The executor sends the process a signal that was raised in it, to be read from a descriptor.
    Passing(Reply),
    /// The foreman maps a station.
    Mapping,
    /// The foreman clones its executor.
    Cloning,
}

/// The page of a station, its request block first.
fn block(station: usize) -> u64 {
    STATIONS + station as u64 * STATION
}

/// Room for the buffers of its calls.
fn scratch(station: usize) -> u64 {
    block(station) + area::PAGE
}

impl Deputy {
    /// Empties a stopped process, all of whose threads are traced by this thread, the leader first, and puts it to work.
    /// Descriptors stay. `adopted`: its parent is not of the job, so that it shall end with us.
    pub fn settle(
        threads: &[Tracee],
        remains: &Remains,
        adopted: bool,
        desk: &Desk,
        listener: &Arc<Listener>,
        correspondent: Arc<dyn Correspondent>,
    ) -> Result<Arc<Self>> {
        let leader = *threads.first().ok_or(TraceError::Gone(0))?;
        let pid = leader.tid();
        let directory = ProcDir::open(pid)?;
        let numbers = directory.status()?.namespace_pids;
        let process = numbers.last().copied().unwrap_or(pid);
        let parked = threads.iter().map(|thread| {
            let tid = thread.tid();
            // In one namespace alone its numbers are ours.
            let inner = match numbers.len() {
                ..=1 => tid,
                _ => directory
                    .thread(tid)?
                    .status()?
                    .namespace_pids
                    .last()
                    .copied()
                    .unwrap_or(tid),
            };
            Ok(ParkedThread { tid, inner })
        });
        let parked = parked.collect::<Result<Vec<_>>>()?;
        let code = vrun_shim::deputy::assemble();
        let confinement = crate::filter::confine_executor()?;
        let injection = Injection::begin(leader)?;
        injection.write(area::DEPUTY, &code.bytes)?;
        forget(threads, code.forget)?;

        let registers = leader.registers()?;
        injection.run(&empty_script(&directory, remains, adopted, threads.len())?)?;
        injection.write(scratch(0) - 8, &code.executor.to_le_bytes())?;
        let mut slots = vec![0; threads.len() * SLOT as usize];
        for (slot, mask) in slots
            .chunks_exact_mut(SLOT as usize)
            .zip(std::iter::once(u64::MAX).chain(std::iter::repeat(UNQUEUED)))
        {
            slot[SLOT_MASK as usize..][..8].copy_from_slice(&(mask & !remains.read_here).to_le_bytes());
        }
        injection.write(SLOTS, &slots)?;
        injection.run(&foreman_script())?;
        let memory = TargetMemory::open(pid)?;
        leader.set_registers(&registers)?;
        // The scripts' traps have let their own signal in.
        leader.set_blocked(u64::MAX)?;
        injection.keep();
        let others = threads[1..].iter().map(|thread| thread.detach(0));
        for released in std::iter::once(leader.let_go()).chain(others) {
            match released {
                Ok(()) | Err(TraceError::Gone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let state = State {
            stations: vec![Station::default()],
            ..State::default()
        };
        Ok(Arc::new(Self {
            pid,
            process,
            threads: parked,
            read_here: remains.read_here,
            code,
            memory,
            listener: Arc::clone(listener),
            correspondent,
            confinement,
            usher: desk.usher()?,
            state: Mutex::new(state),
            stop_told: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Host PID.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// PID as the job sees it.
    pub fn process(&self) -> i32 {
        self.process
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call from the guest. Bad ones are answered with `EINVAL` here; they never reach the process.
    pub fn submit(&self, call: Call) {
        let mut state = self.lock();
        if state.closed {
            return self.fail(call.id, ERESTARTSYS);
        }
        state.queue.push_back(call);
        self.dispatch(&mut state);
    }

    /// The guest wants this call back: it is answered with the kernel's restart code, or with its result if it was faster.
    /// False: it is not here.
    fn cancel(self: &Arc<Self>, id: u64) -> bool {
        let mut state = self.lock();
        if let Some(index) = state.queue.iter().position(|call| call.id == id) {
            state.queue.remove(index);
            drop(state);
            self.fail(id, ERESTARTSYS);
            return true;
        }
        let masking = state
            .stations
            .iter_mut()
            .find_map(|station| match &mut station.current {
                Some(Current::Masking(call)) => call.take_if(|call| call.id == id),
                _ => None,
            });
        if masking.is_some() {
            drop(state);
            self.fail(id, ERESTARTSYS);
            return true;
        }
        let has = |station: &Station| matches!(&station.current, Some(Current::Call { id: own, .. }) if *own == id);
        let Some(station) = state.stations.iter().position(has) else {
            return false;
        };
        if !std::mem::replace(&mut state.stations[station].cancelled, true) {
            // The usher ends with the desk, not before.
            let _ = self.usher.send(Errand::Interrupt(Arc::downgrade(self), station, id));
        }
        true
    }

    /// Lets the threads that wait for work through the kernel once: without that they do not take part in a stop, which is
    /// complete, and told to the parent, only when all threads have stopped.
    pub fn kick(&self) {
        let mut state = self.lock();
        state.idle.clear();
        for station in &mut state.stations {
            if let Some(parked) = station.parked.take() {
                let _ = self.listener.answer(parked, area::EXECUTOR_AGAIN);
            }
        }
    }

    /// It has ended, or is about to: whoever waits for a call is told that nothing will come of it.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        let mut calls: Vec<u64> = queue.iter().map(|call| call.id).collect();
        for station in &mut state.stations {
            match station.current.take() {
                Some(Current::Call { id, .. }) => calls.push(id),
                Some(Current::Fetching { reply, .. } | Current::Passing(reply)) => calls.push(reply.id),
                Some(Current::Masking(call)) => calls.extend(call.map(|call| call.id)),
                other => station.current = other,
            }
        }
        calls.into_iter().for_each(|id| self.fail(id, ERESTARTSYS));
    }

    fn fail(&self, id: u64, result: i64) {
        self.correspondent.reply(Reply {
            id,
            result,
            outputs: Vec::new(),
        });
    }

    /// A notification of one of the reserved calls.
    fn door(&self, notification: &Notification) {
        match notification.number {
            area::VRUN_NEXT => self.next(notification),
            area::VRUN_SIGNAL => self.signal(notification),
            _ => {}
        }
    }

    fn signal(&self, notification: &Notification) {
        let [result, info, ..] = notification.args;
        let mut bytes = [0; SIGINFO];
        // An interrupted wait (stop and continue) brings no signal.
        if result as i64 > 0
            && self
                .memory
                .read(info, &mut bytes)
                .is_ok_and(|length| length == bytes.len())
        {
            let thread = self.directed(&bytes, notification.pid);
            self.correspondent.signal(self.process, thread, bytes);
        }
        // The process may have been killed meanwhile: then there is nobody to answer.
        let _ = self.listener.answer(notification.id, 0);
    }

    /// The thread that a signal is for, as the job numbers it, if it is for one: that which has fetched it.
    fn directed(&self, info: &[u8; SIGINFO], tid: i32) -> i32 {
        // si_code
        let code = i32::from_le_bytes([info[8], info[9], info[10], info[11]]);
        let directed = self.threads.len() > 1 && code == libc::SI_TKILL;
        let thread = self.threads.iter().find(|thread| directed && thread.tid == tid);
        thread.map_or(0, |thread| thread.inner)
    }

    fn next(&self, notification: &Notification) {
        let [result, address, ..] = notification.args;
        let (result, index) = (result as i64, (address.wrapping_sub(STATIONS) / STATION) as usize);
        let mut state = self.lock();
        let Some(station) = state.stations.get_mut(index) else {
            let _ = self.listener.fail(notification.id, libc::ENOSYS);
            return;
        };
        let came = station.tid == 0;
        (station.tid, station.parked) = (notification.pid, Some(notification.id));
        let next = match station.current.take() {
            None if came && index > 0 => self.confine(index, notification.id),
            None => None,
            Some(Current::Confining) => {
                if result != 0 {
                    tracing::error!(
                        "the executor could not be confined: {}",
                        io::Error::from_raw_os_error(-result as i32)
                    );
                    let _ = crate::sys::kill(self.pid, libc::SIGKILL);
                }
                state.coming -= 1;
                None
            }
            Some(Current::Call { thread, plan, .. }) => {
                station.cancelled = false;
                let reply = plan.reply(result, |offset, buffer| {
                    self.memory.read_all(scratch(index) + offset as u64, buffer)
                });
                match reply {
                    Ok(reply) => {
                        self.look_for_stop(&reply);
                        self.answer(index, notification, reply, thread)
                    }
                    Err(error) => {
                        tracing::error!("a result of process {} is lost: {error}", self.pid);
                        None
                    }
                }
            }
            Some(Current::Masking(call)) => {
                call.and_then(|call| self.make(index, notification.id, &call).ok().flatten())
            }
            Some(Current::Fetching { reply, thread }) => self.fetched(index, notification, reply, thread),
            Some(Current::Passing(reply)) => {
                self.correspondent.reply(reply);
                None
            }
            Some(Current::Mapping) => self.mapped(&mut state, notification.id, result),
            Some(Current::Cloning) => {
                self.cloned(&mut state, result);
                None
            }
        };
        let station = &mut state.stations[index];
        station.current = next;
        if station.current.is_some() {
            station.parked = None;
        } else if station.ushered {
            station.parked = None;
            let _ = self.listener.answer(notification.id, area::EXECUTOR_AGAIN);
        } else if index > 0 {
            state.idle.push(index);
        }
        self.dispatch(&mut state);
    }

    /// The first request: the executor takes a filter of its own, below the job's, for life.
    fn confine(&self, station: usize, parked: u64) -> Option<Current> {
        let filter = &self.confinement;
        let scratch = scratch(station);
        let filter_address = scratch + 64;
        // struct sock_fprog: u16 length, padding, pointer.
        let mut image = vec![0_u8; 64];
        image[..2].copy_from_slice(&((filter.len() / 8) as u16).to_le_bytes());
        image[8..16].copy_from_slice(&filter_address.to_le_bytes());
        image.extend_from_slice(filter);
        let arguments = [libc::SECCOMP_SET_MODE_FILTER.into(), 0, scratch, 0, 0, 0];
        self.order(station, parked, libc::SYS_seccomp as u64, arguments, &image)
            .then_some(Current::Confining)
    }

    /// Of a stopped child a parent that reads SIGCHLD from a descriptor is told only there (`struct signalfd_siginfo`, 128
    /// bytes). What looks like it and is not does no harm: whether it is stopped is seen.
    fn look_for_stop(&self, reply: &Reply) {
        const RECORD: usize = 128;
        if self.read_here & 1 << (libc::SIGCHLD - 1) == 0 || reply.result % RECORD as i64 != 0 {
            return;
        }
        for record in reply
            .outputs
            .iter()
            .flat_map(|output| output.bytes.chunks_exact(RECORD))
        {
            let word = |at: usize| i32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
            let [signal, code, process, status] = [0, 8, 12, 40].map(word);
            if (signal, code) == (libc::SIGCHLD, libc::CLD_STOPPED) && (1..=64).contains(&status) {
                let signal = status;
                self.correspondent.stopped(Stopped { process, signal });
            }
        }
    }

    /// Answers a call, after the signal that the kernel has sent to its very thread for it, if it has.
    fn answer(&self, station: usize, notification: &Notification, reply: Reply, thread: i32) -> Option<Current> {
        let errors = [libc::EPIPE, libc::EFBIG].map(|errno| -i64::from(errno));
        if errors.contains(&reply.result) && self.has_raised(notification.pid) {
            // The mask, a timeout of nothing, and room for the signal.
            let mut image = RAISED.to_le_bytes().to_vec();
            image.resize(FETCHED as usize, 0);
            let at = |offset| scratch(station) + offset;
            let arguments = [at(0), at(FETCHED), at(8), 8, 0, 0];
            let number = libc::SYS_rt_sigtimedwait as u64;
            if self.order(station, notification.id, number, arguments, &image) {
                return Some(Current::Fetching { reply, thread });
            }
        }
        self.correspondent.reply(reply);
        None
    }

    /// Hands over the signal that an executor has fetched, or has it sent to the process that reads it from a descriptor: the
    /// call that raised it is answered behind it.
    fn fetched(&self, station: usize, notification: &Notification, reply: Reply, thread: i32) -> Option<Current> {
        let mut bytes = [0; SIGINFO];
        let found = notification.args[0] as i64 > 0;
        if found && self.memory.read_all(scratch(station) + FETCHED, &mut bytes).is_ok() {
            let signal = u64::from(bytes[0]);
            if self.read_here >> signal.wrapping_sub(1) & 1 != 0 {
                let (number, arguments) = (libc::SYS_kill as u64, [self.process as u64, signal, 0, 0, 0, 0]);
                if self.order(station, notification.id, number, arguments, &[]) {
                    return Some(Current::Passing(reply));
                }
            } else {
                let thread = if self.threads.len() == 1 { 0 } else { thread };
                self.correspondent.signal(self.process, thread, bytes);
            }
        }
        self.correspondent.reply(reply);
        None
    }

    fn has_raised(&self, tid: i32) -> bool {
        let status = ProcDir::open(self.pid)
            .and_then(|directory| directory.thread(tid))
            .and_then(|directory| directory.status());
        status.is_ok_and(|status| status.pending & RAISED != 0)
    }

    /// Gives idle executors the next calls, and orders new ones if there are not enough.
    fn dispatch(&self, state: &mut State) {
        if state.retiring {
            state.idle.clear();
            for station in &mut state.stations {
                if let Some(parked) = station.parked.take() {
                    let _ = self.listener.answer(parked, area::EXECUTOR_EXIT);
                }
            }
            return;
        }
        while !state.queue.is_empty() {
            let Some(index) = state.idle.pop() else {
                return self.hire(state);
            };
            let (Some(call), Some(parked)) = (state.queue.pop_front(), state.stations[index].parked) else {
                continue;
            };
            let station = &mut state.stations[index];
            let begun = if call.unstoppable == station.unstoppable {
                self.make(index, parked, &call)
            } else {
                station.unstoppable = call.unstoppable;
                Ok(self.mask(index, parked, call))
            };
            match begun {
                Ok(current) => (station.parked, station.current) = (None, current),
                Err(Refused) => state.idle.push(index),
            }
        }
    }

    /// Has an executor make a call. `None`: the process is gone.
    fn make(&self, station: usize, parked: u64, call: &Call) -> std::result::Result<Option<Current>, Refused> {
        let plan = executor::plan(call, scratch(station), SCRATCH as usize).map_err(|error| {
            tracing::warn!("refused a call: {error}");
            self.fail(call.id, -i64::from(libc::EINVAL));
            Refused
        })?;
        let (id, thread) = (call.id, call.thread);
        let given = self.order(station, parked, plan.number.into(), plan.arguments, &plan.image);
        Ok(given.then_some(Current::Call { id, thread, plan }))
    }

    /// Has an executor block SIGTTOU before a call, or let it in.
    fn mask(&self, station: usize, parked: u64, call: Call) -> Option<Current> {
        let how = if call.unstoppable {
            libc::SIG_BLOCK
        } else {
            libc::SIG_UNBLOCK
        };
        let set = 1_u64 << (libc::SIGTTOU - 1);
        let arguments = [how as u64, scratch(station), 0, 8, 0, 0];
        let number = libc::SYS_rt_sigprocmask as u64;
        self.order(station, parked, number, arguments, &set.to_le_bytes())
            .then_some(Current::Masking(Some(call)))
    }

    /// Has the foreman make an executor, if there are more calls than will find one.
    fn hire(&self, state: &mut State) {
        let executors = state.stations.len() - 1;
        if state.creating || state.queue.len() <= state.coming || executors >= self.threads.len() || state.exhausted {
            return;
        }
        let Some(parked) = state.stations[0].parked.take() else {
            return;
        };
        let index = state.stations.len();
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE) as u64;
        let mapping = [block(index), STATION, protection, flags, u64::MAX, 0];
        if self.order(0, parked, libc::SYS_mmap as u64, mapping, &[]) {
            state.stations[0].current = Some(Current::Mapping);
            state.stations.push(Station::default());
            state.creating = true;
            state.coming += 1;
        }
    }

    /// The foreman has mapped a station, or not.
    fn mapped(&self, state: &mut State, parked: u64, result: i64) -> Option<Current> {
        let index = state.stations.len() - 1;
        let stack = scratch(index) - 8;
        let written = || self.memory.write(stack, &self.code.executor.to_le_bytes()).is_ok();
        if result as u64 == block(index)
            && written()
            && self.order(0, parked, libc::SYS_clone as u64, clone_arguments(stack), &[])
        {
            return Some(Current::Cloning);
        }
        self.not_hired(state, result);
        None
    }

    /// The foreman has cloned an executor, or not.
    fn cloned(&self, state: &mut State, result: i64) {
        if result < 0 {
            return self.not_hired(state, result);
        }
        state.creating = false;
    }

    /// There will be no more executors. Without any, nothing can be done for the guest.
    fn not_hired(&self, state: &mut State, result: i64) {
        tracing::warn!("process {} gets no further executor: error {}", self.pid, -result);
        state.stations.pop();
        state.coming -= 1;
        (state.creating, state.exhausted) = (false, true);
        if state.stations.len() == 1 {
            let calls = std::mem::take(&mut state.queue);
            calls
                .iter()
                .for_each(|call| self.fail(call.id, -i64::from(libc::ENOMEM)));
        }
    }

    /// Writes a request and wakes who waits for it. False: the process is gone.
    fn order(&self, station: usize, parked: u64, number: u64, arguments: [u64; 6], image: &[u8]) -> bool {
        let mut request = Vec::with_capacity(56);
        request.extend_from_slice(&number.to_le_bytes());
        request.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let wrote = |address, bytes: &[u8]| {
            bytes.is_empty()
                || self
                    .memory
                    .write(address, bytes)
                    .is_ok_and(|length| length == bytes.len())
        };
        wrote(block(station), &request) && wrote(scratch(station), image) && self.listener.answer(parked, 0).is_ok()
    }

    /// The executor whose call is to be interrupted, if it is still at it. From now on it does not wait for work, until
    /// [`Deputy::dismiss_usher`].
    fn announce_usher(&self, index: usize, id: u64) -> Option<i32> {
        let mut state = self.lock();
        let station = &mut state.stations[index];
        let current = matches!(&station.current, Some(Current::Call { id: own, .. }) if *own == id);
        if !current {
            return None;
        }
        station.ushered = true;
        Some(station.tid)
    }

    /// Whether a call that a station had has got its reply.
    fn is_answered(&self, index: usize, call: u64) -> bool {
        match &self.lock().stations[index].current {
            Some(Current::Call { id, .. }) => *id != call,
            Some(Current::Fetching { reply, .. }) => reply.id != call,
            _ => true,
        }
    }

    fn dismiss_usher(&self, index: usize) {
        self.lock().stations[index].ushered = false;
    }

    /// An executor stopped because of our interrupt: turns the call that it is in, or about to make, into a cancelled one.
    fn interrupted(&self, index: usize, tracee: Tracee) -> Result<()> {
        let mut state = self.lock();
        let station = &mut state.stations[index];
        if matches!(&station.current, Some(Current::Call { .. })) && station.cancelled {
            let mut registers = tracee.registers()?;
            let in_call = registers.rip == area::GATE + 2 && registers.orig_rax as i64 >= 0;
            let at_gate = registers.rip == area::GATE;
            // Behind the call that asks for work, but not with work: that call was interrupted, and brings a result that
            // is older than the cancellation. It is made again.
            let asking = registers.rip == self.code.accepted && registers.rax != 0;
            let before = (self.code.accepted..self.code.returned).contains(&registers.rip) && !asking;
            if in_call && matches!(registers.rax as i64, -516..=-512 | EINTR) {
                // Not a call any more: the kernel must hand the code to us instead of restarting. Some calls know only
                // EINTR (epoll_wait, what has a timeout on its socket: signal(7)). No signal reaches the executor, so
                // it was our interrupt; to the program it means EINTR if a handler runs, and nothing otherwise.
                if registers.rax as i64 == EINTR {
                    registers.rax = ERESTARTNOHAND as u64;
                }
                registers.orig_rax = u64::MAX;
            } else if at_gate || before {
                registers.orig_rax = u64::MAX;
                registers.rip = self.code.returned;
                registers.rsp = scratch(index);
                registers.rax = ERESTARTSYS as u64;
            } else {
                return Ok(());
            }
            tracee.set_registers(&registers)?;
            // The call is over. One whose process is stopped comes to the door only when that goes on.
            if let Some(Current::Call { plan, .. }) = station.current.take() {
                station.cancelled = false;
                let reply = plan.reply(registers.rax as i64, |offset, buffer| {
                    self.memory.read_all(scratch(index) + offset as u64, buffer)
                });
                self.correspondent.reply(reply?);
            }
        }
        Ok(())
    }

    /// Ends the foreman and the executors, and stops the parked threads where they hold no signal; the process is then ready
    /// to be rebuilt, or to be settled again. Gives them, the leader first. To be called by the main thread, while another
    /// serves the door, with no call outstanding.
    pub fn retire(&self) -> Result<Vec<Retired>> {
        {
            let mut state = self.lock();
            state.retiring = true;
            self.dispatch(&mut state);
        }
        // By the usher, who may be tracing one of them.
        let (gone, seen_out) = mpsc::channel();
        let parked = self.threads.iter().map(|thread| thread.tid).collect();
        self.usher
            .send(Errand::SeeOut(self.pid, parked, gone))
            .map_err(|_| TraceError::Gone(self.pid))?;
        seen_out.recv().map_err(|_| TraceError::Gone(self.pid))?;
        let mut stopping = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let tracee = Tracee::seize(thread.tid, 0)?;
            tracee.interrupt()?;
            stopping.push(Retired {
                tracee,
                tid: thread.inner,
                stopped: false,
            });
        }
        for thread in &mut stopping {
            thread.stopped = stop_waiting(thread.tracee)?;
        }
        Ok(stopping)
    }

    /// Stops the process by job control, as the guest was. To be called by the main thread. The stop is complete after a
    /// [`Deputy::kick`] when the leader has stopped: who is told of it may look at the leader.
    pub fn stop(&self, signal: i32) -> Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        let leader = Tracee::seize(self.pid, 0)?;
        leader.interrupt()?;
        if leader.wait_halted()? == libc::SIGTRAP {
            leader.stop_process(self.pid, signal)?;
        }
        Ok(leader.detach(0)?)
    }

    /// Ends threads of a retired deputy that the program has no more.
    pub fn dismiss(&self, threads: &[Retired]) -> Result<()> {
        for thread in threads {
            let mut registers = thread.tracee.registers()?;
            (registers.rip, registers.orig_rax) = (self.code.leave, u64::MAX);
            thread.tracee.set_registers(&registers)?;
            thread.tracee.resume(0)?;
        }
        for thread in threads {
            while !thread.tracee.wait()?.is_end() {
                thread.tracee.resume(0)?;
            }
        }
        Ok(())
    }

    /// Makes the process end as the guest did; its parent sees it as it would have. To be called by the main thread.
    pub fn end(&self, status: ExitStatus) -> Result<()> {
        let (ExitStatus::Code(number) | ExitStatus::Signal { number, .. }) = status;
        if status
            == (ExitStatus::Signal {
                number: libc::SIGKILL,
                core: false,
            })
        {
            return crate::sys::kill(self.pid, number).map_err(|source| DeputyError::Kill { pid: self.pid, source });
        }
        let first = Tracee::seize(self.pid, 0)?;
        first.interrupt()?;
        first.wait_interrupted()?;
        let injection = Injection::begin(first)?;
        let mut script = Script::new(area::DATA.start);
        if let ExitStatus::Code(code) = status {
            script.call("exit", libc::SYS_exit_group, &[code as u64]);
        } else {
            // The program's core, if any, was written where it ran.
            let none = script.reserve(16);
            script.call(
                "leave no core file",
                libc::SYS_prlimit64,
                &[0, libc::RLIMIT_CORE.into(), none, 0],
            );
            let default = script.reserve(32);
            script.call(
                "restore the default action",
                libc::SYS_rt_sigaction,
                &[number as u64, default, 0, 8],
            );
            // For this thread alone: another one waits for all that is for the process.
            let (pid, number) = (self.process as u64, number as u64);
            script.call("raise the signal", libc::SYS_tgkill, &[pid, pid, number]);
            let others = script.data(&(!(1_u64 << (number - 1))).to_le_bytes());
            script.call(
                "let it in",
                libc::SYS_rt_sigprocmask,
                &[libc::SIG_SETMASK as u64, others, 0, 8],
            );
        }
        Ok(injection.end_with(&script)?)
    }
}

/// Waits until a parked thread that was interrupted stands in its wait for signals; whether its process is stopped.
fn stop_waiting(thread: Tracee) -> Result<bool> {
    loop {
        let signal = thread.wait_halted()?;
        let waits = |registers: &libc::user_regs_struct| {
            registers.rip == area::GATE + 2 && registers.orig_rax as i64 == libc::SYS_rt_sigtimedwait
        };
        let registers = thread.registers()?;
        if waits(&registers) && (registers.rax as i64) < 0 {
            return Ok(signal != libc::SIGTRAP);
        }
        // It has fetched a signal and not handed it over yet: on to the beginning of its next wait.
        let mut signal = 0;
        loop {
            thread.resume_to_call(signal)?;
            let status = thread.wait_stop()?;
            let registers = thread.registers()?;
            signal = match status {
                Status::Stopped(libc::SIGTRAP) => {
                    if waits(&registers) && registers.rax as i64 == -i64::from(libc::ENOSYS) {
                        break;
                    }
                    0
                }
                Status::Stopped(signal) => signal,
                _ => 0,
            };
        }
        thread.resume(0)?;
        thread.interrupt()?;
    }
}

/// Makes each thread end everything by which the kernel would write to memory that goes away. Then each stands before its
/// loop, at the end of its slot, with every signal blocked.
fn forget(threads: &[Tracee], entry: u64) -> Result<()> {
    const UNREGISTER: u64 = 1; // RSEQ_FLAG_UNREGISTER, linux/rseq.h
    for (thread, index) in threads.iter().zip(1..) {
        let mut registers = thread.registers()?;
        (registers.rip, registers.rsp) = (entry, SLOTS + index * SLOT);
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rdx) = (0, UNREGISTER);
        if let Some(rseq) = thread.rseq()? {
            (registers.rdi, registers.rsi, registers.r10) = (rseq.address, rseq.size.into(), rseq.signature.into());
        }
        thread.set_registers(&registers)?;
        thread.set_blocked(u64::MAX)?;
        thread.resume(0)?;
    }
    for thread in threads {
        loop {
            match thread.wait_stop()? {
                Status::Stopped(libc::SIGTRAP) => break,
                // A stop of job control that began meanwhile.
                Status::Stopped(libc::SIGSTOP) => thread.resume(libc::SIGSTOP)?,
                // An interrupt that was sent before it stopped for something else.
                Status::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    ..
                } => thread.resume(0)?,
                status => {
                    let tid = thread.tid();
                    return Err(TraceError::Unexpected { tid, status }.into());
                }
            }
        }
        // The trap has let its own signal in.
        thread.set_blocked(u64::MAX)?;
    }
    Ok(())
}

fn run_errand(errand: Errand) -> Result<()> {
    match errand {
        Errand::Interrupt(deputy, station, call) => {
            let Some(deputy) = deputy.upgrade() else { return Ok(()) };
            let Some(tid) = deputy.announce_usher(station, call) else {
                return Ok(());
            };
            let done = interrupt(&deputy, station, call, tid);
            deputy.dismiss_usher(station);
            done
        }
        Errand::SeeOut(pid, parked, gone) => {
            see_out(pid, &parked);
            let _ = gone.send(());
            Ok(())
        }
    }
}

/// Waits for the end of all threads of a process but the parked ones. They have been told to leave; one whose process is
/// stopped hears it because we trace it.
fn see_out(pid: i32, parked: &[i32]) {
    loop {
        let threads = ProcDir::open(pid).and_then(|directory| directory.threads());
        let others = threads.unwrap_or_default().into_iter();
        // A thread that cannot be traced any more has given up its memory already.
        let traced: Vec<_> = others
            .filter(|tid| !parked.contains(tid))
            .filter_map(|tid| Tracee::seize(tid, 0).ok())
            .collect();
        // The foreman may have made one more.
        if traced.is_empty() {
            return;
        }
        for thread in traced {
            loop {
                match thread.wait() {
                    Ok(status) if status.is_end() => break,
                    Ok(Status::Stopped(signal)) => drop(thread.resume(signal)),
                    Ok(_) => drop(thread.resume(0)),
                    Err(_) => break,
                }
            }
        }
    }
}

/// Has an executor answer its call, which is cancelled: now, though its process may be stopped, or be so any moment, and a
/// result with it. A thread that we trace may go on in a group stop; let go it takes part in it again (ptrace(2)).
fn interrupt(deputy: &Deputy, station: usize, call: u64, tid: i32) -> Result<()> {
    let executor = Tracee::seize(tid, 0)?;
    let done = lead(deputy, station, call, executor);
    match done {
        // Nobody hears of the end of a process before its threads have been waited for: this one by us.
        Err(DeputyError::Trace(TraceError::Gone(_))) => while executor.wait().is_ok_and(|status| !status.is_end()) {},
        Err(_) => executor.detach(0)?,
        Ok(()) => {}
    }
    done
}

fn lead(deputy: &Deputy, station: usize, call: u64, executor: Tracee) -> Result<()> {
    executor.interrupt()?;
    loop {
        let signal = match executor.wait_stop()? {
            Status::Event {
                event: libc::PTRACE_EVENT_STOP,
                ..
            } => {
                deputy.interrupted(station, executor)?;
                0
            }
            // Where a call begins or ends.
            Status::Stopped(libc::SIGTRAP) => 0,
            Status::Stopped(signal) => signal,
            _ => 0,
        };
        if deputy.is_answered(station, call) {
            return Ok(executor.detach(signal)?);
        }
        executor.resume_to_call(signal)?;
    }
}

/// The calls that empty a process, or a retired deputy of what it had.
fn empty_script(directory: &ProcDir, remains: &Remains, adopted: bool, threads: usize) -> Result<Script> {
    let maps = directory.maps()?;
    let mut script = Script::new(area::DATA.start);
    // A read from the terminal in the background stops the process by two of these, and so do we as the guest is
    // stopped; a handler for them has moved away.
    for signal in [libc::SIGTTIN, libc::SIGTTOU, libc::SIGTSTP] {
        let arguments = [signal as u64, script.reserve(32), 0, 8];
        script.call("let the deputy be stopped", libc::SYS_rt_sigaction, &arguments);
    }
    let mut keep = vec![
        area::START..area::END,
        remains.arguments.start & !(area::PAGE - 1)..remains.arguments.end.next_multiple_of(area::PAGE),
    ];
    keep.extend(remains.kept.windows());
    let kernels = |path: &[u8]| path.starts_with(b"[vvar") || path == b"[vdso]";
    keep.extend(
        maps.iter()
            .filter(|entry| kernels(&entry.path))
            .map(|entry| entry.start..entry.end),
    );
    crate::restore::clear(&mut script, keep);
    if adopted {
        // Whoever could make use of a deputy is its supervisor. What the program had chosen comes back with it.
        let last_wish = [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0];
        script.call("end with the supervisor", libc::SYS_prctl, &last_wish);
    }
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let slots = (threads as u64 * SLOT).next_multiple_of(area::PAGE);
    for (what, start, length) in [
        ("the parked threads", SLOTS, slots),
        ("the foreman", STATIONS, area::PAGE),
    ] {
        let mapping = [start, length, protection, private, u64::MAX, 0];
        script.step(
            format_args!("map room for {what}"),
            libc::SYS_mmap,
            &mapping,
            Expect::Exactly(start),
        );
    }
    Ok(script)
}

/// The calls by which the leader makes the foreman.
fn foreman_script() -> Script {
    let mut script = Script::new(area::DATA.start);
    let stops = 1_u64 << (libc::SIGTTIN - 1) | 1 << (libc::SIGTTOU - 1);
    let (its_mask, all) = (
        script.data(&(!stops).to_le_bytes()),
        script.data(&u64::MAX.to_le_bytes()),
    );
    let set = libc::SIG_SETMASK as u64;
    script.call(
        "let the terminal's stops in",
        libc::SYS_rt_sigprocmask,
        &[set, its_mask, 0, 8],
    );
    script.call("create the foreman", libc::SYS_clone, &clone_arguments(scratch(0) - 8));
    script.call("block every signal", libc::SYS_rt_sigprocmask, &[set, all, 0, 8]);
    script
}

/// A thread whose first instruction is the gate's `ret`: its stack holds the address of the executors' loop.
fn clone_arguments(stack: u64) -> [u64; 6] {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    [flags as u64, stack, 0, 0, 0, 0]
}
