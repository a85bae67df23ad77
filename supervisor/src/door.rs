//! The door of a guest: the threads that answer its notifications.
//!
//! ```text
//!   guest: system call ─► recv ─► marshal ─┬─ runs in the guest's own kernel          resume
//!                                          ├─ Call ─► origin ─► Reply                 answer, fail
//!                                          ├─ mapping of a file: contents fetched      add_fd, resume
//!                                          ├─ its own /proc: a snapshot                answer
//!                                          └─ not possible away: held until home       fail(ERESTARTSYS)
//! ```
//!
//! **Threads.** Who receives a notification handles it to its end, so that a call costs no wake-up but its own. Some
//! one is always receiving: the last who leaves for a call sends another in ([`Door::serve`]). What is known of a thread of
//! the guest is kept under its host TID.
//!
//! **Stopping.** The main thread stops a thread with `PTRACE_INTERRUPT`, but one that waits for its notification
//! stops only when that is answered. So it also sets `stopping` here, which cancels the call in flight and turns away new
//! ones with ERESTARTSYS: the kernel then makes the call again, or not, by its own rules. That code may only be given
//! after the interrupt was sent, or the program would see it: the order of the two in [`Door::begin_stop`]'s caller
//! is what this rests on.
//!
//! **Signals** come by the same channel as replies, in the order in which they happened at the origin. One that came before a
//! reply is in its process before any call of that returns: a result that overtakes it is *finished* and kept until its
//! thread is stopped for the signal, or the signal is in the process by way of another thread.
//!
//! Those that the guest's own kernel sends do not wake a thread that waits here: the main thread learns of them
//! ([`crate::heed`]) and stops it. One that is on its way here meanwhile rings for that when it has come ([`Door::heed`]).
//!
//! **Masks.** The mask that `ppoll` and its kin have for their time is not the guest's while it waits here. A signal
//! that the mask lets in ends the call, and the main thread lets it in ([`Door::unmasked`]); one that it keeps out waits
//! until the call is over ([`Door::defer`]).
//!
//! **Time.** A wait that is turned away (for a stop, or a signal that changes nothing) is made again by the kernel with the
//! timeout that it began with: what has passed of it is remembered and taken off.

use crate::attributes::{timers, usage};
use crate::memory::{MemoryError, PAGE, TargetMemory};
use crate::mirror::Line;
use crate::notify::{Listener, Notification, RecvError};
use crate::proc::{MapsEntry, ProcDir, SyscallState, TimerInfo};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::{AreaKind, FileMapping, Process};
use vrun_remote_io::call::{Argument, Call, Keep, Reply, Segment};
use vrun_remote_io::marshal::{self, MmapRequest, Outcome, Pending, Step};
use vrun_remote_io::message::{Cancel, Message};
use vrun_remote_io::syscalls::NOBODY;

/// `include/linux/errno.h`: make the call again, unless a handler without `SA_RESTART` runs.
const ERESTARTSYS: i32 = 512;
/// Make the call again unless any handler runs.
const ERESTARTNOHAND: i32 = 514;
/// Make the call again by a restart block, which a guest does not have.
const ERESTART_RESTARTBLOCK: i32 = 516;
/// Calls that no handler lets go on (signal(7)).
const WAITS: [i64; 7] = [
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];
/// Calls that may give EINTR for an interruption that brings no signal, with nothing done.
const IDLE: [i64; 10] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];
/// Signals that no mask keeps out.
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
/// Why it comes home for what [`Door::touches_signals`] sees.
const SIGNALS: &str = "it has signals in hand that it reads from a signalfd";
/// Bytes fetched at a time to fill a mapping.
const FETCH: u64 = 1 << 20;

/// Threads that receive at a time. More of them would all be woken by each notification.
const RECEIVERS: usize = 2;
/// Bytes of stack of a thread at the door.
const STACK: usize = 512 << 10;

/// Tells the main thread what it has to do.
pub trait Bell: Send + Sync {
    /// The guest waits for something that can only be done at home.
    fn needs_home(&self, reason: String);
    /// A thread's call is over but for signals, for which it has to be stopped.
    fn due(&self, thread: i32);
    /// A thread waits here for which there may be signals: [`Door::heed`].
    fn heed(&self, thread: i32);
}

/// Shared by the door's threads, the channel's receiver and the main thread.
pub struct Door {
    listener: Listener,
    line: Arc<Line>,
    bell: Box<dyn Bell>,
    /// The origin can give a timer the number that it has here.
    numbers_timers: bool,
    state: Mutex<State>,
    pool: Mutex<Pool>,
    /// A place for a receiver is free.
    free: Condvar,
}

/// A process of the guest.
#[derive(Debug)]
pub struct Member {
    /// PID here and at the origin.
    pub pid: i32,
    pub origin_pid: i32,
    /// Mask of the signals that it reads from descriptors at its origin ([`crate::attributes::signals`]).
    reads: u64,
    memory: TargetMemory,
    /// The files that it had mapped shared at home.
    shown: Vec<FileMapping>,
    /// It has something attached that is there when it has ended.
    outlived: bool,
    /// Held by whom a file is mapped for: the descriptor that it is mapped through is one for all threads.
    mapping: Mutex<Option<Mapping>>,
}

/// The mapping that was let through last. Until its thread calls again it may not have been made, and then whatever
/// takes its descriptor's place would be mapped instead.
#[derive(Debug)]
struct Mapping {
    tid: i32,
    descriptor: i32,
    source: Source,
    file: File,
}

/// A regular file of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    size: u64,
    device: u64,
    inode: u64,
}

/// A thread of the guest: its TID here, its TID at the origin, the host PID of its process.
#[derive(Clone, Copy, Debug)]
pub struct Occupant {
    pub tid: i32,
    pub origin_tid: i32,
    pub pid: i32,
}

#[derive(Default)]
struct Pool {
    receiving: usize,
    resting: usize,
    over: bool,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// By host TID.
    threads: HashMap<i32, ThreadState>,
    /// By host PID.
    processes: HashMap<i32, ProcessState>,
    /// The threads whose calls are in flight.
    calls: HashMap<u64, i32>,
    /// The channel is gone: nothing can be answered any more.
    lost: bool,
    /// Going home was refused: what needs it fails with this errno from now on.
    stranded: bool,
    statistics: Statistics,
}

struct ProcessState {
    member: Arc<Member>,
    /// Signals that have arrived, and are not in the process yet.
    announced: usize,
    /// Descriptors that exist in the guest only because a file was mapped through them.
    placeholders: BTreeSet<i32>,
}

struct ThreadState {
    occupant: Occupant,
    in_flight: Option<InFlight>,
    /// A notification that waits for home.
    held: Option<u64>,
    /// A notification and its result, which signals have to precede.
    finished: Option<(u64, i64)>,
    /// There may be signals for it.
    heed: bool,
    /// The main thread keeps signals until the call is over.
    deferred: bool,
    /// The mask of the call under way, if it has one of its own.
    mask: Option<u64>,
    /// The mask of the call that was turned away last.
    unmasked: Option<u64>,
    /// The wait that was turned away last.
    wait: Option<Wait>,
    /// It has been let through to map a file, and has not called since.
    maps: bool,
    stopping: bool,
}

impl ThreadState {
    fn new(occupant: Occupant) -> Self {
        Self {
            occupant,
            in_flight: None,
            held: None,
            finished: None,
            heed: false,
            deferred: false,
            mask: None,
            unmasked: None,
            wait: None,
            maps: false,
            stopping: false,
        }
    }
}

impl State {
    /// Something about a thread that may have ended: then it is of no interest.
    fn with<T: Default>(&mut self, thread: i32, act: impl FnOnce(&mut ThreadState) -> T) -> T {
        self.threads.get_mut(&thread).map(act).unwrap_or_default()
    }

    fn announced(&self, pid: i32) -> usize {
        self.processes.get(&pid).map_or(0, |process| process.announced)
    }
}

/// Counters for `vctl stats`.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Statistics {
    pub notifications: u64,
    pub local: u64,
    pub round_trips: u64,
    pub waiting_us: u64,
}

struct InFlight {
    id: u64,
    reply: Option<Reply>,
    cancellable: bool,
    /// Who waits for the reply.
    waiter: thread::Thread,
}

/// Whose call is handled.
struct Caller {
    member: Arc<Member>,
    tid: i32,
    origin_tid: i32,
}

/// A call with a timeout, recognised when the kernel makes it again.
#[derive(Clone, Copy)]
struct Wait {
    number: u32,
    arguments: [u64; 6],
    instruction_pointer: u64,
    deadline: Instant,
}

impl Wait {
    fn is(&self, notification: &Notification) -> bool {
        let Notification {
            number,
            args,
            instruction_pointer,
            ..
        } = *notification;
        (self.number, self.arguments, self.instruction_pointer) == (number, args, instruction_pointer)
    }
}

/// Why a call has no result.
enum Failure {
    /// The guest is gone, or the origin.
    Ended,
    /// The guest is to stop: the call shall be made again.
    Again,
}

impl From<marshal::Gone> for Failure {
    fn from(_: marshal::Gone) -> Self {
        Self::Ended
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Member {
    /// A process that is stopped or has not run yet.
    pub fn new(pid: i32, process: &Process, outlived: bool) -> Result<Self, MemoryError> {
        let shared = process.memory.areas.iter().filter(|area| area.shared);
        let shown = shared.filter_map(|area| match &area.kind {
            AreaKind::File(file) => Some(file.clone()),
            _ => None,
        });
        Ok(Self {
            pid,
            origin_pid: process.pid,
            reads: process.signals.read_at_origin,
            memory: TargetMemory::open(pid)?,
            shown: shown.collect(),
            outlived,
            mapping: Mutex::new(None),
        })
    }
}

impl Door {
    /// For a guest of these processes and threads.
    pub fn new(
        listener: Listener,
        line: Arc<Line>,
        bell: Box<dyn Bell>,
        numbers_timers: bool,
        members: Vec<Member>,
        occupants: Vec<Occupant>,
    ) -> Arc<Self> {
        let process = |member: Member| {
            let state = ProcessState {
                member: Arc::new(member),
                announced: 0,
                placeholders: BTreeSet::new(),
            };
            (state.member.pid, state)
        };
        let thread = |occupant: Occupant| (occupant.tid, ThreadState::new(occupant));
        let state = State {
            processes: members.into_iter().map(process).collect(),
            threads: occupants.into_iter().map(thread).collect(),
            ..State::default()
        };
        Arc::new(Self {
            listener,
            line,
            bell,
            numbers_timers,
            state: Mutex::new(state),
            pool: Mutex::default(),
            free: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// A thread has ended.
    pub fn forget_thread(&self, thread: i32) {
        let mut state = self.lock();
        if let Some(thread) = state.threads.remove(&thread)
            && let Some(flight) = thread.in_flight
        {
            state.calls.remove(&flight.id);
            flight.waiter.unpark();
        }
    }

    /// A process has ended.
    pub fn forget_process(&self, pid: i32) {
        let mut state = self.lock();
        state.processes.remove(&pid);
    }

    /// A reply has arrived.
    pub fn reply(&self, reply: Reply) {
        let mut state = self.lock();
        let Some(thread) = state.calls.get(&reply.id).copied() else {
            return;
        };
        state.with(thread, |thread| {
            if let Some(flight) = thread.in_flight.as_mut().filter(|flight| flight.id == reply.id) {
                flight.reply = Some(reply);
                flight.waiter.unpark();
            }
        });
    }

    /// A signal for a process has arrived. To be called before any later reply is given to [`Door::reply`];
    /// [`Door::received`] follows.
    pub fn announce(&self, origin_pid: i32) {
        let mut state = self.lock();
        let process = state
            .processes
            .values_mut()
            .find(|process| process.member.origin_pid == origin_pid);
        if let Some(process) = process {
            process.announced += 1;
        }
    }

    /// A signal that was announced is in the process, or kept by the main thread.
    pub fn received(&self, pid: i32) {
        let mut state = self.lock();
        let Some(process) = state.processes.get_mut(&pid) else {
            return;
        };
        process.announced = process.announced.saturating_sub(1);
        if process.announced > 0 {
            return;
        }
        for thread in state
            .threads
            .values_mut()
            .filter(|thread| thread.occupant.pid == pid && !thread.deferred)
        {
            if let Some((id, result)) = thread.finished.take() {
                self.answer(id, result);
            }
        }
    }

    /// The mask of a thread's call under way, if it has one of its own.
    pub fn mask(&self, thread: i32) -> Option<u64> {
        let mut state = self.lock();
        state.with(thread, |thread| {
            thread.mask.filter(|_| !thread.stopping && thread.finished.is_none())
        })
    }

    /// Whether a signal is to be kept until a thread's call under way is over, because that keeps it out: [`Bell::due`] will
    /// say so.
    pub fn defer(&self, thread: i32, signal: i32) -> bool {
        let mut state = self.lock();
        state.with(thread, |thread| {
            let kept_out = |mask: u64| mask & !UNBLOCKABLE & 1 << (signal - 1) != 0;
            let defers = !thread.stopping && thread.finished.is_none() && thread.mask.is_some_and(kept_out);
            thread.deferred |= defers;
            defers
        })
    }

    /// The mask of the call that a stopped thread was turned away from, if it has one of its own: what it lets in is to be
    /// delivered under it.
    pub fn unmasked(&self, thread: i32) -> Option<u64> {
        self.lock().with(thread, |thread| thread.unmasked.take())
    }

    /// The guest's kernel has sent a process a signal. Gives those of its threads that wait here; of every other one
    /// [`Bell::heed`] tells as soon as it does.
    pub fn heed(&self, pid: i32) -> Vec<i32> {
        let mut state = self.lock();
        let threads = state.threads.values_mut();
        let waiting = threads
            .filter(|thread| thread.occupant.pid == pid)
            .filter_map(|thread| {
                let waits = thread.in_flight.is_some() || thread.held.is_some();
                thread.heed = !waits;
                waits.then_some(thread.occupant.tid)
            });
        waiting.collect()
    }

    /// A thread runs a handler: a wait that was turned away is over, and the next one is another.
    pub fn forget_wait(&self, thread: i32) {
        self.lock().with(thread, |thread| thread.wait = None);
    }

    /// The origin cannot be reached any more.
    pub fn lose(&self) {
        let mut state = self.lock();
        state.lost = true;
        let waiting = state.threads.values().filter_map(|thread| thread.in_flight.as_ref());
        waiting.for_each(|flight| flight.waiter.unpark());
    }

    /// From now on nothing keeps a thread from stopping. The interrupt must have been sent before.
    pub fn begin_stop(&self, thread: i32) {
        let mut state = self.lock();
        let Some(thread) = state.threads.get_mut(&thread) else {
            return;
        };
        thread.stopping = true;
        thread.deferred = false;
        if let Some(flight) = &thread.in_flight
            && flight.cancellable
            && flight.reply.is_none()
        {
            // A failure shows itself at the receiver too.
            let _ = self.line.sender.send(&Message::Cancel(Cancel { call: flight.id }));
        }
        if let Some(held) = thread.held.take() {
            let _ = self.listener.fail(held, ERESTARTSYS);
        }
        if let Some((id, result)) = thread.finished.take() {
            self.answer(id, result);
        }
    }

    /// A thread has stopped; its calls are taken again when it goes on.
    pub fn end_stop(&self, thread: i32) {
        self.lock().with(thread, |thread| thread.stopping = false);
    }

    /// The origin cannot take the guest back: it goes on without what needs home.
    pub fn strand(&self) {
        self.lock().stranded = true;
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until the guest has ended, by as many threads as it needs.
    pub fn serve(self: &Arc<Self>) -> io::Result<()> {
        let door = Arc::clone(self);
        thread::Builder::new()
            .name("door".into())
            .stack_size(STACK)
            .spawn(move || door.attend())?;
        Ok(())
    }

    /// The life of a thread at the door.
    fn attend(self: &Arc<Self>) {
        loop {
            let mut pool = self.pool();
            while pool.receiving >= RECEIVERS && !pool.over {
                pool.resting += 1;
                pool = self.free.wait(pool).unwrap_or_else(PoisonError::into_inner);
                pool.resting -= 1;
            }
            if pool.over {
                return;
            }
            pool.receiving += 1;
            drop(pool);
            let received = self.listener.recv(None);
            let mut pool = self.pool();
            pool.receiving -= 1;
            match received {
                Ok(notification) => {
                    if pool.receiving == 0 {
                        if pool.resting > 0 {
                            self.free.notify_one();
                        } else if let Err(error) = self.serve() {
                            tracing::error!("no further thread for the guest's calls: {error}");
                        }
                    }
                    drop(pool);
                    self.handle_or_turn_away(&notification);
                }
                Err(error) => {
                    if let RecvError::Io(error) = error {
                        tracing::error!("the guest's door has failed: {error}");
                    }
                    pool.over = true;
                    self.free.notify_all();
                    return;
                }
            }
        }
    }

    fn handle_or_turn_away(&self, notification: &Notification) {
        let caller = {
            let state = self.lock();
            state.threads.get(&notification.pid).and_then(|thread| {
                let process = state.processes.get(&thread.occupant.pid)?;
                Some(Caller {
                    member: Arc::clone(&process.member),
                    tid: thread.occupant.tid,
                    origin_tid: thread.occupant.origin_tid,
                })
            })
        };
        // One that has ended meanwhile waits for no answer.
        let Some(caller) = caller else { return };
        match self.handle(&caller, notification) {
            Ok(()) | Err(Failure::Ended) => {}
            Err(Failure::Again) => {
                let _ = self.listener.fail(notification.id, ERESTARTSYS);
            }
        }
    }

    fn handle(&self, caller: &Caller, notification: &Notification) -> Result<(), Failure> {
        let wait = {
            let mut state = self.lock();
            state.statistics.notifications += 1;
            state.with(caller.tid, |thread| {
                (thread.unmasked, thread.maps) = (None, false);
                thread.wait.take().filter(|wait| wait.is(notification))
            })
        };
        let (number, arguments) = (notification.number, notification.args);
        if let Ok(true) = usage::answer(&self.listener, notification) {
            return Ok(());
        }
        if let Some(reason) = self.needs_home(caller, notification) {
            self.hold(caller, notification.id, reason);
            return Ok(());
        }
        let own = match i64::from(number) {
            _ if self.is_read_at_origin(caller, notification) => NOBODY,
            // Of its own are all threads, by their numbers.
            libc::SYS_tkill if self.is_sibling(caller, arguments[0] as i32) => arguments[0] as i32,
            _ => caller.member.origin_pid,
        };
        let step = marshal::begin(own, number, arguments, &caller.member.memory)?;
        // What was read belongs to this call only if it still waits.
        if !self.listener.is_valid(notification.id) {
            return Err(Failure::Ended);
        }
        match step {
            Step::Local => {
                self.lock().statistics.local += 1;
                let _ = self.listener.resume(notification.id);
            }
            Step::Answer(result) => self.give(caller, notification.id, result),
            Step::Forward(pending)
                if pending
                    .temporary_mask()
                    .is_some_and(|mask| caller.member.reads & !mask != 0) =>
            {
                self.hold(caller, notification.id, SIGNALS);
            }
            Step::Forward(pending) => {
                let closes = i64::from(number) == libc::SYS_close;
                match self.wait(caller, notification, pending, wait)? {
                    // The guest's own copy goes too; the kernel's result is the same.
                    Some(0) if closes && self.drop_placeholder(caller, arguments[0] as i32) => {
                        let _ = self.listener.resume(notification.id);
                    }
                    Some(result) => self.give(caller, notification.id, result),
                    None => {
                        let _ = self.listener.resume(notification.id);
                    }
                }
            }
            Step::Home(reason) => self.hold(caller, notification.id, &reason),
            Step::Mmap(request) => self.map(caller, notification.id, &request)?,
            Step::Msync { address, length } => {
                if self.shows_file(caller, address, length) {
                    // Which file it is the deputy cannot be told by an address.
                    self.ask(caller, libc::SYS_sync, [Argument::Value(0); 6], Vec::new())?;
                }
                let _ = self.listener.resume(notification.id);
            }
            Step::OwnProc { path, flags } => {
                let result = self.own_proc(caller, &path, flags)?;
                self.give(caller, notification.id, result);
            }
        }
        Ok(())
    }

    /// Why a call that the guest's kernel could make is to be made at home.
    fn needs_home(&self, caller: &Caller, call: &Notification) -> Option<&'static str> {
        match i64::from(call.number) {
            libc::SYS_timer_create if !self.numbers_timers => {
                Some("it makes a timer, whose number its origin has to give (Linux before 6.15)")
            }
            libc::SYS_exit_group if caller.member.outlived && !self.lock().stranded => {
                Some("it ends, and what is in its System V shared memory stays at its origin")
            }
            // Its clock there goes on from before the move.
            libc::SYS_timer_settime if self.counts_cpu_time(caller, call.args[0] as i32) => {
                Some("it sets a timer of CPU time to what the clock will read")
            }
            _ if caller.member.reads != 0 && self.touches_signals(caller, call).unwrap_or(false) => Some(SIGNALS),
            _ => None,
        }
    }

    /// Whether a call has to do with signals that the process reads at its origin otherwise than by reading or sending them.
    /// `None`: the kernel will say what is wrong with it.
    fn touches_signals(&self, caller: &Caller, call: &Notification) -> Option<bool> {
        let [first, second, third, fourth, ..] = call.args;
        let word = |address: u64| {
            let mut bytes = [0; 8];
            let read = caller.member.memory.read(address, &mut bytes);
            read.is_ok_and(|length| length == 8).then(|| u64::from_le_bytes(bytes))
        };
        let reads = caller.member.reads;
        let lets_in = |mask: u64| reads & !mask != 0;
        let is_read = |signal: u64| (1..=64).contains(&signal) && reads & 1 << (signal - 1) != 0;
        Some(match i64::from(call.number) {
            libc::SYS_rt_sigprocmask if first as i32 == libc::SIG_SETMASK => lets_in(word(second)?),
            libc::SYS_rt_sigprocmask if first as i32 == libc::SIG_UNBLOCK => reads & word(second)? != 0,
            libc::SYS_rt_sigsuspend => lets_in(word(first)?),
            libc::SYS_rt_sigtimedwait => reads & word(first)? != 0,
            libc::SYS_rt_sigpending => true,
            libc::SYS_rt_sigreturn => {
                /// `uc_sigmask` in the frame of a signal, from the stack pointer (`struct rt_sigframe`).
                const MASK: u64 = 296;
                let thread = ProcDir::open(caller.member.pid).and_then(|directory| directory.thread(caller.tid));
                match thread.and_then(|thread| thread.syscall()).ok()? {
                    SyscallState::Inside { stack_pointer, .. } => lets_in(word(stack_pointer + MASK)?),
                    _ => true,
                }
            }
            // struct sigevent: the signal at 8, the kind at 12.
            libc::SYS_timer_create if second == 0 => is_read(libc::SIGALRM as u64),
            libc::SYS_timer_create => {
                let (signal, kind) = (word(second + 8)? & 0xffff_ffff, (word(second + 8)? >> 32) as i32);
                kind != libc::SIGEV_NONE && is_read(signal)
            }
            libc::SYS_setitimer if first as i32 == libc::ITIMER_VIRTUAL => is_read(libc::SIGVTALRM as u64),
            libc::SYS_setitimer if first as i32 == libc::ITIMER_PROF => is_read(libc::SIGPROF as u64),
            // One thread alone reads what was sent to it.
            libc::SYS_tkill => self.is_sibling(caller, first as i32) && is_read(second),
            libc::SYS_tgkill => first as i32 == caller.member.origin_pid && is_read(third),
            libc::SYS_rt_tgsigqueueinfo => first as i32 == caller.member.origin_pid && is_read(third) && fourth != 0,
            // What only a leader may say of itself, and no executor (rt_sigqueueinfo(2)).
            libc::SYS_rt_sigqueueinfo if self.is_read_at_origin(caller, call) => {
                let code = word(third + 8)? as i32;
                code >= 0 || code == libc::SI_TKILL
            }
            _ => false,
        })
    }

    fn is_sibling(&self, caller: &Caller, origin_tid: i32) -> bool {
        let state = self.lock();
        let mut threads = state.threads.values().map(|thread| thread.occupant);
        threads.any(|one| (one.pid, one.origin_tid) == (caller.member.pid, origin_tid))
    }

    /// Whether a call sends the calling process a signal that it reads at its origin.
    fn is_read_at_origin(&self, caller: &Caller, call: &Notification) -> bool {
        let [process, signal, ..] = call.args;
        matches!(i64::from(call.number), libc::SYS_kill | libc::SYS_rt_sigqueueinfo)
            && process as i32 == caller.member.origin_pid
            && (1..=64).contains(&signal)
            && caller.member.reads & 1 << (signal - 1) != 0
    }

    fn counts_cpu_time(&self, caller: &Caller, timer: i32) -> bool {
        let timers = ProcDir::open(caller.member.pid).and_then(|directory| directory.timers());
        let is = |one: &TimerInfo| one.id == timer && timers::counts_cpu_time(one.clock);
        timers.is_ok_and(|timers| timers.iter().any(is))
    }

    /// Whether the thread blocks a signal or its process ignores it.
    fn keeps_out(&self, caller: &Caller, signal: i32) -> bool {
        let status = ProcDir::open(caller.member.pid)
            .and_then(|directory| directory.thread(caller.tid))
            .and_then(|directory| directory.status());
        status.is_ok_and(|status| (status.blocked | status.ignored) & 1 << (signal - 1) != 0)
    }

    fn drop_placeholder(&self, caller: &Caller, number: i32) -> bool {
        let mut state = self.lock();
        let process = state.processes.get_mut(&caller.member.pid);
        process.is_some_and(|process| process.placeholders.remove(&number))
    }

    fn stopping(&self, caller: &Caller) -> bool {
        self.lock().with(caller.tid, |thread| thread.stopping)
    }

    /// Forwards a call with what a wait needs beside: its own mask, and the time that has passed of it already.
    fn wait(
        &self,
        caller: &Caller,
        call: &Notification,
        mut pending: Pending,
        earlier: Option<Wait>,
    ) -> Result<Option<i64>, Failure> {
        let number = i64::from(call.number);
        let deadline = match earlier {
            Some(earlier) => {
                pending.set_timeout(earlier.deadline.saturating_duration_since(Instant::now()));
                Some(earlier.deadline)
            }
            // Of the others the kernel writes into the guest's memory what is left.
            None => pending
                .fixed_timeout()
                .and_then(|timeout| Instant::now().checked_add(timeout)),
        };
        let mask = pending.temporary_mask();
        let urgent = mask.is_some_and(|mask| self.signals(caller) & (!mask | UNBLOCKABLE) != 0);
        if urgent {
            // What is ready counts more than signals, as in the kernel.
            pending.set_timeout(Duration::ZERO);
        }
        self.lock()
            .with(caller.tid, |thread| thread.mask = mask.filter(|_| !urgent));
        let result = self.forward(caller, pending);
        let mut state = self.lock();
        let Some(thread) = state.threads.get_mut(&caller.tid) else {
            return Err(Failure::Ended);
        };
        thread.mask = None;
        let (nohand, eintr) = (-i64::from(ERESTARTNOHAND), -i64::from(libc::EINTR));
        let result = match result? {
            Some(0) if urgent => Some(nohand),
            Some(error) if error == -i64::from(ERESTART_RESTARTBLOCK) => Some(nohand),
            Some(error) if error == -i64::from(ERESTARTSYS) && WAITS.contains(&number) => Some(nohand),
            Some(error) if error == eintr && thread.stopping && IDLE.contains(&number) => Some(nohand),
            other => other,
        };
        if result.is_some_and(|result| (-516..=-512).contains(&result)) {
            thread.unmasked = mask;
            thread.wait = deadline.map(|deadline| Wait {
                number: call.number,
                arguments: call.args,
                instruction_pointer: call.instruction_pointer,
                deadline,
            });
            thread.deferred |= urgent;
        }
        Ok(result)
    }

    /// The signals that wait in the guest for this thread.
    fn signals(&self, caller: &Caller) -> u64 {
        let status = ProcDir::open(caller.member.pid)
            .and_then(|directory| directory.thread(caller.tid))
            .and_then(|directory| directory.status());
        status.map_or(0, |status| status.pending | status.shared_pending)
    }

    /// The call is over, as soon as the signals before its end are in the process.
    fn give(&self, caller: &Caller, id: u64, result: i64) {
        let mut state = self.lock();
        let announced = state.announced(caller.member.pid);
        let Some(thread) = state.threads.get_mut(&caller.tid) else {
            return;
        };
        if !thread.stopping && (announced > 0 || thread.deferred) {
            thread.finished = Some((id, result));
            if thread.deferred {
                self.bell.due(caller.tid);
            }
        } else {
            self.answer(id, result);
        }
    }

    fn answer(&self, id: u64, result: i64) {
        // A caller that is gone needs no answer.
        let _ = match result {
            -4095..=-1 => self.listener.fail(id, -result as i32),
            value => self.listener.answer(id, value),
        };
    }

    fn hold(&self, caller: &Caller, id: u64, reason: &str) {
        let mut state = self.lock();
        let stranded = state.stranded;
        let Some(thread) = state.threads.get_mut(&caller.tid) else {
            return;
        };
        if stranded || thread.stopping {
            let errno = if stranded { libc::EAGAIN } else { ERESTARTSYS };
            drop(state);
            let _ = self.listener.fail(id, errno);
        } else {
            thread.held = Some(id);
            let heed = std::mem::take(&mut thread.heed);
            drop(state);
            if heed {
                self.bell.heed(caller.tid);
            }
            self.bell.needs_home(reason.to_string());
        }
    }

    /// Gives the result, or nothing if the guest's own kernel is to make the call too.
    fn forward(&self, caller: &Caller, mut pending: Pending) -> Result<Option<i64>, Failure> {
        loop {
            let reply = self.exchange(caller, pending.call().clone(), true)?;
            match pending.finish(reply, &caller.member.memory)? {
                Outcome::Done(result) => return Ok(Some(result)),
                Outcome::Local => return Ok(None),
                Outcome::Again(next) => pending = next,
            }
        }
    }

    /// One round trip. On the channel the call has an id of ours; the reply has its own again. When the thread is to stop, a
    /// call that is cancellable is answered with a restart code: what came before it is not lost.
    fn exchange(&self, caller: &Caller, mut call: Call, cancellable: bool) -> Result<Reply, Failure> {
        let own_id = call.id;
        let started = Instant::now();
        let (id, heed) = {
            let mut guard = self.lock();
            let state = &mut *guard;
            let Some(thread) = state.threads.get_mut(&caller.tid).filter(|_| !state.lost) else {
                return Err(Failure::Ended);
            };
            if thread.stopping && cancellable {
                return Ok(Reply {
                    id: own_id,
                    result: -i64::from(ERESTARTSYS),
                    outputs: Vec::new(),
                });
            }
            state.next_id += 1;
            let id = state.next_id;
            thread.in_flight = Some(InFlight {
                id,
                reply: None,
                cancellable,
                waiter: thread::current(),
            });
            let heed = std::mem::take(&mut thread.heed);
            state.calls.insert(id, caller.tid);
            (id, heed)
        };
        if heed {
            self.bell.heed(caller.tid);
        }
        (call.id, call.process, call.thread) = (id, caller.member.origin_pid, caller.origin_tid);
        call.unstoppable = call.changes_terminal() && self.keeps_out(caller, libc::SIGTTOU);
        if let Err(error) = self.line.send(&Message::Call(call)) {
            tracing::warn!("cannot send a call: {error}");
            self.lose();
        }
        loop {
            let mut guard = self.lock();
            let state = &mut *guard;
            let Some(thread) = state.threads.get_mut(&caller.tid) else {
                return Err(Failure::Ended);
            };
            let reply = thread.in_flight.as_mut().and_then(|flight| flight.reply.take());
            if reply.is_some() || state.lost {
                thread.in_flight = None;
                state.calls.remove(&id);
            }
            if let Some(mut reply) = reply {
                reply.id = own_id;
                state.statistics.round_trips += 1;
                state.statistics.waiting_us += started.elapsed().as_micros() as u64;
                return Ok(reply);
            }
            if state.lost {
                return Err(Failure::Ended);
            }
            drop(guard);
            thread::park();
        }
    }

    /// A call of our own at the origin, one that does not wait. It has changed nothing if the thread is to stop first.
    fn ask(
        &self,
        caller: &Caller,
        number: i64,
        arguments: [Argument; 6],
        segments: Vec<Segment>,
    ) -> Result<Reply, Failure> {
        let reply = self.ask_to_the_end(caller, number, arguments, segments, true)?;
        match reply.result == -i64::from(ERESTARTSYS) {
            true => Err(Failure::Again),
            false => Ok(reply),
        }
    }

    /// The same, and unless it is `cancellable` nothing keeps it from being made.
    fn ask_to_the_end(
        &self,
        caller: &Caller,
        number: i64,
        arguments: [Argument; 6],
        segments: Vec<Segment>,
        cancellable: bool,
    ) -> Result<Reply, Failure> {
        let call = Call {
            id: 0,
            process: caller.member.origin_pid,
            thread: caller.origin_tid,
            number: number as u32,
            arguments,
            segments,
            pointers: Vec::new(),
            unstoppable: false,
        };
        self.exchange(caller, call, cancellable)
    }

    /// `mmap` of a descriptor: the part of the file that it shows is fetched into a memfd, which takes the descriptor's
    /// place in the guest for the kernel's own mmap.
    fn map(&self, caller: &Caller, id: u64, request: &MmapRequest) -> Result<(), Failure> {
        let shared = request.flags & libc::MAP_TYPE != libc::MAP_PRIVATE;
        let source = match self.regular_file(caller, request.descriptor)? {
            Ok(Some(source)) => source,
            Ok(None) => {
                self.hold(caller, id, "it maps something that is no regular file");
                return Ok(());
            }
            Err(errno) => {
                self.give(caller, id, errno);
                return Ok(());
            }
        };
        let number = request.descriptor;
        let end = request
            .offset
            .saturating_add(request.length)
            .checked_next_multiple_of(PAGE);
        let object = end
            .filter(|_| shared)
            .and_then(|end| Some((self.in_step(caller, source, request.offset, end)?, end)));
        // What it may write to the file itself, it has to see in the mapping too.
        let writable = shared && self.is_writable(caller, number)?;
        let stand_in = object.and_then(|(object, end)| self.line.file(object, end));
        if writable && stand_in.is_none() {
            self.hold(caller, id, "it maps a file shared that it may write");
            return Ok(());
        }
        let mut last = caller.member.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = stand_in {
            *last = None;
            let shown = match writable {
                true => Ok(file),
                false => read_only(&file),
            };
            match shown.map(|file| self.listener.add_fd(id, file.as_fd(), Some(number), true, false)) {
                Ok(Ok(_)) => {
                    self.expect_mapping(caller, number);
                    let _ = self.listener.resume(id);
                }
                _ => self.give(caller, id, -i64::from(libc::ENOMEM)),
            }
            return Ok(());
        }
        let pending = last
            .take()
            .filter(|last| self.may_be_unmade(caller, last, number, source));
        let file = match pending {
            Some(last) => last.file.set_len(source.size).map(|()| last.file),
            None => new_memfd(source.size),
        };
        let result = match file {
            Ok(file) => match self.fetch(caller, request, source.size, &file)? {
                0 => {
                    // Read-only, so that the mapping can become writable here no more than at home.
                    let shown = match shared {
                        true => read_only(&file).ok(),
                        false => None,
                    };
                    let shown = shown.as_ref().unwrap_or(&file);
                    match self.listener.add_fd(id, shown.as_fd(), Some(number), true, false) {
                        Ok(_) => {
                            self.expect_mapping(caller, number);
                            *last = Some(Mapping {
                                tid: caller.tid,
                                descriptor: number,
                                source,
                                file,
                            });
                            let _ = self.listener.resume(id);
                            return Ok(());
                        }
                        Err(_) => -i64::from(libc::ENOMEM),
                    }
                }
                errno => errno,
            },
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::ENOMEM)),
        };
        drop(last);
        self.give(caller, id, result);
        Ok(())
    }

    /// A thread is let through to map a file that is at a descriptor in the guest for that.
    fn expect_mapping(&self, caller: &Caller, descriptor: i32) {
        let mut state = self.lock();
        if let Some(process) = state.processes.get_mut(&caller.member.pid) {
            process.placeholders.insert(descriptor);
        }
        state.with(caller.tid, |thread| thread.maps = true);
    }

    /// The object that is kept in step with a file, if all of it from `start` to `end` can be mapped again at home. With the
    /// answer to the next call comes what of that is not here.
    fn in_step(&self, caller: &Caller, source: Source, start: u64, end: u64) -> Option<u32> {
        let of = |file: &&FileMapping| (file.device, file.inode) == (source.device, source.inode);
        let first = caller.member.shown.iter().filter(of).min_by_key(|file| file.offset)?;
        if start < first.offset || end > source.size.next_multiple_of(PAGE) {
            return None;
        }
        self.line.want(first.object, end);
        Some(first.object)
    }

    /// Whether memory in a range of the guest is kept in step with a file.
    fn shows_file(&self, caller: &Caller, address: u64, length: u64) -> bool {
        let end = address.saturating_add(length);
        let maps = || ProcDir::open(caller.member.pid).and_then(|directory| directory.maps());
        let shows = |maps: Vec<MapsEntry>| {
            let mut inside = maps.iter().filter(|entry| entry.start < end && address < entry.end);
            inside.any(|entry| self.line.shows(entry.device, entry.inode))
        };
        self.line.has_objects() && maps().is_ok_and(shows)
    }

    /// Whether another thread's mapping of the same file through the same descriptor may still have to be made.
    fn may_be_unmade(&self, caller: &Caller, last: &Mapping, descriptor: i32, source: Source) -> bool {
        let same = |one: Source| (one.device, one.inode);
        last.tid != caller.tid
            && last.descriptor == descriptor
            && same(last.source) == same(source)
            && self.lock().with(last.tid, |thread| thread.maps)
    }

    /// Whether a descriptor can be read and written: then a shared mapping of it may be written, now or later.
    fn is_writable(&self, caller: &Caller, descriptor: i32) -> Result<bool, Failure> {
        let [zero, descriptor, get] = [0, descriptor as u64, libc::F_GETFL as u64].map(Argument::Value);
        let flags = self
            .ask(
                caller,
                libc::SYS_fcntl,
                [descriptor, get, zero, zero, zero, zero],
                Vec::new(),
            )?
            .result;
        Ok(flags >= 0 && flags as i32 & libc::O_ACCMODE == libc::O_RDWR)
    }

    /// The regular file behind a descriptor, `None` for other kinds; or the negative errno of fstat.
    fn regular_file(&self, caller: &Caller, descriptor: i32) -> Result<Result<Option<Source>, i64>, Failure> {
        const STAT: u32 = size_of::<libc::stat>() as u32;
        let value = Argument::Value;
        let arguments = [
            value(descriptor as u64),
            Argument::Segment(0),
            value(0),
            value(0),
            value(0),
            value(0),
        ];
        let reply = self.ask(
            caller,
            libc::SYS_fstat,
            arguments,
            vec![Segment::Out {
                len: STAT,
                keep: Keep::All,
            }],
        )?;
        if reply.result != 0 {
            return Ok(Err(reply.result));
        }
        let bytes = reply
            .outputs
            .first()
            .map(|output| output.bytes.as_slice())
            .unwrap_or_default();
        let field = |at: usize, length: usize| bytes.get(at..at + length);
        let mode = field(std::mem::offset_of!(libc::stat, st_mode), 4).and_then(|bytes| bytes.try_into().ok());
        let number = |at| {
            field(at, 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes)
        };
        let size = number(std::mem::offset_of!(libc::stat, st_size));
        let device = number(std::mem::offset_of!(libc::stat, st_dev));
        let inode = number(std::mem::offset_of!(libc::stat, st_ino));
        let (Some(mode), Some(size), Some(device), Some(inode)) = (mode.map(u32::from_le_bytes), size, device, inode)
        else {
            return Ok(Err(-i64::from(libc::EIO)));
        };
        let source = Source { size, device, inode };
        Ok(Ok((mode & libc::S_IFMT == libc::S_IFREG).then_some(source)))
    }

    /// Reads the mapped part of the file; 0 or a negative errno as mmap would give it.
    fn fetch(&self, caller: &Caller, request: &MmapRequest, size: u64, file: &File) -> Result<i64, Failure> {
        let mut at = request.offset;
        let end = request.offset.saturating_add(request.length).min(size);
        while at < end {
            if self.stopping(caller) {
                return Err(Failure::Again);
            }
            let length = FETCH.min(end - at) as u32;
            let value = Argument::Value;
            let arguments = [
                value(request.descriptor as u64),
                Argument::Segment(0),
                value(length.into()),
                value(at),
                value(0),
                value(0),
            ];
            let reply = self.ask(
                caller,
                libc::SYS_pread64,
                arguments,
                vec![Segment::Out {
                    len: length,
                    keep: Keep::Returned,
                }],
            )?;
            match reply.result {
                // A file that is open for writing only cannot be mapped.
                error if error == -i64::from(libc::EBADF) => return Ok(-i64::from(libc::EACCES)),
                error if error < 0 => return Ok(error),
                0 => break,
                _ => {}
            }
            let bytes = reply
                .outputs
                .first()
                .map(|output| output.bytes.as_slice())
                .unwrap_or_default();
            if bytes.is_empty() || file.write_all_at(bytes, at).is_err() {
                return Ok(-i64::from(libc::ENOMEM));
            }
            at += bytes.len() as u64;
        }
        Ok(0)
    }

    /// A file of the guest's own `/proc` directory: its contents as they are now, in a memory file at the origin.
    fn own_proc(&self, caller: &Caller, path: &str, flags: u64) -> Result<i64, Failure> {
        let contents = match self.own_proc_contents(caller, path)? {
            Ok(contents) => contents,
            Err(errno) => return Ok(errno),
        };
        let value = Argument::Value;
        let cloexec = if flags & libc::O_CLOEXEC as u64 != 0 {
            u64::from(libc::MFD_CLOEXEC)
        } else {
            0
        };
        let name = Segment::In(b"proc\0".to_vec());
        let arguments = [
            Argument::Segment(0),
            value(cloexec),
            value(0),
            value(0),
            value(0),
            value(0),
        ];
        let descriptor = self.ask(caller, libc::SYS_memfd_create, arguments, vec![name])?.result;
        if descriptor < 0 {
            return Ok(descriptor);
        }
        let mut at = 0;
        for chunk in contents.chunks(FETCH as usize) {
            let arguments = [
                value(descriptor as u64),
                Argument::Segment(0),
                value(chunk.len() as u64),
                value(at),
                value(0),
                value(0),
            ];
            let segments = vec![Segment::In(chunk.to_vec())];
            self.ask_to_the_end(caller, libc::SYS_pwrite64, arguments, segments, false)?;
            at += chunk.len() as u64;
        }
        Ok(descriptor)
    }

    fn own_proc_contents(&self, caller: &Caller, name: &str) -> Result<Result<Vec<u8>, i64>, Failure> {
        let here = self.with_own_numbers(caller, name);
        let read = ProcDir::open(caller.member.pid).and_then(|directory| directory.read(&here));
        let Ok(contents) = read else {
            return Ok(Err(-i64::from(libc::ENOENT)));
        };
        let merge = match name.rsplit('/').next() {
            Some("status") => merged_status,
            Some("stat") => merged_stat,
            _ => return Ok(Ok(contents)),
        };
        Ok(self
            .read_at_origin(caller, &format!("/proc/self/{name}"))?
            .map(|at_origin| merge(&contents, &at_origin)))
    }

    /// A path below `/proc/PID` with a thread's number as this host has it.
    fn with_own_numbers(&self, caller: &Caller, name: &str) -> String {
        let Some((thread, file)) = name.strip_prefix("task/").and_then(|rest| rest.split_once('/')) else {
            return name.to_owned();
        };
        let state = self.lock();
        let of_caller =
            |occupant: &Occupant| occupant.pid == caller.member.pid && Ok(occupant.origin_tid) == thread.parse();
        let occupant = state.threads.values().map(|thread| thread.occupant).find(of_caller);
        occupant.map_or_else(|| name.to_owned(), |occupant| format!("task/{}/{file}", occupant.tid))
    }

    /// A small file of the origin, or the negative errno that stands in the way.
    fn read_at_origin(&self, caller: &Caller, path: &str) -> Result<Result<Vec<u8>, i64>, Failure> {
        const ROOM: u32 = 16 << 10;
        let [zero, room] = [0, u64::from(ROOM)].map(Argument::Value);
        let (none, first) = (Argument::Value(libc::AT_FDCWD as u64), Argument::Segment(0));
        let flags = Argument::Value((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
        let path = Segment::In([path.as_bytes(), b"\0"].concat());
        let descriptor = self
            .ask(
                caller,
                libc::SYS_openat,
                [none, first, flags, zero, zero, zero],
                vec![path],
            )?
            .result;
        if descriptor < 0 {
            return Ok(Err(descriptor));
        }
        let descriptor = Argument::Value(descriptor as u64);
        let out = Segment::Out {
            len: ROOM,
            keep: Keep::Returned,
        };
        let arguments = [descriptor, first, room, zero, zero, zero];
        let reply = self.ask_to_the_end(caller, libc::SYS_pread64, arguments, vec![out], false)?;
        let arguments = [descriptor, zero, zero, zero, zero, zero];
        self.ask_to_the_end(caller, libc::SYS_close, arguments, Vec::new(), false)?;
        let bytes = reply.outputs.into_iter().next().map(|output| output.bytes);
        Ok(match reply.result {
            error if error < 0 => Err(error),
            _ => Ok(bytes.unwrap_or_default()),
        })
    }
}

/// `/proc/PID/status` of the guest, with what is the deputy's: who it is, what it may, what it holds.
fn merged_status(guest: &[u8], deputy: &[u8]) -> Vec<u8> {
    const OF_DEPUTY: [&str; 21] = [
        "Umask",
        "Tgid",
        "Ngid",
        "Pid",
        "PPid",
        "Uid",
        "Gid",
        "FDSize",
        "Groups",
        "NStgid",
        "NSpid",
        "NSpgid",
        "NSsid",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ];
    let [guest, deputy] = [guest, deputy].map(String::from_utf8_lossy);
    let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in guest.lines() {
        let key_of_line = key(line);
        let there = || deputy.lines().find(|other| key(other) == key_of_line);
        text.push_str(match key_of_line.as_str() {
            "TracerPid" => "TracerPid:\t0",
            // It waits only for us.
            "State" => "State:\tR (running)",
            name if OF_DEPUTY.contains(&name) => there().unwrap_or(line),
            _ => line,
        });
        text.push('\n');
    }
    text.into_bytes()
}

/// `/proc/PID/stat` of the guest, with the deputy's PID and relations: the first number and, after the name (which may have
/// anything in it) and the state, the parent, group, session, terminal and its foreground group.
fn merged_stat(guest: &[u8], deputy: &[u8]) -> Vec<u8> {
    fn halves(line: &str) -> Option<(&str, Vec<&str>)> {
        let (head, tail) = line.trim_end().rsplit_once(')')?;
        Some((head, tail.split_whitespace().collect()))
    }
    let [guest, deputy] = [guest, deputy].map(String::from_utf8_lossy);
    let (Some((name, mut fields)), Some((of_deputy, relations))) = (halves(&guest), halves(&deputy)) else {
        return guest.into_owned().into_bytes();
    };
    for (field, relation) in fields.iter_mut().zip(&relations).take(6).skip(1) {
        field.clone_from(relation);
    }
    if let Some(state) = fields.first_mut() {
        *state = "R";
    }
    let (pid, name) = (
        of_deputy.split('(').next().unwrap_or_default(),
        name.split_once('(').map_or("", |(_, name)| name),
    );
    format!("{pid}({name}) {}\n", fields.join(" ")).into_bytes()
}

/// The guest's memory as the kernel would use it for the guest's own call: a page that the guest may not read or write
/// ends it.
impl marshal::Memory for TargetMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, marshal::Gone> {
        TargetMemory::read(self, address, buffer).map_err(|_| marshal::Gone)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<usize, marshal::Gone> {
        TargetMemory::write(self, address, bytes).map_err(|_| marshal::Gone)
    }
}

/// Another description of the same memory file.
fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn new_memfd(size: u64) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("vrun", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_has_the_deputys_relations() {
        let guest = b"77 (a) S (b)) S 1 2 3 0 -1 4194560 69\n";
        let deputy = b"9 (vrun) S 8 9 7 34816 9 1 2\n";
        assert_eq!(merged_stat(guest, deputy), b"9 (a) S (b)) R 8 9 7 34816 9 4194560 69\n");
        assert_eq!(merged_stat(b"odd", deputy), b"odd");
    }

    #[test]
    fn a_status_has_the_deputys_identity() {
        let guest = b"Name:\tx\nState:\tS (sleeping)\nPid:\t5\nTracerPid:\t4\nSigBlk:\t1\n";
        let deputy = b"Name:\ty\nState:\tS (sleeping)\nPid:\t9\nTracerPid:\t0\nSigBlk:\t2\n";
        let expected = "Name:\tx\nState:\tR (running)\nPid:\t9\nTracerPid:\t0\nSigBlk:\t1\n";
        assert_eq!(merged_status(guest, deputy), expected.as_bytes());
    }
}
