//! The deputy: what stays of a process at its origin after its body moved.
//!
//! ```text
//!   Frozen ──settle──► memory emptied, executor cloned, first thread in its signal loop, detached
//!
//!   channel ── Call ──► submit ──► answer VRUN_NEXT ──► the executor makes the call ──► VRUN_NEXT(result) ──► Reply
//!   channel ── Cancel ► interrupt: the call returns with the kernel's restart code
//!   VRUN_SIGNAL(info) ► Signal
//!
//!   come home: retire (the executor leaves, the first thread stops) ──► an Injection for the restorer
//! ```
//!
//! The executor is traced by a thread of its own, the *usher*, and only while it is to be interrupted or to leave: an
//! executor that waits for work stops only with its next order, so whoever waits for that stop must hold up nobody.
//!
//! Every door call is answered by the thread that holds what it waits for; there is no lock order beyond the one
//! mutex. Invariants: at most one call is with the executor; `parked` is the notification of an executor that waits for
//! work, and then no call is current.

use crate::memory::{MemoryError, TargetMemory};
use crate::notify::{Listener, Notification};
use crate::proc::{ProcDir, ProcError};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use vrun_remote_io::call::{Call, Reply};
use vrun_remote_io::executor::{self, Plan};
use vrun_remote_io::message::ExitStatus;
use vrun_shim::deputy::DeputyCode;
use vrun_shim::{Expect, Injection, Script, Status, TraceError, Tracee, area};

/// Room for one call's buffers: the largest call and the alignment of its segments.
const SCRATCH: u64 = (vrun_remote_io::call::MAX_BYTES as u64 + 128 * 1024).next_multiple_of(area::PAGE);
/// Where the scratch memory is: an emptied process has nothing there.
const SCRATCH_START: u64 = 0x1000_0000_0000;
/// The same as a range: whatever of ours outlives a program's memory must lie elsewhere.
pub(crate) const SCRATCH_AREA: Range<u64> = SCRATCH_START..SCRATCH_START + SCRATCH;
/// The kernel's code for "restart this call, whatever the signal's handler says of it" (`include/linux/errno.h`).
const ERESTARTSYS: i64 = -512;
/// The same, but `EINTR` if a handler runs.
const ERESTARTNOHAND: i64 = -514;
const EINTR: i64 = -(libc::EINTR as i64);

/// The signals that a call sends to the thread that makes it.
const RAISED: u64 = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
/// Where the executor puts one of them, in the scratch memory.
const FETCHED: u64 = 64;

#[derive(Debug, thiserror::Error)]
pub enum DeputyError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Filter(#[from] crate::filter::FilterError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot end process {pid}: {source}")]
    Kill { pid: i32, source: io::Error },
}

type Result<T> = std::result::Result<T, DeputyError>;

/// Takes what the executor brings back, and the signals.
pub trait Correspondent: Send + Sync {
    /// The answer to a call.
    fn reply(&self, reply: Reply);
    /// Somebody sent the process a signal.
    fn signal(&self, info: [u8; 128]);
}

/// A deputy at work. Shared by the thread at the notification door, the channel's receiver and the main thread.
pub struct Deputy {
    pid: i32,
    executor: i32,
    code: DeputyCode,
    memory: TargetMemory,
    listener: Arc<Listener>,
    correspondent: Arc<dyn Correspondent>,
    /// The executor's filter, as the kernel reads it.
    confinement: Vec<u8>,
    usher: mpsc::Sender<Errand>,
    state: Mutex<State>,
}

/// What the usher is to do.
enum Errand {
    /// Make the executor's call return, if it is still the one to be cancelled.
    Interrupt,
    /// Wait for the end of the executor, and say so.
    SeeOut(mpsc::Sender<()>),
}

/// The deputy that the thread at the door serves at the moment. Between a deputy's first call and its registration here
/// its calls wait.
#[derive(Debug, Default)]
pub struct Desk {
    seat: Mutex<(Option<Arc<Deputy>>, Vec<Notification>)>,
}

impl Desk {
    /// Takes a notification if it comes from a deputy's code. To be called by the thread at the door.
    pub fn door(&self, notification: &Notification) -> bool {
        let code = area::DEPUTY..area::DEPUTY + area::PAGE;
        if !code.contains(&notification.instruction_pointer) {
            return false;
        }
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        match seat.0.clone() {
            Some(deputy) => {
                drop(seat);
                deputy.door(notification);
            }
            None => seat.1.push(*notification),
        }
        true
    }

    /// The one that is served.
    pub fn deputy(&self) -> Option<Arc<Deputy>> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// From now on this one is served; or nobody.
    pub fn seat(&self, deputy: Option<Arc<Deputy>>) {
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut seat.1);
        seat.0.clone_from(&deputy);
        if let Some(deputy) = deputy {
            waiting.iter().for_each(|notification| deputy.door(notification));
        }
    }
}

impl std::fmt::Debug for Deputy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deputy")
            .field("pid", &self.pid)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// The executor's waiting notification.
    parked: Option<u64>,
    current: Option<Current>,
    queue: VecDeque<Call>,
    /// The call that is to be interrupted.
    cancelled: Option<u64>,
    /// No new work: the executor is told to leave.
    retiring: bool,
}

enum Current {
    /// The executor confines itself before its first call.
    Confining,
    Call {
        id: u64,
        plan: Plan,
    },
    /// The executor fetches a signal that its last call raised in it; the answer to that call waits.
    Fetching(Reply),
}

impl Deputy {
    /// Empties a stopped process and puts it to work. `descriptors` stay; `arguments` is the range of its command line
    /// and environment, which `ps` goes on showing.
    pub fn settle(
        injection: Injection,
        arguments: Range<u64>,
        listener: Arc<Listener>,
        correspondent: Arc<dyn Correspondent>,
    ) -> Result<Arc<Self>> {
        let tracee = injection.tracee();
        let pid = tracee.tid();
        let code = vrun_shim::deputy::assemble();
        let confinement = crate::filter::confine_executor()?;
        let script = settle_script(&injection, pid, &arguments)?;
        injection.write(area::DEPUTY, &code.bytes)?;
        injection.write(area::SIGNAL_MASK, &u64::MAX.to_le_bytes())?;
        injection.write(area::EXECUTOR_STACK_TOP - 8, &code.executor.to_le_bytes())?;
        let before = ProcDir::open(pid)?.threads()?;
        injection.run(&script)?;
        let after = ProcDir::open(pid)?.threads()?;
        let executor = after
            .into_iter()
            .find(|tid| !before.contains(tid))
            .ok_or(TraceError::Gone(pid))?;
        let memory = TargetMemory::open(pid)?;

        let mut registers = tracee.registers()?;
        registers.rip = code.signals;
        registers.orig_rax = u64::MAX;
        tracee.set_registers(&registers)?;
        injection.keep().detach(0)?;
        let state = Mutex::new(State::default());
        let (usher, errands) = mpsc::channel();
        let deputy = Arc::new(Self {
            pid,
            executor,
            code,
            memory,
            listener,
            correspondent,
            confinement,
            usher,
            state,
        });
        let (served, traced) = (Arc::downgrade(&deputy), executor);
        thread::Builder::new()
            .name("usher".into())
            .spawn(move || {
                for errand in errands {
                    if let Err(error) = run_errand(traced, errand, &served) {
                        tracing::debug!("executor {traced}: {error}");
                    }
                }
            })
            .map_err(DeputyError::Thread)?;
        Ok(deputy)
    }

    /// Host PID.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call from the guest. Bad ones are answered with `EINVAL` here; they never reach the process.
    pub fn submit(&self, call: Call) {
        let mut state = self.lock();
        state.queue.push_back(call);
        self.dispatch(&mut state);
    }

    /// The guest wants this call back: it is answered with the kernel's restart code, or with its result if it was faster.
    pub fn cancel(&self, id: u64) {
        let mut state = self.lock();
        if let Some(index) = state.queue.iter().position(|call| call.id == id) {
            state.queue.remove(index);
            drop(state);
            self.correspondent.reply(Reply {
                id,
                result: ERESTARTSYS,
                outputs: Vec::new(),
            });
        } else if matches!(&state.current, Some(Current::Call { id: current, .. }) if *current == id) {
            state.cancelled = Some(id);
            // The usher ends with this deputy, not before.
            let _ = self.usher.send(Errand::Interrupt);
        }
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
        let mut bytes = [0; 128];
        // An interrupted wait (stop and continue) brings no signal.
        if result as i64 > 0
            && self
                .memory
                .read(info, &mut bytes)
                .is_ok_and(|length| length == bytes.len())
        {
            self.correspondent.signal(bytes);
        }
        // The process may have been killed meanwhile: then there is nobody to answer.
        let _ = self.listener.answer(notification.id, 0);
    }

    fn next(&self, notification: &Notification) {
        let mut state = self.lock();
        state.parked = Some(notification.id);
        let result = notification.args[0] as i64;
        match state.current.take() {
            None => state.current = self.confine(notification.id),
            Some(Current::Confining) => {
                if result != 0 {
                    tracing::error!(
                        "the executor could not be confined: {}",
                        io::Error::from_raw_os_error(-result as i32)
                    );
                    let _ = crate::sys::kill(self.pid, libc::SIGKILL);
                }
            }
            Some(Current::Call { id, plan }) => {
                if state.cancelled == Some(id) {
                    state.cancelled = None;
                }
                let reply = plan.reply(result, |offset, buffer| {
                    self.memory.read_all(SCRATCH_START + offset as u64, buffer)
                });
                match reply {
                    Ok(reply) => state.current = self.answer(notification.id, reply),
                    Err(error) => tracing::error!("a result of process {} is lost: {error}", self.pid),
                }
            }
            Some(Current::Fetching(reply)) => {
                let mut bytes = [0; 128];
                if result > 0 && self.memory.read_all(SCRATCH_START + FETCHED, &mut bytes).is_ok() {
                    self.correspondent.signal(bytes);
                }
                self.correspondent.reply(reply);
            }
        }
        if state.current.is_some() {
            state.parked = None;
        }
        self.dispatch(&mut state);
    }

    /// The first request: the executor takes a filter of its own, below the job's, for life.
    fn confine(&self, parked: u64) -> Option<Current> {
        let filter = &self.confinement;
        let filter_address = SCRATCH_START + 64;
        // struct sock_fprog: u16 length, padding, pointer.
        let mut image = vec![0_u8; 64];
        image[..2].copy_from_slice(&((filter.len() / 8) as u16).to_le_bytes());
        image[8..16].copy_from_slice(&filter_address.to_le_bytes());
        image.extend_from_slice(filter);
        let arguments = [libc::SECCOMP_SET_MODE_FILTER.into(), 0, SCRATCH_START, 0, 0, 0];
        self.order(parked, libc::SYS_seccomp as u64, arguments, &image)
            .then_some(Current::Confining)
    }

    /// Answers a call, after the signal that the kernel has sent to its very thread for it, if it has.
    fn answer(&self, parked: u64, reply: Reply) -> Option<Current> {
        let errors = [libc::EPIPE, libc::EFBIG].map(|errno| -i64::from(errno));
        if errors.contains(&reply.result) && self.has_raised() {
            // The mask, a timeout of nothing, and room for the signal.
            let mut image = RAISED.to_le_bytes().to_vec();
            image.resize(FETCHED as usize, 0);
            let at = |offset| SCRATCH_START + offset;
            let arguments = [at(0), at(FETCHED), at(8), 8, 0, 0];
            if self.order(parked, libc::SYS_rt_sigtimedwait as u64, arguments, &image) {
                return Some(Current::Fetching(reply));
            }
        }
        self.correspondent.reply(reply);
        None
    }

    fn has_raised(&self) -> bool {
        let status = ProcDir::open(self.executor).and_then(|directory| directory.status());
        status.is_ok_and(|status| status.pending & RAISED != 0)
    }

    /// Gives the executor the next call, if it waits and there is one.
    fn dispatch(&self, state: &mut State) {
        while let (Some(parked), None) = (state.parked, &state.current) {
            if state.retiring {
                state.parked = None;
                let _ = self.listener.answer(parked, area::EXECUTOR_EXIT);
                return;
            }
            let Some(call) = state.queue.pop_front() else { return };
            let id = call.id;
            match executor::plan(&call, SCRATCH_START, SCRATCH as usize) {
                Ok(plan) => {
                    if self.order(parked, plan.number.into(), plan.arguments, &plan.image) {
                        state.parked = None;
                        state.current = Some(Current::Call { id, plan });
                    } else {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("refused a call: {error}");
                    self.correspondent.reply(Reply {
                        id,
                        result: -i64::from(libc::EINVAL),
                        outputs: Vec::new(),
                    });
                }
            }
        }
    }

    /// Writes a request and wakes the executor. False: the process is gone.
    fn order(&self, parked: u64, number: u64, arguments: [u64; 6], image: &[u8]) -> bool {
        let mut block = Vec::with_capacity(56);
        block.extend_from_slice(&number.to_le_bytes());
        block.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let wrote = |address, bytes: &[u8]| {
            bytes.is_empty()
                || self
                    .memory
                    .write(address, bytes)
                    .is_ok_and(|length| length == bytes.len())
        };
        wrote(area::REQUEST, &block) && wrote(SCRATCH_START, image) && self.listener.answer(parked, 0).is_ok()
    }

    /// The executor stopped because of our interrupt: turns the call that it is in, or about to make, into a cancelled one.
    fn interrupted(&self, tracee: Tracee) -> Result<()> {
        let state = self.lock();
        let wanted = match (&state.current, state.cancelled) {
            (Some(Current::Call { id, .. }), Some(cancelled)) => *id == cancelled,
            _ => false,
        };
        if wanted {
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
                tracee.set_registers(&registers)?;
            } else if at_gate || before {
                registers.orig_rax = u64::MAX;
                registers.rip = self.code.returned;
                registers.rsp = area::EXECUTOR_STACK_TOP;
                registers.rax = ERESTARTSYS as u64;
                tracee.set_registers(&registers)?;
            }
        }
        Ok(())
    }

    /// Ends the executor and stops the first thread where it holds no signal; the process is then ready to be rebuilt, or
    /// to be settled again. To be called by the main thread, while another serves the door, with no call outstanding.
    pub fn retire(&self) -> Result<Injection> {
        {
            let mut state = self.lock();
            state.retiring = true;
            self.dispatch(&mut state);
        }
        // Only now: an errand before this one may wait for the executor to wake up.
        let (gone, seen_out) = mpsc::channel();
        self.usher
            .send(Errand::SeeOut(gone))
            .map_err(|_| TraceError::Gone(self.pid))?;
        seen_out.recv().map_err(|_| TraceError::Gone(self.pid))?;
        let first = Tracee::seize(self.pid, 0)?;
        loop {
            first.interrupt()?;
            first.wait_interrupted()?;
            let registers = first.registers()?;
            let waiting = registers.rip == area::GATE + 2
                && registers.orig_rax as i64 == libc::SYS_rt_sigtimedwait
                && (registers.rax as i64) < 0;
            if waiting {
                return Ok(Injection::begin(first)?);
            }
            // It has fetched a signal and not handed it over yet.
            first.resume(0)?;
        }
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
            let pid = ProcDir::open(self.pid)?
                .status()?
                .namespace_pids
                .last()
                .copied()
                .unwrap_or(self.pid);
            script.call("raise the signal", libc::SYS_kill, &[pid as u64, number as u64]);
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

fn run_errand(executor: i32, errand: Errand, deputy: &Weak<Deputy>) -> Result<()> {
    match errand {
        Errand::Interrupt => {
            let executor = Tracee::seize(executor, 0)?;
            executor.interrupt()?;
            loop {
                match executor.wait()? {
                    // A stop signal's group stop is reported as the same event; letting go leaves it stopped.
                    Status::Event {
                        event: libc::PTRACE_EVENT_STOP,
                        ..
                    } => {
                        if let Some(deputy) = deputy.upgrade() {
                            deputy.interrupted(executor)?;
                        }
                        return Ok(executor.detach(0)?);
                    }
                    status if status.is_end() => return Ok(()),
                    Status::Stopped(signal) => executor.resume(signal)?,
                    _ => executor.resume(0)?,
                }
            }
        }
        Errand::SeeOut(gone) => {
            // A thread that cannot be traced any more has given up its memory already.
            if let Ok(executor) = Tracee::seize(executor, 0) {
                loop {
                    match executor.wait() {
                        Ok(status) if status.is_end() => break,
                        Ok(Status::Stopped(signal)) => executor.resume(signal)?,
                        Ok(_) => executor.resume(0)?,
                        Err(_) => break,
                    }
                }
            }
            let _ = gone.send(());
            Ok(())
        }
    }
}

/// The calls that turn a process into a deputy, or make a retired one a deputy again.
fn settle_script(injection: &Injection, pid: i32, arguments: &Range<u64>) -> Result<Script> {
    let maps = ProcDir::open(pid)?.maps()?;
    let mut script = Script::new(area::DATA.start);
    crate::restore::forget_pointers(&mut script, injection.tracee().rseq()?);
    // A read from the terminal in the background stops the process by these two; a handler for them has moved away.
    for signal in [libc::SIGTTIN, libc::SIGTTOU] {
        let arguments = [signal as u64, script.reserve(32), 0, 8];
        script.call("let the terminal stop the deputy", libc::SYS_rt_sigaction, &arguments);
    }
    let mut keep = vec![
        area::START..area::END,
        arguments.start & !(area::PAGE - 1)..arguments.end.next_multiple_of(area::PAGE),
    ];
    let kernels = |path: &[u8]| path.starts_with(b"[vvar") || path == b"[vdso]";
    keep.extend(
        maps.iter()
            .filter(|entry| kernels(&entry.path))
            .map(|entry| entry.start..entry.end),
    );
    crate::restore::clear(&mut script, keep);
    // Whoever could make use of a deputy is its supervisor. What the program had chosen comes back with it.
    let last_wish = [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0];
    script.call("end with the supervisor", libc::SYS_prctl, &last_wish);
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let mapping = [SCRATCH_START, SCRATCH, protection, private, u64::MAX, 0];
    script.step(
        "map room for calls",
        libc::SYS_mmap,
        &mapping,
        Expect::Exactly(SCRATCH_START),
    );
    let stops = 1_u64 << (libc::SIGTTIN - 1) | 1 << (libc::SIGTTOU - 1);
    let (executor_mask, all) = (
        script.data(&(!stops).to_le_bytes()),
        script.data(&u64::MAX.to_le_bytes()),
    );
    let set = libc::SIG_SETMASK as u64;
    script.call(
        "let the terminal's stops in",
        libc::SYS_rt_sigprocmask,
        &[set, executor_mask, 0, 8],
    );
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    // The child's first instruction is the gate's `ret`: its stack holds the address of the executor's loop.
    let stack = area::EXECUTOR_STACK_TOP - 8;
    script.call("create the executor", libc::SYS_clone, &[flags as u64, stack, 0, 0, 0]);
    script.call("block every signal", libc::SYS_rt_sigprocmask, &[set, all, 0, 8]);
    Ok(script)
}
